"""Where a training reads and writes: what is refused of it, without a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_custom_diffusion.data.concepts import Concept
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.storage import FolderLock
from lib_custom_diffusion.training.place import check_place
from lib_custom_diffusion.training.plan import PLAIN, TrainingPlan


def with_picture(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16)).save(folder / "a.png")
    return folder


def plan_of(pictures: Path, **more: Any) -> TrainingPlan:
    return replace(TrainingPlan(concepts=(Concept("photo of a <new1> cat", pictures, "cat"),)), **more)


@pytest.mark.parametrize(
    ("pictures", "said"),
    [
        ("out/images", "has its previews"),
        ("out/images/best", "has its previews"),
        ("out/embeddings", "has its copies"),
        ("out/checkpoint-3", "has its saves"),
        ("out/class_images-2", "has its class pictures"),
        ("link", "has its previews"),
    ],
)
def test_pictures_are_not_learned_where_the_training_puts_its_own_or_removes_what_is_there(
    tmp_path: Path, pictures: str, said: str
) -> None:
    (tmp_path / "link").symlink_to("out/images")
    with_picture(tmp_path / "out" / "images")
    with_picture(tmp_path / pictures)
    with pytest.raises(UserError, match=rf"instance_data_dir of concept 1 is .*{pictures}, where .*{said}; give anoth"):
        check_place(plan_of(tmp_path / pictures, overwrite=True), PLAIN, tmp_path / "out")


def test_other_folders_in_that_of_the_training_are_free(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for free in (out / "mine", out, tmp_path / "images", tmp_path / "out2" / "images"):
        assert check_place(plan_of(with_picture(free)), PLAIN, out) is None
    drawn = Concept("photo of a <new1> cat", out / "mine", "cat", with_picture(out / "class_images-1"))
    assert check_place(plan_of(out, concepts=(drawn,), with_prior_preservation=True), PLAIN, out) is None


@pytest.mark.parametrize("what", ["class_data_dir", "template", "prior_captions"])
def test_nothing_else_is_read_from_there_either(tmp_path: Path, what: str) -> None:
    saves, pictures = with_picture(tmp_path / "out" / "checkpoint-3"), with_picture(tmp_path / "pictures")
    changes: dict[str, Any] = {
        "class_data_dir": {"concepts": (Concept("a <new1>", pictures, "cat", saves),), "with_prior_preservation": True},
        "template": {"template": saves / "lines.txt"},
        "prior_captions": {"prior_captions": str(saves / "lines.txt")},
    }
    with pytest.raises(UserError, match=rf"{what}.* is .*checkpoint-3.*, where this training has its saves; give anot"):
        check_place(plan_of(pictures, overwrite=True, **changes[what]), PLAIN, tmp_path / "out")


def test_logs_of_tensorboard_go_neither_among_pictures_nor_into_saves(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    pictures, out = with_picture(tmp_path / "pictures"), tmp_path / "out"
    for logs, said in ((pictures, "pictures, where pictures are"), (Path("checkpoint-3"), "has its saves")):
        with pytest.raises(UserError, match=rf"logging_dir is .*{said}; give another"):
            check_place(plan_of(pictures, report_to="tensorboard"), PLAIN, out, logging_dir=logs)
        assert check_place(plan_of(pictures), PLAIN, out, logging_dir=logs) is None


@pytest.mark.parametrize("name", ["new1.delta.safetensors", "new1.pt"])
def test_a_folder_that_is_called_as_a_result_is_not_replaced_and_told_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / "out" / name).mkdir(parents=True)
    plan = plan_of(with_picture(tmp_path / "pictures"), overwrite=True)
    with pytest.raises(UserError, match=rf"cannot write to .*{name}: it is a folder; give another file"):
        check_place(plan, PLAIN, tmp_path / "out")
    assert check_place(plan, PLAIN, tmp_path / "other") is None


def test_where_another_training_writes_none_begins(tmp_path: Path) -> None:
    with FolderLock(tmp_path / "out"), pytest.raises(UserError, match="another training is writing into"):
        check_place(plan_of(with_picture(tmp_path / "pictures")), PLAIN, tmp_path / "out")


@pytest.mark.parametrize("left", ["drawn", "picked"])
def test_class_pictures_of_another_training_are_not_taken_for_those_to_be_drawn(tmp_path: Path, left: str) -> None:
    plan = plan_of(with_picture(tmp_path / "pictures"), with_prior_preservation=True, overwrite=True)
    dog = replace(plan.concepts[0], class_prompt="dog", class_data_dir=tmp_path / "dogs")
    plan = replace(plan, concepts=(dog, *plan.concepts))
    own = with_picture(tmp_path / "out" / "class_images-2")
    assert check_place(plan, PLAIN, tmp_path / "out") is None
    if left == "drawn":
        (own / "a.png").rename(own / "0000.png")
        (own / "0000.txt").write_text("dog")
        said = "class_images-2 has pictures of 'dog', not 'cat'; choose another folder"
    else:
        for name in ("images.txt", "caption.txt"):
            (own / name).write_text("a.png")
        said = "class_images-2 lists class pictures that real_prior has picked; remove it to have some drawn, or give"
    with pytest.raises(UserError, match=said):
        check_place(plan, PLAIN, tmp_path / "out")
    assert check_place(replace(plan, real_prior=True), PLAIN, tmp_path / "out") is None
    assert check_place(replace(plan, num_class_images=0), PLAIN, tmp_path / "out") is None
