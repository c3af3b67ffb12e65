"""The document NAME.delta.safetensors: what DESIGN says of it, and what happens to bad files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lib_custom_diffusion.attention import projections
from lib_custom_diffusion.delta import Delta, Factors, Int8Factors, Provenance
from lib_custom_diffusion.errors import UserError
from tiny import TinyUNet

K, V = list(projections(TinyUNet()))[:2]


def example() -> Delta:
    torch.manual_seed(1)
    return Delta(
        {K: torch.randn(8, 6), V: Factors(torch.randn(8, 2), torch.randn(2, 6))},
        {"<new1>": torch.randn(3, 6)},
        Provenance("crossattn-3x6", "0123456789", {"<new1>": "cat"}, 250, {"seed": 42}),
    )


def read_by_the_book(content: bytes) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """A reader of the format from its description alone: header length, JSON header, raw little-endian numbers."""
    length = int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8 : 8 + length])
    metadata = header.pop("__metadata__")
    body = content[8 + length :]
    tensors = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        dtype = {"F16": "<f2", "F32": "<f4"}[entry["dtype"]]
        tensors[name] = np.frombuffer(body[start:end], dtype).reshape(entry["shape"])
    return metadata, tensors


def test_a_reader_written_from_the_description_alone_understands_the_file(tmp_path: Path) -> None:
    delta = example()
    delta.save(tmp_path / "cat.delta.safetensors")
    metadata, tensors = read_by_the_book((tmp_path / "cat.delta.safetensors").read_bytes())
    document = json.loads(metadata["json"])
    assert document == {"meta": {"version": "0.2.0"}, "entries": {K: "delta", V: "delta_factors"}}
    assert set(tensors) == {K, f"{V}.US", f"{V}.Vh", "embedding.<new1>"}
    assert tensors[K].dtype == np.float16
    assert np.allclose(tensors[K], delta.entries[K].numpy(), atol=2e-3)
    assert np.allclose(tensors[f"{V}.US"] @ tensors[f"{V}.Vh"], delta.entries[V].dense().numpy(), atol=2e-2)
    assert np.allclose(tensors["embedding.<new1>"], delta.embeddings["<new1>"].numpy(), atol=2e-3)
    origin = json.loads(metadata["custom_diffusion"])
    assert (origin["architecture"], origin["tokens"], origin["steps"]) == ("crossattn-3x6", {"<new1>": "cat"}, 250)
    assert metadata["modelspec.title"] == "cat"


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    delta, path = example(), tmp_path / "a.delta.safetensors"
    delta.save(path, torch.float32)
    read = Delta.load(path)
    assert torch.equal(read.entries[K], delta.entries[K])
    assert torch.equal(read.entries[V].us, delta.entries[V].us)
    assert torch.equal(read.embeddings["<new1>"], delta.embeddings["<new1>"])
    assert read.provenance == delta.provenance


def test_equal_deltas_give_equal_bytes() -> None:
    assert example().to_bytes() == example().to_bytes()


def test_file_of_the_first_extension_without_our_metadata_is_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "a.delta.safetensors"
    metadata = {"json": json.dumps({"meta": {"version": "0.2.0"}, "entries": {K: "delta"}})}
    save_file({K: torch.ones(8, 6)}, path, metadata)
    read = Delta.load(path)
    assert torch.equal(read.entries[K], torch.ones(8, 6))
    assert read.provenance.architecture == ""


def int8_factors(vh: torch.Tensor | None = None) -> Int8Factors:
    codes = torch.randint(-127, 128, (8, 2), dtype=torch.int8)
    vh = torch.randint(-127, 128, (2, 6), dtype=torch.int8) if vh is None else vh
    return Int8Factors.from_codes(codes, torch.tensor([[0.5, 0.01]]), vh, torch.full((1, 6), 0.25).half())


def test_one_byte_factors_are_read_as_they_were_written(tmp_path: Path) -> None:
    entry, path = int8_factors(), tmp_path / "a.delta.safetensors"
    Delta({K: entry}).save(path)
    metadata, tensors = read_int8_by_the_book(path.read_bytes())
    assert json.loads(metadata["json"])["entries"] == {K: "delta_factors_int8"}
    us, vh = tensors[f"{K}.US"] * tensors[f"{K}.US_scale"], tensors[f"{K}.Vh"] * tensors[f"{K}.Vh_scale"]
    assert np.allclose(us @ vh, entry.dense().numpy(), rtol=1e-6)
    read = Delta.load(path)
    assert torch.equal(read.entries[K].dense(), entry.dense())
    assert read.to_bytes(title="a") == path.read_bytes()


def read_int8_by_the_book(content: bytes) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    length = int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8 : 8 + length])
    metadata, body = header.pop("__metadata__"), content[8 + length :]
    dtypes = {"F16": "<f2", "F32": "<f4", "I8": "i1"}
    return metadata, {
        name: np.frombuffer(body[slice(*entry["data_offsets"])], dtypes[entry["dtype"]])
        .reshape(entry["shape"]).astype(np.float32) for name, entry in header.items()
    }  # fmt: skip


def test_a_basis_that_k_and_v_share_is_stored_once(tmp_path: Path) -> None:
    keys = int8_factors()
    values = replace(int8_factors(keys.codes()[1]), vh=keys.vh)
    path = tmp_path / "a.delta.safetensors"
    Delta({K: keys, V: values}).save(path)
    _, tensors = read_int8_by_the_book(path.read_bytes())
    assert f"{K}.Vh" in tensors and f"{V}.Vh" not in tensors
    read = Delta.load(path)
    assert torch.equal(read.entries[V].dense(), values.dense())
    assert read.to_bytes(title="a") == path.read_bytes()


def write(path: Path, tensors: dict[str, torch.Tensor], entries: dict[str, str]) -> Path:
    from safetensors.torch import save_file

    save_file(tensors, path, {"json": json.dumps({"meta": {"version": "0.2.0"}, "entries": entries})})
    return path


@pytest.mark.parametrize(
    ("tensors", "entries", "message"),
    [
        ({K: torch.full((8, 6), torch.nan)}, {K: "delta"}, "not finite"),
        ({K: torch.ones(8, 6)}, {K: "delta", V: "delta"}, "listed but not there"),
        ({K: torch.ones(8, 6)}, {K: "quantised"}, "unknown kind"),
        ({K: torch.ones(8)}, {K: "delta"}, "should be a matrix"),
        ({K: torch.ones(8, 6, dtype=torch.int64)}, {K: "delta"}, "should be a matrix"),
        ({f"{K}.US": torch.ones(8, 2), f"{K}.Vh": torch.ones(3, 6)}, {K: "delta_factors"}, "do not fit"),
        (
            {f"{V}.US": torch.ones(8, 2, dtype=torch.int8), f"{V}.US_scale": torch.ones(1, 2)},
            {V: "delta_factors_int8"},
            "listed but not there",
        ),
        (
            {
                f"{K}.US": torch.ones(8, 2, dtype=torch.int8),
                f"{K}.US_scale": torch.ones(1, 3),
                f"{K}.Vh": torch.ones(2, 6, dtype=torch.int8),
                f"{K}.Vh_scale": torch.ones(1, 6),
            },
            {K: "delta_factors_int8"},
            "do not fit",
        ),
    ],
)
def test_content_that_is_no_delta_is_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], entries: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Delta.load(write(tmp_path / "a.delta.safetensors", tensors, entries))


def test_other_safetensors_files_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.ones(2, 2)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="no delta file"):
        Delta.load(tmp_path / "a.safetensors")


def lying(content: bytes) -> bytes:
    """The same file with a header that claims ten times the rows."""
    return content.replace(b'"shape":[8,6]', b'"shape":[80,6]', 1)


@pytest.mark.parametrize("damage", [lambda c: c[:-10], lambda c: c[:20], lambda c: b"", lying, lambda c: b"\xff" * 64])
def test_damaged_files_are_refused(tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "a.delta.safetensors"
    path.write_bytes(damage(example().to_bytes()))
    with pytest.raises(UserError, match="damaged"):
        Delta.load(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no delta file"):
        Delta.load(tmp_path / "a.delta.safetensors")


def test_values_too_large_for_float16_are_not_saved(tmp_path: Path) -> None:
    delta = Delta({K: torch.full((8, 6), 1e5)})
    with pytest.raises(UserError, match="not finite"):
        delta.save(tmp_path / "a.delta.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_delta_of_another_architecture_says_what_does_not_fit() -> None:
    layers = projections(TinyUNet())
    example().check_fits(layers)
    with pytest.raises(UserError, match=r"made for sd2.*has no layer"):
        Delta({"model.diffusion_model.x": torch.ones(8, 6)}, {}, Provenance("sd2")).check_fits(layers)
    with pytest.raises(UserError, match=r"\(8, 7\) in the delta, \(8, 6\) in the model"):
        Delta({K: torch.ones(8, 7)}).check_fits(layers)
