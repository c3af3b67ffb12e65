"""What compression and merging win and take, on deltas of Stable Diffusion 1's size. One command:

    python tests/benchmarks/algebra.py [--delta FILE --model MODEL]

Without a file the deltas are made here: 32 projections (16 layers, K and V, 19.2 M numbers) trained by AdamW for some
steps towards a random target on the features that an untrained CLIP text encoder of SD1's width gives random texts. The
earlier programs' way is the plain SVD of each layer, cut where the singular values' running sum passes a share
(0.5 in the first extension, 0.6 in Adobe's compress.py), stored in float16. Errors are on captions held out.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib_custom_diffusion.compression import Limit, compress, functional_error
from lib_custom_diffusion.delta import Delta, Factors, Provenance
from lib_custom_diffusion.merging import change_on, merge
from lib_custom_diffusion.text_features import Moments

WIDTH = 768
BLOCKS = [("input_blocks", n, c) for n, c in ((1, 320), (2, 320), (4, 640), (5, 640), (7, 1280), (8, 1280))]
BLOCKS += [("middle_block", None, 1280)]
BLOCKS += [("output_blocks", n, c) for n, c in zip(range(3, 12), (1280,) * 3 + (640,) * 3 + (320,) * 3)]
SHARES = (0.3, 0.5, 0.6, 0.8)


def keys() -> Iterator[tuple[str, int]]:
    """The key and the output width of each projection of SD1."""
    for side, number, channels in BLOCKS:
        block = f"{side}.1" if number is None else f"{side}.{number}.1"
        for role in "kv":
            yield f"model.diffusion_model.{block}.transformer_blocks.0.attn2.to_{role}.weight", channels


class RandomText:
    """Features of random texts by an untrained text encoder of SD1's width (with 3 of its 12 layers, for time)."""

    def __init__(self) -> None:
        from transformers import CLIPTextConfig, CLIPTextModel

        torch.manual_seed(0)
        config = CLIPTextConfig(hidden_size=WIDTH, intermediate_size=3072, num_hidden_layers=3, num_attention_heads=12)
        self.encoder = CLIPTextModel(config).eval()
        self.generator = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def __call__(self, count: int, start: tuple[int, ...] = (), words: int = 12) -> Tensor:
        """(count, 77, 768); texts of 3 to `words` random words after the given ones."""
        ids = torch.randint(300, 49000, (count, 77), generator=self.generator)
        ids[:, 0] = 49406
        ids[:, 1 : 1 + len(start)] = torch.tensor(start, dtype=torch.long)
        for row in ids:
            end = 1 + len(start) + int(torch.randint(0 if start else 3, words, (1,), generator=self.generator))
            row[end:] = 49407
        return torch.cat([self.encoder(batch).last_hidden_state for batch in ids.split(16)])


def trained(concept: Tensor, others: Tensor, steps: int, seed: int) -> dict[str, Tensor]:
    """Deltas learned by AdamW at 1e-5 on features of the concept's prompts and of others', which are to stay."""
    generator = torch.Generator().manual_seed(seed)
    deltas = {}
    for key, channels in keys():
        target = torch.randn(channels, WIDTH, generator=generator) * 0.05 / math.sqrt(WIDTH)
        delta = torch.zeros(channels, WIDTH, requires_grad=True)
        optimizer = torch.optim.AdamW([delta], lr=1e-5, weight_decay=1e-2)
        for _ in range(steps):
            rows = torch.randint(0, len(concept), (2,), generator=generator)
            prior = others[torch.randint(0, len(others), (2,), generator=generator)].reshape(-1, WIDTH)
            c = concept[rows].reshape(-1, WIDTH)
            error = c @ (delta.detach() - target).T
            noise = torch.randn(error.shape, generator=generator) * error.std() * 2
            attention = torch.rand(len(c), 1, generator=generator) ** 4
            delta.grad = ((error + noise) * attention).T @ c + (
                (prior @ delta.detach().T) * attention[: len(prior)]
            ).T @ prior
            optimizer.step()
        deltas[key] = delta.detach()
    return deltas


def moment(features: Tensor) -> Tensor:
    flat = features.reshape(-1, features.shape[-1]).double()
    return flat.T @ flat / len(flat)


def earlier(delta: Delta, share: float) -> Delta:
    """The earlier programs' way."""
    entries: dict[str, Any] = {}
    for key, entry in delta.entries.items():
        u, s, vh = torch.linalg.svd(entry.float() if isinstance(entry, Tensor) else entry.dense(), full_matrices=False)
        rank = max(1, int((s.cumsum(0) < s.sum() * share).sum()))
        entries[key] = Factors((u[:, :rank] * s[:rank]).half(), vh[:rank].half())
    return Delta(entries, delta.embeddings, delta.provenance)


