"""`merge --only_targets` beside the formulas of the authors' code, with diffusers' tokenizer and text encoder."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lib_custom_diffusion.algebra.blending import dense
from lib_custom_diffusion.algebra.files import merge_files
from lib_custom_diffusion.attention import projections
from lib_custom_diffusion.delta import Delta, Provenance
from lib_custom_diffusion.standalone.diffusers_backend import DiffusersBackend
from tiny_pipeline import WIDTH, stable_diffusion_2

CAPTIONS = [
    *(f"a {thing} {place}" for thing in ("dog", "red car", "tree", "small house") for place in ("on a hill", "at sea")),
    *(f"photo of a {thing}" for thing in ("boat", "cat and a dog", "yellow bird")),
    "two green apples on a white background", "an old man",
]  # fmt: skip


@pytest.fixture(scope="module", params=["a trained norm", "the norm as it begins"])
def backend(request: pytest.FixtureRequest) -> DiffusersBackend:
    """As it begins, the last layer norm gives features without a mean: A has one direction less than it has rows."""
    pipeline = stable_diffusion_2()
    if request.param == "a trained norm":
        norm = next(m for n, m in pipeline.text_encoder.named_modules() if n.endswith("final_layer_norm"))
        torch.manual_seed(3)
        norm.weight.data.copy_(torch.randn(WIDTH).exp())
        norm.bias.data.copy_(torch.randn(WIDTH))
    return DiffusersBackend(pipeline, "tiny")


def random_delta(backend: DiffusersBackend, seed: int, word: str) -> Delta:
    generator = torch.Generator().manual_seed(seed)
    entries = {
        key: torch.randn(layer.shape, generator=generator) / 50 for key, layer in projections(backend.unet).items()
    }
    return Delta(entries, {"<new1>": torch.randn(1, WIDTH, generator=generator)}, Provenance(tokens={"<new1>": word}))


def by_the_authors_code(backend: DiffusersBackend, deltas: Sequence[Delta], words: Sequence[str]) -> dict[str, Tensor]:
    """W of the paper's eq. 4 with base weights, in float64, less the base weights. Rows as their code takes them."""
    tokenizer, encoder = copy.deepcopy(backend.pipeline.tokenizer), copy.deepcopy(backend.pipeline.text_encoder)
    tokens = [f"<new{number}>" for number in range(1, len(deltas) + 1)]
    tokenizer.add_tokens(tokens)
    encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for token, delta in zip(tokens, deltas):
        [number] = tokenizer.convert_tokens_to_ids([token])
        encoder.get_input_embeddings().weight.data[number] = delta.embeddings["<new1>"][0].float()

    @torch.no_grad()
    def features(texts: Sequence[str]) -> Tensor:
        rows = []
        for text in texts:
            ids = tokenizer(text, truncation=True, max_length=77, return_tensors="pt").input_ids
            rows.append(encoder(ids)[0][0, 4 if "photo of a" in text[:15] else 1 :].double())
        return torch.cat(rows)

    captions = features(CAPTIONS)
    targets, concepts = [], []
    for index, (token, word) in enumerate(zip(tokens, words)):
        own = f"painting in the style of {token} art" if "art" in word else f"photo of a {token} {word}"
        rows = [row for row in features([f"{token} {word}", own]) if not any(torch.equal(row, t) for t in targets)]
        targets += rows
        concepts += [index] * len(rows)
    c = torch.stack(targets)
    inverse = torch.linalg.pinv(captions.T @ captions, rtol=1e-13)
    merged = {}
    for key, layer in projections(backend.unet).items():
        base = layer.module.weight.double()
        own = [base + delta.entries[key].double() for delta in deltas]
        values = torch.stack([own[index] @ row for index, row in zip(concepts, targets)], dim=1)
        d = c @ inverse
        merged[key] = (values - base @ c.T) @ torch.linalg.inv(d @ c.T) @ d
    return merged


@pytest.mark.parametrize("words", [("cat", "dog"), ("art", "dog"), ("art", "art"), ("cat", "cat")])
def test_merging_by_targets_alone_is_the_authors_delta(
    backend: DiffusersBackend, tmp_path: Path, words: tuple[str, str]
) -> None:
    deltas = [random_delta(backend, seed, word) for seed, word in enumerate(words)]
    paths = [tmp_path / f"{number}.delta.safetensors" for number in range(len(deltas))]
    for path, delta in zip(paths, deltas):
        delta.save(path, torch.float32)
    (tmp_path / "captions.txt").write_text("\n".join(CAPTIONS))
    merged, captions = tmp_path / "merged.delta.safetensors", tmp_path / "captions.txt"
    done = merge_files(paths, merged, lambda: backend, captions=captions, only_targets=True)
    assert done.target_rows[0] == done.target_rows[1]
    theirs, ours = by_the_authors_code(backend, deltas, words), Delta.load(merged)
    missed = sum((dense(ours.entries[key]) - value).square().sum() for key, value in theirs.items())
    assert missed < 1e-3**2 * sum(value.square().sum() for value in theirs.values())
