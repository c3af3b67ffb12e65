"""The app's models: what can be chosen, and that a choice that fails keeps the model that there was."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.standalone.app import models as app_models
from lib_custom_diffusion.standalone.app.models import Models


@pytest.fixture
def folder(model: Path, tmp_path: Path) -> Path:
    """A model in diffusers' layout, a damaged file, a delta, and what is hidden."""
    shutil.copytree(model, tmp_path / "models" / "small" / "one")
    for name in ("damaged.safetensors", "cat.delta.safetensors", ".hidden.ckpt", "notes.txt"):
        (tmp_path / "models" / name).write_bytes(b"nothing of the kind")
    return tmp_path / "models"


def test_checkpoints_below_the_folder_can_be_chosen(model: Path, folder: Path) -> None:
    assert Models(str(model), folder).names() == [str(model), "toy", "toy-xl", "damaged.safetensors", "small/one"]
    assert Models("toy").names() == ["toy", "toy-xl"] and Models("toy", folder / "nowhere").names() == ["toy", "toy-xl"]


def test_models_behind_a_link_can_be_chosen_and_names_that_no_page_can_show_are_left_out(
    model: Path, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "linked").mkdir()
    try:
        (tmp_path / "linked" / "models").symlink_to(folder, target_is_directory=True)
        Path(os.fsdecode(bytes(folder) + b"/caf\xe9.safetensors")).touch()
    except OSError:
        pytest.skip("this system makes no links, or no such names")
    names = Models("toy", tmp_path / "linked").names()
    assert names == ["toy", "toy-xl", "models/damaged.safetensors", "models/small/one"]


def test_the_chosen_model_takes_the_place_of_the_other(model: Path, folder: Path) -> None:
    models = Models(str(model), folder)
    first = models.get()
    models.choose("small/one")
    assert models.name == "small/one" and models.get() is not first and models.get().name == "one"
    models.choose(str(model))
    assert models.get().name == model.stem


def test_what_was_said_of_the_first_model_is_not_said_of_the_others(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def load(name: str, _dtype: object, _device: object, *more: object) -> object:
        given.append((Path(name).name, *more))
        return object()

    monkeypatch.setattr(app_models, "load_model", load)
    models = Models(str(model), folder, Path("a.vae"), "v_prediction")
    models.get()
    for name in ("small/one", str(model)):
        models.choose(name)
    first = (model.name, Path("a.vae"), "v_prediction")
    assert given == [first, ("one", None, None), first]


def test_a_model_to_try_things_with_is_known_by_what_it_is_and_not_by_its_name(model: Path) -> None:
    assert Models("toy").small and Models("toy-xl").small  # before it is loaded
    models = Models(str(model))
    assert not models.small
    models.get()
    assert models.small  # its text encoder is narrower than any of CLIP's
    models.loaded.architecture = "sd1"
    assert not models.small


@pytest.mark.parametrize("name", ["damaged.safetensors", "../models/small/one", "/etc/passwd", "cat.delta.safetensors"])
def test_what_cannot_be_chosen_keeps_the_model_that_there_was(model: Path, folder: Path, name: str) -> None:
    models = Models(str(model), folder)
    first = models.get()
    with pytest.raises(UserError):
        models.choose(name)
    assert models.name == str(model) and models.get() is first
