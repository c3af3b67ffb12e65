"""The document NAME.delta.safetensors: what DESIGN says of it, and what happens to bad files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lib_custom_diffusion.algebra.factors import QuantizedFactors
from lib_custom_diffusion.algebra.quantization import quantize
from lib_custom_diffusion.attention import projections
from lib_custom_diffusion.delta import Delta, Factors, Provenance
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.storage import safetensors_bytes
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
        dtype = {"F16": "<f2", "F32": "<f4", "U8": "u1"}[entry["dtype"]]
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


def test_a_delta_of_a_newer_version_that_is_not_understood_names_it(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "a.delta.safetensors"
    for kind, stated in (("delta_of_a_kind", {}), ("delta", {"steps": [1, 2]})):
        metadata = {"json": json.dumps({"meta": {"version": "0.2.0"}, "entries": {K: kind}})}
        for version in ("0.1.0", "0.10.0"):
            said = {"custom_diffusion": json.dumps({**stated, "library_version": version})}
            save_file({K: torch.ones(8, 6)}, path, {**metadata, **said})
            with pytest.raises(UserError) as error:
                Delta.load(path)
            assert ("version 0.10.0 of Custom Diffusion wrote it" in str(error.value)) == (version == "0.10.0")


def quantized_factors(vh: torch.Tensor | None = None) -> QuantizedFactors:
    us_bits, vh_bits = torch.tensor([9, 2], dtype=torch.uint8), torch.tensor([3, 1], dtype=torch.uint8)
    levels, step = quantize(torch.randn(2, 8) * torch.tensor([[1.0], [0.1]]), us_bits)
    vh = quantize(torch.randn(2, 16), vh_bits)[0] if vh is None else vh
    return QuantizedFactors.of_levels(levels.T, vh, step.T, us_bits, vh_bits)


def levels_by_the_book(planes: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Rows of ±1/4 ±1/8 …, one sign a bit."""
    rows, start = [], 0
    for count in bits:
        row = np.zeros(planes.shape[1] * 8)
        for k, plane in enumerate(planes[start : start + count]):
            row += [(1 if byte >> (7 - place) & 1 else -1) * 2.0 ** -(k + 2) for byte in plane for place in range(8)]
        rows.append(row)
        start += count
    return np.stack(rows)


def test_quantized_factors_are_read_as_they_were_written(tmp_path: Path) -> None:
    entry, path = quantized_factors(), tmp_path / "a.delta.safetensors"
    Delta({K: entry}).save(path)
    metadata, tensors = read_by_the_book(path.read_bytes())
    assert json.loads(metadata["json"])["entries"] == {K: "delta_factors_quantized"}
    us_bits, vh_bits = tensors[f"{K}.bits"]
    assert (us_bits.tolist(), vh_bits.tolist()) == ([9, 2], [3, 1])
    us, vh = levels_by_the_book(tensors[f"{K}.US"], us_bits).T, levels_by_the_book(tensors[f"{K}.Vh"], vh_bits)
    assert np.allclose(us * tensors[f"{K}.step"] @ vh, entry.dense().numpy(), rtol=1e-6)
    read = Delta.load(path)
    assert torch.equal(read.entries[K].dense(), entry.dense())
    assert read.to_bytes(title="a") == path.read_bytes()


def test_a_basis_that_k_and_v_share_is_stored_once(tmp_path: Path) -> None:
    keys = quantized_factors()
    values, apart = quantized_factors(keys.vh), quantized_factors()
    path = tmp_path / "a.delta.safetensors"
    Delta({K: keys, V: values}).save(path)
    _, tensors = read_by_the_book(path.read_bytes())
    assert f"{K}.Vh" in tensors and f"{V}.Vh" not in tensors
    read = Delta.load(path)
    assert torch.equal(read.entries[V].dense(), values.dense())
    assert read.to_bytes(title="a") == path.read_bytes()
    assert f"{V}.Vh".encode() in Delta({K: keys, V: apart}).to_bytes()
    assert f"{V}.Vh".encode() in Delta({V: values}).to_bytes()


