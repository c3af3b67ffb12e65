"""What is entered on a page becomes the plan of a training; what cannot be is one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lib_custom_diffusion.algebra.compression import Limit
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.training import optimizers
from lib_custom_diffusion.training.checks import check_settings
from lib_custom_diffusion.training.plan import TrainingPlan
from lib_custom_diffusion.training.recipes import RECIPES
from lib_custom_diffusion.ui.training_form import PAGE, entered_plan

CONCEPT = {"modifier_token": "<new1>", "instance_data_dir": "/own", "class_prompt": "cat", "class_data_dir": "/class"}


def plan(*concepts: dict[str, str], **entered: Any) -> TrainingPlan:
    return entered_plan(concepts or (CONCEPT,), entered, {"mine.txt": Path("/templates/mine.txt")}.get)


def test_the_word_and_its_kind_stand_for_name_in_captions() -> None:
    [concept] = plan(instance_prompt="photo of a [name] at night").named_concepts()
    assert concept.instance_prompt == "photo of a <new1> cat at night"
    assert (concept.instance_data_dir, concept.class_prompt) == (Path("/own"), "cat")
    [concept] = plan(caption_source="txt").named_concepts()
    assert concept.instance_prompt == "<new1> cat"


def test_regularization_pictures_are_taken_as_they_are_and_left_out_without_a_weight_or_a_folder() -> None:
    with_pictures = plan()
    assert (with_pictures.with_prior_preservation, with_pictures.num_class_images) == (True, 0)
    assert with_pictures.named_concepts()[0].class_data_dir == Path("/class")
    assert plan(prior_loss_weight=0).with_prior_preservation is False
    assert plan({**CONCEPT, "class_data_dir": " "}).named_concepts()[0].class_data_dir is None


def test_settings_reach_the_core() -> None:
    asked = plan(
        {**CONCEPT, "initializer_token": "ktn"}, max_train_steps=7, train_batch_size=3, clip_mode="value",
        clip_value=0.5, freeze_model="crossattn", resize_mode="as they are", resolution=256, augment=False,
        checkpointing_steps=5, validation_steps=2, seed=9, vectors_per_token=2, template="mine.txt",
        caption_source="template", resume_from_checkpoint=True,
    )  # fmt: skip
    config, pictures = asked.config(), asked.pictures()
    assert (config.modifier_token, config.initializer_token, config.vectors_per_token) == (("<new1>",), ("ktn",), 2)
    assert (config.max_train_steps, config.train_batch_size) == (7, 3)
    assert (config.max_grad_norm, config.max_grad_value, config.freeze_model) == (None, 0.5, "crossattn")
    assert (config.checkpointing_steps, config.validation_steps, config.seed) == (5, 2, 9)
    assert config.validation_prompt == "<new1> cat"
    assert (pictures.resolution, pictures.resize_mode, pictures.noaug) == (256, "bucket", True)
    assert (pictures.template, asked.resume_from_checkpoint) == (Path("/templates/mine.txt"), "latest")


def test_zeros_of_a_page_are_none() -> None:
    asked = plan(resolution=0, snr_gamma=0.0, rank=0, max_size=0.0, checkpointing_steps=0, validation_steps=0)
    names = ("resolution", "snr_gamma", "rank", "max_size", "checkpointing_steps", "validation_steps")
    assert plan(**dict.fromkeys(names)) == asked  # emptied
    assert (asked.resolution, asked.snr_gamma, asked.rank, asked.limit) == (None, None, None, None)
    config = asked.config()
    assert (config.validation_prompt, config.checkpointing_steps) == (None, config.max_train_steps)


def test_recipes_are_the_published_ones() -> None:
    """Rates are the published ones times the batch of 8 that they were used with (arXiv 2212.04488, appendix)."""
    published = {
        "thing or pet": (1e-5 * 8, 250, "crossattn_kv", "photo of a [name]"),
        "style": (1e-5 * 8, 250, "crossattn_kv", "painting in the style of [name]"),
        "two things together": (1e-5 * 8, 500, "crossattn_kv", "photo of a [name]"),
        "face": (5e-6 * 8, 1000, "crossattn", "photo of a [name]"),
    }
    found = {
        name: (float(each["learning_rate"]), each["max_train_steps"], each["freeze_model"], each["instance_prompt"])
        for name, each in RECIPES.items()
    }
    assert found == published
    assert all(each["learning_rate"] == each["embedding_learning_rate"] for each in RECIPES.values())


def test_an_optimizer_is_chosen_and_one_that_is_not_there_is_refused_in_the_words_of_the_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert plan().optimizer == "adamw"
    monkeypatch.setattr(optimizers, "find_spec", lambda module: None)
    with pytest.raises(UserError, match=r"^Optimizer lion needs lion-pytorch; pip install lion-pytorch"):
        check_settings(plan(optimizer="lion"), PAGE)


def test_the_limit_of_the_file() -> None:
    assert plan(max_size=5).limit == Limit(max_bytes=5_000_000)
    assert plan(max_size=0.25).limit == Limit(max_bytes=250_000)
    assert plan(rank=8).limit is None and plan(rank=8).config().rank == 8


def test_the_prompt_to_try_names_all_concepts() -> None:
    two = plan(CONCEPT, {"modifier_token": "<b>", "instance_data_dir": "/b", "class_prompt": "a dog"})
    assert two.prompt_to_try == "photo of a <new1> cat and photo of a <b> dog"
    assert two.result_name == "new1-b"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"clip_mode": "hard"}, "Gradient Clipping is one of norm, value, disabled, not 'hard'"),
        ({"resize_mode": "round"}, "Resize images is one of .*as they are, not 'round'"),
        ({"max_size": -2}, "Maximum file size in MB, 0 to disable must be 0 or more, not -2"),
        ({"max_train_steps": 2.5}, "Max steps must be a whole number, not 2.5"),
        ({"instance_prompt": " "}, "Caption is empty; say what the pictures show"),
        ({"max_train_steps": None}, "Max steps is empty; give a number"),
        ({"clip_value": None}, "Gradient clip value is empty; give a number"),
    ],
)
def test_what_is_no_plan_is_one_sentence(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        plan(**change)


@pytest.mark.parametrize(
    ("concepts", "said"),
    [
        ([], "1 to 4 concepts, not 0"),
        ([CONCEPT] * 5, "1 to 4 concepts, not 5"),
        (
            [CONCEPT, {"modifier_token": " ", "instance_data_dir": "/own"}],
            "Word of concept 2 is empty; give the word to be learned",
        ),
        (
            [{"modifier_token": "a", "instance_data_dir": " "}],
            "Dataset directory is empty; give the folder with your pictures",
        ),
    ],
)
def test_a_concept_needs_a_word_and_a_folder(concepts: list[dict[str, str]], said: str) -> None:
    with pytest.raises(UserError, match=said):
        entered_plan(concepts, {}, lambda name: None)
