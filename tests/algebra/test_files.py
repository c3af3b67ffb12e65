"""Algebra on files: the model is asked for only when it is needed, and the report says what is in the file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lib_custom_diffusion.algebra import files as algebra
from lib_custom_diffusion.algebra.blending import bundle_words
from lib_custom_diffusion.algebra.compression import Limit, compress, functional_error
from lib_custom_diffusion.algebra.files import (
    blend_files,
    compress_file,
    convert_files,
    merge_files,
    parse_prompts,
    parse_weights,
    renamed_lines,
)
from lib_custom_diffusion.algebra.merging import context_features
from lib_custom_diffusion.attention import projections
from lib_custom_diffusion.backend import Backend
from lib_custom_diffusion.delta import Delta, Provenance
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.text_features import BUNDLED_CAPTIONS, read_captions
from tiny import WIDTH, TinyBackend


def never() -> Backend:
    raise AssertionError("no model is needed")


def save(path: Path, seed: int, token: str = "<new1>") -> Path:
    layers = projections(TinyBackend().unet)
    torch.manual_seed(seed)
    entries = {key: torch.randn(layer.shape) for key, layer in layers.items()}
    Delta(entries, {token: torch.randn(1, WIDTH)}, Provenance("crossattn-3x6", tokens={token: "cat"})).save(path)
    return path


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    return save(tmp_path / "cat.delta.safetensors", 1)


def test_the_error_that_is_told_is_that_of_the_file(cat: Path, tmp_path: Path) -> None:
    told: list[str] = []
    small = tmp_path / "small.delta.safetensors"
    plain = compress_file(cat, small, Limit(rank=2), tell=told.append)
    assert plain.error == pytest.approx(functional_error(Delta.load(cat), Delta.load(small)), rel=0.02)
    assert (plain.size, plain.size_before) == (small.stat().st_size, cat.stat().st_size)
    assert plain.words == ["<new1>"] and plain.ranks == (2, 2) and not plain.weighed
    assert told == ["Reading the file", "Finding the ranks", "Measuring the error"]
    assert compress_file(cat, small, Limit(rank=2), TinyBackend).weighed


def test_a_file_that_is_none_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "no.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match=r"no\.safetensors"):
        compress_file(tmp_path / "no.safetensors", tmp_path / "small", Limit(rank=2), never)
    with pytest.raises(UserError, match=r"no\.safetensors"):
        merge_files([tmp_path / "no.safetensors"], tmp_path / "merged", never)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["no.safetensors"]


def test_a_blend_is_exact_without_a_limit(cat: Path, tmp_path: Path) -> None:
    dog = save(tmp_path / "dog.delta.safetensors", 2)
    done = blend_files([cat, dog], [1.0, 1.0], tmp_path / "both.delta.safetensors", load_model=never)
    assert done.error is None and done.words == ["<new1>", "<new2>"]
    assert renamed_lines(done.renamed) == ["<new1> of file 2 is now <new2>: another file has a <new1> too"]
    small = blend_files([cat, dog], [1.0, 1.0], tmp_path / "both.delta.safetensors", Limit(rank=1), TinyBackend)
    assert small.error is not None and 0 < small.error < 1


def test_a_merge_tells_what_the_file_does_to_its_targets(cat: Path, tmp_path: Path) -> None:
    merged = merge_files([cat], tmp_path / "merged.delta.safetensors", TinyBackend)
    assert merged.residual < 1e-5 and merged.residual < merged.stored_residual < 1e-2
    assert merged.change < merged.change_of_sum


def test_a_merged_file_that_would_be_large_is_compressed_by_what_prompts_read(
    cat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delta, path = Delta.load(cat), tmp_path / "merged.delta.safetensors"
    size = merge_files([cat], path, TinyBackend).size
    whole = Delta.load(path)
    monkeypatch.setattr(algebra, "MERGED_BYTES", limit := size - 200)
    assert merge_files([cat], path, TinyBackend).size <= limit
    [moment] = context_features(TinyBackend(), [delta], bundle_words([delta]), read_captions(BUNDLED_CAPTIONS))
    small, blind = Delta.load(path), compress(whole, Limit(max_bytes=limit))
    assert functional_error(whole, small, moment) < 0.99 * functional_error(whole, blind, moment)


def test_a_layer_above_a_loras_rank_is_cut_and_the_error_told(cat: Path) -> None:
    whole = convert_files([cat], "lora", TinyBackend)
    assert whole.cut_layers == len(Delta.load(cat).entries) and whole.error < 1e-3
    cut = convert_files([cat], "lora", TinyBackend, rank=1)
    assert cut.error > 0.1 and list(cut.files) == list(whole.files)


@pytest.mark.parametrize(
    ("text", "count", "weights"), [("", 2, [1.0, 1.0]), (" ", 1, [1.0]), ("0.5, -2", 2, [0.5, -2.0])]
)
def test_weights(text: str, count: int, weights: list[float]) -> None:
    assert parse_weights(text, count) == weights


@pytest.mark.parametrize("text", ["1", "1,2,3", "a,b", "1,nan", "1,1e9"])
def test_weights_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="weights"):
        parse_weights(text, 2)


def test_prompts_are_parted_by_a_bar() -> None:
    assert parse_prompts("photo of a <new1> cat | <new1>|") == ["photo of a <new1> cat", "<new1>"]
