"""What compression and merging win and take, on deltas of Stable Diffusion 1's size. One command, some minutes:

    python tests/benchmarks/algebra.py [--delta FILE --model MODEL]

A table of errors and bytes beside the bars that they are to meet. Without a file the deltas are made here: 32
projections (16 layers, K and V, 19.2 M numbers) trained by AdamW for some steps towards a random target on the features
that an untrained CLIP text encoder of SD1's width gives random texts. The earlier programs' way is the plain SVD of
each layer, cut where the singular values' running sum passes a share (0.5 in the first extension, 0.6 in Adobe's
compress.py), stored in float16. Errors are on captions held out.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lib_custom_diffusion.algebra.compression import Limit, compress, functional_error
from lib_custom_diffusion.algebra.files import MERGED_BYTES
from lib_custom_diffusion.algebra.merging import change_on, merge
from lib_custom_diffusion.delta import Delta, Factors, Provenance
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.text_features import Moments

WIDTH = 768
BLOCKS = [("input_blocks", n, c) for n, c in ((1, 320), (2, 320), (4, 640), (5, 640), (7, 1280), (8, 1280))]
BLOCKS += [("middle_block", None, 1280)]
BLOCKS += [("output_blocks", n, c) for n, c in zip(range(3, 12), (1280,) * 3 + (640,) * 3 + (320,) * 3)]
SHARES = (0.3, 0.5, 0.6, 0.8)
MergeInputs = tuple[list[Tensor], Tensor, list[Tensor]]
"""Target features (rows, 768) of each, features of 200 captions, second moments of each one's contexts (768, 768)."""


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


def compare(delta: Delta, moments: Moments) -> None:
    """Print for each share what the earlier way takes and loses, and what ours loses in as many bytes."""
    print("| share | bytes | their error | ours in as many | times less | our bytes at their error | of theirs", end="")
    print(f" | ours without a model | 2 times less error, or half the bytes |\n|{' --- |' * 9}")
    for share in SHARES:
        theirs = earlier(delta, share)
        size, error = len(theirs.to_bytes()), functional_error(delta, theirs, moments.held_out)

        ours = partial(error_in, delta, moments)
        weighed, plain = ours(moments.fitted, size), ours(None, size)
        enough = fewest(size, error, partial(ours, moments.fitted))
        bar = verdict(error / weighed >= 2 or enough / size <= 0.5)
        print(
            f"| {share} | {size:,} | {error:.3%} | {weighed:.3%} | {error / weighed:.2f} | {enough:,} |"
            f" {enough / size:.0%} | {plain:.3%} | {bar} |",
            flush=True,
        )


def error_in(delta: Delta, moments: Moments, moment: Tensor | None, max_bytes: int) -> float:
    return functional_error(delta, compress(delta, Limit(max_bytes=max_bytes), moment), moments.held_out)


def fewest(size: int, error: float, error_in_bytes: Callable[[int], float]) -> int:
    """The fewest bytes, to a sixteenth of `size`, that lose no more than `error`; `size` where no fewer are enough."""
    too_few, enough = 0, 16
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        try:
            good = error_in_bytes(size * middle // 16) <= error
        except UserError:  # less than the words alone
            good = False
        too_few, enough = (too_few, middle) if good else (middle, enough)
    return size * enough // 16


def verdict(met: bool) -> str:
    return "met" if met else "MISSED"


def timed(work: Callable[[], Any], times: int = 3) -> tuple[float, float, Any]:
    """Seconds and processor seconds of the fastest of some runs, and the result."""
    best, result = (math.inf, math.inf), None
    for _ in range(times):
        started, processor = time.perf_counter(), time.process_time()
        result = work()
        best = min(best, (time.perf_counter() - started, time.process_time() - processor))
    return *best, result


def sd1_size(steps: int, cache: Path | None) -> tuple[list[Delta], Moments, MergeInputs]:
    """Two deltas, moments, and what merging them takes."""
    if cache and cache.is_file():
        entries, fitted, held_out, *rest = torch.load(cache)
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
        rest = [targets, regularization, [moment(concept) for concept in concepts]]
        if cache:
            torch.save((entries, fitted, held_out, *rest), cache)
    deltas = [
        Delta(matrices, {f"<new{n}>": torch.randn(1, WIDTH)}, Provenance("sd1"))
        for n, matrices in enumerate(entries, 1)
    ]
    return deltas, Moments(fitted, held_out), tuple(rest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delta", type=Path, help="compress this delta, rather than one made here")
    parser.add_argument("--model", default="toy", help="whose text features weigh --delta")
    parser.add_argument("--steps", type=int, default=60, help="of the training of those made here")
    parser.add_argument("--cache", type=Path, help="keep what is made here in this file, or take it from there")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    if options.delta:
        from lib_custom_diffusion.algebra.files import moments_of
        from lib_custom_diffusion.standalone.models import load_model

        delta = Delta.load(options.delta)
        compare(delta, moments_of(delta, lambda: load_model(options.model), None, print))
        return
    deltas, moments, inputs = sd1_size(options.steps, options.cache)
    report_compression_time(deltas[0], moments)
    report_merging(deltas, *inputs)
    compare(deltas[0], moments)


def report_compression_time(delta: Delta, moments: Moments) -> None:
    seconds, processor, small = timed(lambda: compress(delta, Limit(max_bytes=5_000_000), moments.fitted))
    error = functional_error(delta, small, moments.held_out)
    print(f"compress to 5 MB: {seconds:.2f} s ({processor:.2f} s of processor), {verdict(seconds <= 3)} (3 s)")
    print(f"    error on captions held out {error:.4%}, {len(small.to_bytes()):,} bytes", flush=True)


def report_merging(
    deltas: Sequence[Delta], targets: list[Tensor], regularization: Tensor, contexts: list[Tensor]
) -> None:
    plain = Delta({key: deltas[0].entries[key] + deltas[1].entries[key] for key in deltas[0].entries})
    print(f"change on captions of the plain sum {change_on(plain, regularization):.4g}")
    for name, asked in (("with contexts", contexts), ("the paper's", [])):
        seconds, processor, merged = timed(lambda asked=asked: merge(deltas, targets, regularization, asked))
        bar = verdict(seconds <= 0.3)
        print(f"merge two concepts, {name}: {seconds:.2f} s ({processor:.2f} s of processor), {bar} (0.3 s)")
        rows = merged.target_rows
        print(f"    constraint residual {merged.residual:.1e}, {verdict(merged.residual <= 1e-5)} (1e-5)", end="")
        print(f"; {rows[0]} of {rows[1]} target rows; change on captions {change_on(merged.delta, regularization):.4g}")
        report_merged_file(merged.delta, moment(regularization) + sum(asked))


def report_merged_file(delta: Delta, seen: Tensor) -> None:
    size, cost = len(delta.to_bytes()), ""
    if size > MERGED_BYTES:
        seconds, processor, small = timed(lambda: compress(delta, Limit(max_bytes=MERGED_BYTES), seen), times=1)
        before, size, error = size, len(small.to_bytes()), functional_error(delta, small, seen)
        cost = f"; compressed from {before:,} in {seconds:.2f} s ({processor:.2f} s of processor), error {error:.2%}"
    print(f"    file {size:,} bytes, {verdict(size <= MERGED_BYTES)} (2 MB){cost}", flush=True)


if __name__ == "__main__":
    main()