def quantized_tensors(key: str) -> dict[str, torch.Tensor]:
    """Those of a valid entry (8, 16) of rank 2."""
    return {
        f"{key}.bits": torch.tensor([[2, 1], [1, 3]], dtype=torch.uint8),
        f"{key}.step": torch.ones(1, 2),
        f"{key}.US": torch.zeros(3, 1, dtype=torch.uint8),
        f"{key}.Vh": torch.zeros(4, 2, dtype=torch.uint8),
    }


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"US": None}, "listed but not there"),
        ({"Vh": None}, "listed but not there"),
        ({"US": torch.zeros(4, 1, dtype=torch.uint8)}, "should have 3 bit planes"),
        ({"Vh": torch.zeros(4, 2)}, "should have 4 bit planes"),
        ({"bits": torch.ones(2, 2)}, "do not fit"),
        ({"bits": torch.ones(3, 2, dtype=torch.uint8)}, "do not fit"),
        ({"bits": torch.tensor([[1, 2], [17, 1]], dtype=torch.uint8)}, "do not fit"),
        ({"step": torch.ones(1, 3)}, "do not fit"),
        ({"step": torch.full((1, 2), 3e38, dtype=torch.float64) * 10}, "as large as"),
    ],
)
def test_quantized_entries_that_do_not_fit_together_are_refused(
    tmp_path: Path, changed: dict[str, torch.Tensor | None], message: str
) -> None:
    path, tensors = tmp_path / "a.delta.safetensors", quantized_tensors(K)
    assert Delta.load(write(path, tensors, {K: "delta_factors_quantized"})).entries[K].shape == (8, 16)
    merged = tensors | {f"{K}.{name}": value for name, value in changed.items()}
    kept = {name: value for name, value in merged.items() if value is not None}
    with pytest.raises(UserError, match=message):
        Delta.load(write(path, kept, {K: "delta_factors_quantized"}))


def test_a_shared_basis_in_other_bits_than_its_owner_says_is_refused(tmp_path: Path) -> None:
    borrowed = quantized_tensors(V)
    del borrowed[f"{V}.Vh"]
    entries = dict.fromkeys((K, V), "delta_factors_quantized")
    path = write(tmp_path / "a.delta.safetensors", quantized_tensors(K) | borrowed, entries)
    assert Delta.load(path).entries[V].vh is not None
    borrowed[f"{V}.bits"] = torch.tensor([[2, 1], [2, 2]], dtype=torch.uint8)
    with pytest.raises(UserError, match="does not fit the layer beside it"):
        Delta.load(write(path, quantized_tensors(K) | borrowed, entries))


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
        ({K: torch.ones(8, 6, dtype=torch.uint8)}, {K: "delta"}, "should be a matrix"),
        (quantized_tensors(K), {K: "delta_factors"}, "whole numbers"),
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
    with pytest.raises(UserError, match="is an embedding, not a delta"):
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


@pytest.mark.parametrize("word", ["", "  ", "\x1b[31m<new1>", "<new\n1>", "n" * 2000])
def test_a_word_that_is_none_makes_a_damaged_file(tmp_path: Path, word: str) -> None:
    tensors = {f"embedding.{word}": torch.ones(1, 4)}
    (tmp_path / "a").write_bytes(safetensors_bytes(tensors, {"json": '{"entries": {}}'}))
    with pytest.raises(UserError, match="damaged"):
        Delta.load(tmp_path / "a")


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        Delta.load(tmp_path / "a.delta.safetensors")


def test_values_too_large_for_float16_are_not_saved(tmp_path: Path) -> None:
    delta = Delta({K: torch.full((8, 6), 1e5)})
    with pytest.raises(UserError, match="not finite"):
        delta.save(tmp_path / "a.delta.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_delta_of_another_architecture_says_what_does_not_fit() -> None:
    layers = projections(TinyUNet())
    example().check_fits(layers)
    with pytest.raises(UserError, match=r"another kind \(SD 2\) than this \(toy model\)$"):
        Delta({"model.diffusion_model.x": torch.ones(8, 6)}, {}, Provenance("sd2")).check_fits(layers)
    with pytest.raises(UserError, match=r"has no layer model.diffusion_model.x"):
        Delta({"model.diffusion_model.x": torch.ones(8, 6)}).check_fits(layers)
    with pytest.raises(UserError, match=r"\(8, 7\) in the delta, \(8, 6\) in the model"):
        Delta({K: torch.ones(8, 7)}).check_fits(layers)
