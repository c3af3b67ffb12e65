"""Settings that have no effect beside the others are told, each, and no others are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_custom_diffusion.data.concepts import Concept
from lib_custom_diffusion.training.plan import TrainingPlan
from lib_custom_diffusion.training.unused import unused


@pytest.fixture
def plan(tmp_path: Path) -> TrainingPlan:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    return TrainingPlan(concepts=(Concept("photo of a <new1> cat", tmp_path, "cat"),))


def test_settings_as_they_are_without_being_given_are_not_told_of(plan: TrainingPlan) -> None:
    assert unused(plan, False, str) == []
    assert unused(replace(plan, allow_changes=True, validation_prompt="a cat"), True, str) == []
    assert unused(replace(plan, num_class_images=0), False, str) == []  # as a page says, which has none drawn


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"real_prior": True}, "real_prior has no effect, as with_prior_preservation is off."),
        (
            {"num_class_images": 5, "prior_loss_weight": 0.5, "sample_batch_size": 2},
            "num_class_images and prior_loss_weight and sample_batch_size have no effect, as with_prior_preservation is"
            " off.",
        ),
        (
            {"prior": "none", "text_prior_weight": 0.5, "prior_captions": "x.txt"},
            "text_prior_weight and prior_captions have no effect, as prior is none.",
        ),
        ({"optimizer": "sgd", "adam_beta2": 0.9}, "adam_beta2 has no effect, as sgd has none."),
        ({"optimizer": "lion", "adam_epsilon": 0.1}, "adam_epsilon has no effect, as lion has none."),
        ({"allow_changes": True}, "allow_changes has no effect, as nothing is resumed."),
        (
            {"lr_warmup_steps": 250, "max_train_steps": 250},
            "The rates rise until the last step, as lr_warmup_steps is 250.",
        ),
        ({"caption_source": "txt"}, "2 of 2 pictures have no text beside it, such as a.png; the prompt is used."),
    ],
)
def test_what_has_no_effect_is_told_with_the_reason(plan: TrainingPlan, change: dict[str, Any], told: str) -> None:
    assert unused(replace(plan, **change), False, str) == [told]
    named = unused(replace(plan, **change), False, "--{}".format)
    assert all(f"--{name}" in named[0] for name in change if name in told)


def test_pictures_without_a_text_are_told_of_where_others_have_one(plan: TrainingPlan, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a <new1>")
    (tmp_path / "b.txt").write_text(" ")
    said = "1 of 2 pictures has no text beside it, such as b.png; the prompt is used."
    assert unused(replace(plan, caption_source="txt"), False, str) == [said]


def test_folders_of_pictures_beside_pictures_are_told_of(plan: TrainingPlan, tmp_path: Path) -> None:
    for folder in ("10_cat", "below", ".hidden", "empty"):
        (tmp_path / folder).mkdir()
        if folder != "empty":
            Image.new("RGB", (8, 8)).save(tmp_path / folder / "c.png")
    said = f"The pictures in {tmp_path / '10_cat'} and 1 more are not used, as there are others beside the folder."
    assert unused(plan, False, str) == [said]
