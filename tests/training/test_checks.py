"""What is refused of a plan before there is a model: class pictures, folders, sizes, words that concepts lack."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_custom_diffusion.data.concepts import Concept
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.training.checks import check_settings
from lib_custom_diffusion.training.plan import TrainingPlan


def picture(path: Path, caption: str = "") -> Path:
    """A picture with its caption; returns its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16)).save(path)
    if caption:
        path.with_suffix(".txt").write_text(caption)
    return path.parent


@pytest.fixture
def plan(tmp_path: Path) -> TrainingPlan:
    cat = Concept("photo of a <new1> cat", picture(tmp_path / "pictures" / "a.png"), "cat")
    return TrainingPlan(concepts=(cat,), with_prior_preservation=True, num_class_images=3)


def with_classes(plan: TrainingPlan, *folders: Path, **more: Any) -> TrainingPlan:
    """The plan with a concept, of a class of its own, for each folder of class pictures."""
    [cat] = plan.concepts
    prompts = ("cat", "dog")
    concepts = [
        replace(cat, class_data_dir=folder, class_prompt=prompt)
        for folder, prompt in zip(folders, prompts, strict=False)
    ]
    return replace(plan, concepts=tuple(concepts), **more)


def refused(plan: TrainingPlan) -> str:
    with pytest.raises(UserError) as error:
        check_settings(plan)
    return str(error.value)


def test_class_pictures_are_not_drawn_into_a_folder_of_another_class(plan: TrainingPlan, tmp_path: Path) -> None:
    dogs = picture(tmp_path / "dogs" / "0000.png", "dog")
    assert "dogs has pictures of 'dog', not 'cat'; choose another folder" in refused(with_classes(plan, dogs))
    check_settings(with_classes(plan, picture(tmp_path / "cats" / "0000.png", "cat")))


def test_class_pictures_are_not_drawn_where_nothing_can_be_written(plan: TrainingPlan, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"no folder")
    assert "cannot write to" in refused(with_classes(plan, tmp_path / "file" / "classes"))
    check_settings(with_classes(plan, tmp_path / "classes"))


@pytest.mark.parametrize("more", [{"real_prior": True}, {"num_class_images": 0}], ids=str)
def test_class_pictures_must_be_pictures(plan: TrainingPlan, tmp_path: Path, more: dict[str, Any]) -> None:
    folder = picture(tmp_path / "classes" / "a.png", "a cat")
    check_settings(with_classes(plan, folder, **more))
    (folder / "a.png").write_bytes(b"no picture")
    assert "none of the pictures can be used" in refused(with_classes(plan, folder, **more))


def test_listed_class_pictures_are_looked_at_though_more_could_be_drawn(plan: TrainingPlan, tmp_path: Path) -> None:
    folder = picture(tmp_path / "listing" / "real" / "a.png").parent
    (folder / "images.txt").write_text("real/a.png")
    (folder / "caption.txt").write_text("a cat")
    check_settings(with_classes(plan, folder, folder))  # those of two classes may be listed together: none is drawn
    (folder / "real" / "a.png").unlink()
    assert "none of the pictures can be used" in refused(with_classes(plan, folder))


def test_a_concept_that_asks_for_a_word_must_have_one(plan: TrainingPlan) -> None:
    [cat] = plan.concepts
    two = replace(plan, concepts=(cat, replace(cat, instance_prompt="photo of [name]")), num_class_images=3)
    assert refused(two) == "concept 2 has no word; give modifier_token of concept 2"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"class_prompt": "photo of a <new1> cat"},
            "class_prompt of concept 1 'photo of a <new1> cat' has the new word <new1>; write what it is a kind of,"
            " such as cat",
        ),
        (
            {"instance_prompt": "a <new1> cat <delta:old:0.8>"},
            "instance_prompt of concept 1 has <delta:old:0.8>, which is for prompts to draw from; leave it out",
        ),
        ({"class_prompt": "cat <lora:x:1>"}, "class_prompt of concept 1 has <lora:x:1>, which is for prompts to draw"
         " from; leave it out"),
    ],
)  # fmt: skip
def test_what_is_for_other_prompts_is_refused(plan: TrainingPlan, change: dict[str, str], said: str) -> None:
    [cat] = plan.concepts
    assert refused(replace(plan, concepts=(replace(cat, **change),))) == said


def test_a_size_of_less_than_a_byte_is_refused(plan: TrainingPlan) -> None:
    assert refused(replace(plan, max_size="0.0001kB")) == "max_size must be above 0, not 0.0001kB"


def test_pictures_that_would_weigh_nothing_are_refused_where_transparency_weighs(
    plan: TrainingPlan, tmp_path: Path
) -> None:
    Image.new("RGBA", (16, 16), (255, 0, 0, 0)).save(tmp_path / "pictures" / "a.png")
    check_settings(plan)
    assert "it is completely transparent" in refused(replace(plan, use_alpha=True))


@pytest.mark.parametrize("name", ["validation_steps", "checkpointing_steps"])
def test_0_switches_pictures_and_saves_on_the_way_off_and_that_is_said(plan: TrainingPlan, name: str) -> None:
    check_settings(replace(plan, **{name: 0}))
    assert refused(replace(plan, **{name: -1})) == f"{name} must be 0 or more, not -1"
