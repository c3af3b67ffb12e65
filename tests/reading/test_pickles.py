"""Torch archives are read as torch reads them, by an unpickler that executes nothing and believes no number."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.reading import read_document

TYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool]


def zipped(named: bytes, **records: bytes) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as file:
        file.writestr("a/data.pkl", named)
        for name, content in records.items():
            file.writestr(f"a/data/{name}", content)
    return written.getvalue()


@pytest.mark.parametrize("zip_", [True, False])
def test_what_torch_saved_is_what_is_read(tmp_path: Path, zip_: bool) -> None:
    torch.manual_seed(0)
    whole = torch.randn(6, 4)
    content: dict[str, Any] = {
        "types": {str(dtype): (torch.randn(3, 2) * 9).to(dtype) for dtype in TYPES},
        "part": whole[2:5, 1:3], "turned": whole.T, "same": whole, "none": torch.empty(0, 4), "step": 7,
        "number": torch.tensor(2.5), "parameter": torch.nn.Parameter(torch.randn(2)), "text": "ü", "nothing": None,
        "ordered": OrderedDict(a=torch.ones(1)), "list": [1, (2, 3)],
    }  # fmt: skip
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zip_)
    read = read_document(tmp_path / "a.pt").content
    assert read.keys() == content.keys() and (read["step"], read["text"], read["list"]) == (7, "ü", [1, (2, 3)])
    for name, wanted in content["types"].items():
        assert read["types"][name].dtype == wanted.dtype and torch.equal(read["types"][name], wanted)
    for name in ("part", "turned", "same", "number", "parameter"):
        assert torch.equal(read[name], content[name]), name
    assert read["none"].numel() == 0 and torch.equal(read["ordered"]["a"], torch.ones(1))


@pytest.mark.parametrize(
    ("tensor", "what"),
    [
        (torch.eye(3).to_sparse(), "sparse"),
        (torch.quantize_per_tensor(torch.ones(2, 2), 1.0, 0, torch.qint8), "quantized"),
        (torch.ones(2, 2, device="meta"), "without numbers"),
        (torch.ones(2, 2).to(torch.float8_e4m3fn), "float8"),
        (torch.ones(2, 2, dtype=torch.complex64), "ComplexFloatStorage"),
    ],
)
def test_tensors_of_other_kinds_are_refused_by_name(tmp_path: Path, tensor: torch.Tensor, what: str) -> None:
    try:
        torch.save({"<a>": tensor}, tmp_path / "a.pt")
    except KeyError:
        pytest.skip("this torch writes no such tensors")
    with pytest.raises(UserError, match=what):
        read_document(tmp_path / "a.pt")


def test_dicts_that_are_shared_are_looked_at_once(tmp_path: Path) -> None:
    """300³ ways lead through three dicts of three hundred."""
    held: dict[str, Any] = {"x": torch.ones(1)}
    for _ in range(2):
        held = {str(number): held for number in range(3000)}
    torch.save(held, tmp_path / "a.pt")
    assert len(read_document(tmp_path / "a.pt").content) == 3000


def test_one_storage_in_a_thousand_names_is_refused(tmp_path: Path) -> None:
    large = torch.ones(1 << 20)
    torch.save({f"n{number}": large for number in range(1000)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="more data than the file holds"):
        read_document(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "named",
    [
        b"\x80\x05\x96\xff\xff\xff\xff\x0f\x00\x00\x00.",  # a bytearray of 68 GB
        b"\x80\x02]r\xff\xff\xff\x7f.",  # memo number two thousand million
        b"\x80\x02\x8b\xff\xff\xff\x7f.",
        b"\x80\x02" + b"(" * 100_000 + b".",
        b"\x80\x02}" + b")" + b"\x85" * 200_000 + b"K\x01s.",  # a tuple in tuples as a name: its hash would recurse
        b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
        b"cos\nsystem\n(S'touch executed'\ntR.",
        b"(S'touch executed'\nios\nsystem\n.",
        b"\x80\x02}q\x00(h\x00h\x00u.",
        pickle.dumps({"a": {1, 2}}, protocol=4),
        pickle.dumps({"\ud800": 1}, protocol=2),
    ],
)
def test_crafted_pickles_are_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bytes) -> None:
    monkeypatch.chdir(tmp_path)
    for content in (zipped(named), named):
        Path("a.pt").write_bytes(content)
        with pytest.raises(UserError):
            read_document(Path("a.pt"))
    assert not Path("executed").exists()


@pytest.mark.parametrize("change", [b"K\x08", b"J\xff\xff\xff\x7f", b"J\xff\xff\xff\xff"])
def test_a_tensor_beyond_its_storage_is_refused(tmp_path: Path, change: bytes) -> None:
    torch.save({"x": torch.ones(7)}, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as file:
        named = next(file.read(name) for name in file.namelist() if name.endswith("data.pkl"))
    assert named.count(b"K\x07") == 2  # the storage's count, and the tensor's shape
    for wrong in (named.replace(b"K\x07", change), named[::-1].replace(b"\x07K", change[::-1], 1)[::-1]):
        (tmp_path / "a.pt").write_bytes(zipped(wrong, **{"0": torch.ones(7).numpy().tobytes()}))
        with pytest.raises(UserError):
            read_document(tmp_path / "a.pt")


@pytest.mark.parametrize("zip_", [True, False])
def test_a_torn_archive_says_that_it_is_torn(tmp_path: Path, zip_: bool) -> None:
    torch.save({"x": torch.ones(1000)}, tmp_path / "a.pt", _use_new_zipfile_serialization=zip_)
    (tmp_path / "a.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:-500])
    with pytest.raises(UserError, match="interrupted download"):
        read_document(tmp_path / "a.pt")
