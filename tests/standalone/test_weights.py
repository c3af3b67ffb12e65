"""What a file is, told by its content: weights, of which nothing is executed, or what else people take for a model."""

import argparse
import os
import pickle
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.standalone.weights import read_weights, refuse_torn

TENSORS = {"model.a": torch.arange(300.0), "model.b": torch.ones(2, 2, dtype=torch.float16)}


@pytest.fixture
def lightning(monkeypatch: pytest.MonkeyPatch) -> type:
    """PyTorch Lightning's ModelCheckpoint while a file is written; it is not installed where files are read."""

    class ModelCheckpoint:
        pass

    name = "pytorch_lightning.callbacks.model_checkpoint"
    ModelCheckpoint.__module__, ModelCheckpoint.__qualname__ = name, "ModelCheckpoint"
    module = types.ModuleType(name)
    module.ModelCheckpoint = ModelCheckpoint  # type: ignore[attr-defined]
    for part in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    monkeypatch.setitem(sys.modules, name, module)
    return ModelCheckpoint


def same(path: Path) -> bool:
    read = read_weights(path).tensors
    return read.keys() == TENSORS.keys() and all(torch.equal(read[name], TENSORS[name]) for name in TENSORS)


def test_both_formats_whatever_the_suffix(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.ckpt", metadata={"modelspec.title": "x"})
    assert same(tmp_path / "a.ckpt")
    assert read_weights(tmp_path / "a.ckpt").metadata == {"modelspec.title": "x"}
    torch.save(TENSORS, tmp_path / "b.safetensors")
    assert same(tmp_path / "b.safetensors")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_of_lightning_with_its_callbacks(tmp_path: Path, lightning: type, zipped: bool) -> None:
    callback = lightning()
    callback.best = 1.0
    content = {
        "state_dict": {name: torch.nn.Parameter(tensor) for name, tensor in TENSORS.items()},
        "callbacks": {lightning: {"best_model_score": np.float64(0.5)}, "kept": callback},
        "global_step": 7, "history": np.zeros(3), "names": {"a"},
    }  # fmt: skip
    path = tmp_path / "pl.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert same(path)
    assert "global_step" in read_weights(path).entries


class Runs:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_would_run_code_is_refused_by_name_and_runs_none(tmp_path: Path, zipped: bool) -> None:
    proof, path = tmp_path / "ran", tmp_path / "evil.ckpt"
    torch.save({"state_dict": TENSORS, "x": Runs(proof)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"evil.ckpt contains more than weights \(posix\.mkdir\), and loading it would"):
        read_weights(path)
    assert not proof.exists()
    torch.save({"state_dict": TENSORS, "x": argparse.Namespace(a=1)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"argparse\.Namespace"):
        read_weights(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 4265380512\n", "it is a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html><body>Log in</body></html>", "it is a web page"),
        (b"GGUF\x03\x00\x00\x00\x00\x00", "it is a GGUF file"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "is a picture"),
        (b"\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a", "is neither a safetensors file nor a torch archive"),
    ],
)
def test_other_files_are_called_what_they_are(tmp_path: Path, content: bytes, said: str) -> None:
    for name in ("a.safetensors", "a.ckpt"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}:? {said}") as error:
            read_weights(tmp_path / name)
        assert "\n" not in str(error.value)


def test_a_zip_archive_of_models_is_to_be_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as archive:
        archive.writestr("model/v1.ckpt", "x")
    with pytest.raises(UserError, match=r"ZIP archive, which holds model/v1\.ckpt; unpack it"):
        read_weights(tmp_path / "a.ckpt")


@pytest.mark.parametrize("name", ["a.ckpt", "a.safetensors"])
def test_an_archive_that_unpacks_to_more_than_the_file_is_not_unpacked(name: str, tmp_path: Path) -> None:
    torch.save(TENSORS | {"more": torch.zeros(1 << 20)}, tmp_path / "whole")
    with (
        zipfile.ZipFile(tmp_path / "whole") as whole,
        zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for each in whole.namelist():
            packed.writestr(each, whole.read(each))
    with pytest.raises(
        UserError, match="is no archive as torch writes it: what is in it is compressed, or there twice"
    ):
        read_weights(tmp_path / name)


def test_a_torn_download_is_called_torn_however_short_it_is(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "whole.safetensors")
    torch.save(TENSORS, tmp_path / "whole.ckpt")
    torch.save(TENSORS, tmp_path / "whole_old.ckpt", _use_new_zipfile_serialization=False)
    for whole in list(tmp_path.iterdir()):
        content = whole.read_bytes()
        for share in (0.05, 0.5, 0.99):
            torn = tmp_path / f"torn{whole.suffix}"
            torn.write_bytes(content[: int(len(content) * share)])
            with pytest.raises(UserError, match="torn"):
                read_weights(torn)


def test_a_file_with_something_behind_its_last_tensor_is_not_called_torn(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors")
    with (tmp_path / "a.safetensors").open("ab") as file:
        file.write(b"more")
    with pytest.raises(UserError, match="damaged: it goes on after its last tensor"):
        read_weights(tmp_path / "a.safetensors")


def test_archives_of_other_programs_are_refused_without_a_warning(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    with zipfile.ZipFile(tmp_path / "program.ckpt", "w") as archive:
        for name in ("code/__torch__.py", "constants.pkl", "data.pkl", "version"):
            archive.writestr(f"program/{name}", b"\x80\x02}.")
    with pytest.raises(UserError, match="is a TorchScript program"):
        read_weights(tmp_path / "program.ckpt")
    (tmp_path / "any.ckpt").write_bytes(pickle.dumps({"state_dict": {"a": 1}}, 4))
    with pytest.raises(UserError, match="damaged, torn, or not a file of torch's"):
        read_weights(tmp_path / "any.ckpt")
    assert not recwarn.list


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere all names are text")
def test_a_name_that_is_not_utf8_is_what_is_wrong_with_the_file(tmp_path: Path) -> None:
    path = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.safetensors"))
    path.write_bytes(b"x")
    with pytest.raises(UserError, match=r"caf\\udce9.safetensors' cannot be read, as its name is not in UTF-8"):
        read_weights(path)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_weights(tmp_path / "missing.safetensors")


def test_a_torn_file_is_found_without_reading_its_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    save_file(TENSORS, path)
    refuse_torn(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="torn"):
        refuse_torn(path)


@pytest.mark.parametrize("odd", [torch.eye(3).to_sparse(), torch.empty(3, device="meta")])
def test_tensors_that_are_not_plain_are_told_with_their_file(odd: torch.Tensor, tmp_path: Path) -> None:
    torch.save({"state_dict": {"a.weight": odd}}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"a\.ckpt is of a kind that is not read: a\.weight in it is no plain tensor"):
        read_weights(tmp_path / "a.ckpt")
