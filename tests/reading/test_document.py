"""Reading safely: nothing is executed, nothing impossible is believed."""

import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lib_custom_diffusion import formats
from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.reading import read_document

KEY = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


class Touch:
    """Unpickled by an ordinary unpickler, this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, (str(self.path), "w"))


def test_nothing_in_a_pickle_is_executed(tmp_path: Path) -> None:
    torch.save({"state_dict": {KEY: Touch(tmp_path / "pwned")}}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="not safe"):
        read_document(tmp_path / "a.ckpt")
    (tmp_path / "b.ckpt").write_bytes(pickle.dumps(Touch(tmp_path / "pwned")))
    with pytest.raises(UserError, match="not safe"):
        read_document(tmp_path / "b.ckpt")
    torch.save(
        {"state_dict": {KEY: Touch(tmp_path / "pwned")}}, tmp_path / "c.ckpt", _use_new_zipfile_serialization=False
    )
    with pytest.raises(UserError, match="not safe"):
        read_document(tmp_path / "c.ckpt")
    assert not (tmp_path / "pwned").exists()
    torch.load(tmp_path / "a.ckpt", weights_only=False)  # the trap works
    assert (tmp_path / "pwned").exists()


def test_a_huge_tensor_made_of_one_number_is_refused(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(1).expand(1 << 20, 1 << 20)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="more than the file holds"):
        read_document(tmp_path / "a.pt")


def test_an_archive_that_unpacks_to_much_more_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data/0", bytes(1 << 26))
    with pytest.raises(UserError, match="unpack to much more"):
        read_document(tmp_path / "a.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    torch.save({"state_dict": {KEY: torch.full((2, 2), value)}}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="not finite"):
        read_document(tmp_path / "a.ckpt")


@pytest.mark.parametrize("content", [b"", b"PK", b"hello", b'\x08\0\0\0\0\0\0\0{"a":1}', b"\xff" * 8 + b"{"])
def test_what_is_neither_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(UserError):
        read_document(tmp_path / "a")


def test_sparse_tensors_and_odd_contents_are_refused(tmp_path: Path) -> None:
    for content in ({"x": torch.eye(3).to_sparse()}, [torch.ones(2)], {(1, 2): torch.ones(2)}):
        torch.save(content, tmp_path / "a.pt")
        with pytest.raises(UserError):
            read_document(tmp_path / "a.pt")


def test_files_of_no_known_format_say_what_is_known(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.ones(2, 2), "b": torch.ones(2)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"2 tensors \(a.weight, b\); read are .*adobe.*lora"):
        formats.read(tmp_path / "a.pt")


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        formats.read(tmp_path / "a.pt")


def test_dicts_deeper_than_any_format_are_refused(tmp_path: Path) -> None:
    content: dict[str, object] = {"x": torch.ones(1)}
    for _ in range(6):
        content = {"in": content}
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(UserError, match="nested too deeply"):
        read_document(tmp_path / "a.pt")


def test_an_unknown_kind_of_file_to_write_says_which_are_known() -> None:
    with pytest.raises(UserError, match="no format 'ckpt'; choose from delta, adobe"):
        formats.write(Delta({}), "ckpt")


def test_more_tensors_than_any_format_has_are_not_read_one_by_one(tmp_path: Path) -> None:
    header = {f"k{index}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for index in range(20_001)}
    text = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(UserError, match="it has 20,001 tensors, more than any"):
        read_document(tmp_path / "a.safetensors")


@pytest.mark.parametrize("steps", [-1, 10**400])
def test_steps_that_no_training_has_are_damage(tmp_path: Path, steps: int) -> None:
    Delta({KEY: torch.zeros(2, 2)}).save(tmp_path / "a.delta.safetensors")
    tensors = load_file(tmp_path / "a.delta.safetensors")
    with safe_open(tmp_path / "a.delta.safetensors", "pt") as file:
        metadata = {**file.metadata(), "custom_diffusion": json.dumps({"steps": steps})}
    save_file(tensors, tmp_path / "a.delta.safetensors", metadata)
    with pytest.raises(UserError, match="metadata is damaged: steps is"):
        Delta.load(tmp_path / "a.delta.safetensors")