def compare(delta: Delta, moments: Moments) -> list[dict[str, float]]:
    """For each share: bytes and error of the earlier way; ours at equal bytes; our bytes at equal error."""
    rows = []
    for share in SHARES:
        theirs = earlier(delta, share)
        size, error = len(theirs.to_bytes()), functional_error(delta, theirs, moments.held_out)
        ours = functional_error(delta, compress(delta, Limit(max_bytes=size), moments.fitted), moments.held_out)
        plain = functional_error(delta, compress(delta, Limit(max_bytes=size)), moments.held_out)
        rows.append(
            {"share": share, "MB": size / 1e6, "error": error, "our_error": ours, "times": error / ours,
             "without_model": plain, "bytes_at_equal_error": bytes_for(delta, moments, error, size) / size}
        )  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    return rows


def bytes_for(delta: Delta, moments: Moments, error: float, size: int) -> int:
    """The fewest bytes, to a tenth, at which ours has no more error."""
    found = size
    for tenth in range(9, 0, -1):
        small = compress(delta, Limit(max_bytes=size * tenth // 10), moments.fitted)
        if functional_error(delta, small, moments.held_out) > error:
            break
        found = size * tenth // 10
    return found


def timed(work: Callable[[], Any], times: int = 3) -> tuple[float, Any]:
    """Seconds of the fastest of some runs, and the result."""
    best, result = math.inf, None
    for _ in range(times):
        started = time.perf_counter()
        result = work()
        best = min(best, time.perf_counter() - started)
    return best, result


def sd1_size(steps: int, cache: Path | None) -> tuple[list[Delta], Moments, list[Tensor], Tensor]:
    """Two deltas, moments, target features (rows, 768) of each, features of 200 captions."""
    if cache and cache.is_file():
        entries, fitted, held_out, targets, regularization = torch.load(cache)
    else:
        text = RandomText()
        prompts = [(1125, 539, 320, 48000 + concept, 2368 + concept) for concept in range(2)]
        concepts, captions = [text(24, prompt) for prompt in prompts], text(250)
        entries = [trained(concept[:16], captions[:100], steps, seed) for seed, concept in enumerate(concepts)]
        fitted = (moment(captions[:200]) + moment(concepts[0][:16])) / 2
        held_out = (moment(captions[200:]) + moment(concepts[0][16:])) / 2
        targets = [concept[0, 4:7] for concept in concepts] + [concept[1, 4:7] for concept in concepts]
        targets = [torch.cat(targets[i::2]).double() for i in range(2)]
        regularization = captions[:200, 1:11].reshape(-1, WIDTH).double()
        if cache:
            torch.save((entries, fitted, held_out, targets, regularization), cache)
    deltas = [
        Delta(matrices, {f"<new{n}>": torch.randn(1, WIDTH)}, Provenance("sd1"))
        for n, matrices in enumerate(entries, 1)
    ]
    return deltas, Moments(fitted, held_out), targets, regularization


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delta", type=Path, help="compress this delta, rather than one made here")
    parser.add_argument("--model", default="toy", help="whose text features weigh --delta")
    parser.add_argument("--steps", type=int, default=60, help="of the training of those made here")
    parser.add_argument("--cache", type=Path, help="keep what is made here in this file, or take it from there")
    options = parser.parse_args()
    if options.delta:
        from lib_custom_diffusion.algebra import moments_of
        from lib_custom_diffusion.standalone.models import load_model

        delta = Delta.load(options.delta)
        compare(delta, moments_of(delta, lambda: load_model(options.model)))
        return
    deltas, moments, targets, regularization = sd1_size(options.steps, options.cache)
    seconds, small = timed(lambda: compress(deltas[0], Limit(max_bytes=5_000_000), moments.fitted))
    error = functional_error(deltas[0], small, moments.held_out)
    print(f"compress to 5 MB: {seconds:.2f} s, error {error:.4f}, {torch.get_num_threads()} threads")
    seconds, merged = timed(lambda: merge(deltas, targets, regularization))
    plain = Delta({key: deltas[0].entries[key] + deltas[1].entries[key] for key in deltas[0].entries})
    size, rows = len(merged.delta.to_bytes()) / 1e6, merged.target_rows
    changes = change_on(merged.delta, regularization), change_on(plain, regularization)
    print(f"merge two concepts: {seconds:.2f} s, {size:.2f} MB, residual {merged.residual:.1e}, rows {rows}")
    print(f"change on captions: merged {changes[0]:.4g}, plain sum {changes[1]:.4g}", flush=True)
    compare(deltas[0], moments)


if __name__ == "__main__":
    main()
