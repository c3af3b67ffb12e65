"""What a person asks for, and what of it the loop is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_custom_diffusion.data.concepts import Concept
from lib_custom_diffusion.training import parallel
from lib_custom_diffusion.training.plan import TrainingPlan

CAT = Concept("photo of a <new1> cat", Path("pictures"), "cat")
DOG = Concept("photo of a <new2> dog", Path("others"), "dog")


def pictures(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (16, 16)).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize(
    ("asked", "scale"),
    [
        ({"scale_lr": False}, 0.5),
        ({}, 0.5 * 3),
        ({"gradient_accumulation_steps": 4}, 0.5 * 3 * 4),
        ({"with_prior_preservation": True}, 0.5 * 3 * 2),
        ({"gradient_accumulation_steps": 4, "with_prior_preservation": True}, 0.5 * 3 * 4 * 2),
    ],
    ids=str,
)
def test_rates_are_scaled_by_all_pictures_of_a_step(asked: dict[str, Any], scale: float) -> None:
    """As in diffusers' script, which has 2 for prior preservation as well."""
    plan = TrainingPlan.of({"scale_lr": True, "train_batch_size": 3, "learning_rate_scale": 0.5, **asked})
    assert plan.config().learning_rate_scale == scale


def test_rates_are_scaled_by_the_processes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "world_size", lambda: 8)
    assert TrainingPlan(scale_lr=True, train_batch_size=2).config().learning_rate_scale == 16


@pytest.mark.parametrize(
    ("given", "rates"),
    [
        ({}, ("1", "2")),
        ({"learning_rate": "3"}, ("3", "3")),
        ({"learning_rate": None}, ("1", "2")),
        ({"embedding_learning_rate": "4"}, ("1", "4")),
        ({"learning_rate": "3", "embedding_learning_rate": "4"}, ("3", "4")),
        ({"learning_rate": "3", "embedding_learning_rate": None}, ("3", "3")),
    ],
    ids=str,
)
def test_words_learn_at_the_rate_of_the_layers_where_that_alone_is_given(
    given: dict[str, Any], rates: tuple[str, str]
) -> None:
    plan = TrainingPlan.of(given, {"learning_rate": "1", "embedding_learning_rate": "2"})
    assert (plan.learning_rate, plan.embedding_learning_rate) == rates


def test_0_steps_between_pictures_or_saves_are_none_of_them_on_the_way() -> None:
    plan = TrainingPlan(validation_prompt="a <new1>", max_train_steps=7, validation_steps=0, checkpointing_steps=0)
    none = plan.config()
    assert (none.validation_prompt, none.checkpointing_steps) == (None, 7)
    none.check()
    some = replace(plan, validation_steps=3, checkpointing_steps=2).config()
    assert (some.validation_prompt, some.validation_steps, some.checkpointing_steps) == ("a <new1>", 3, 2)


def test_a_batch_is_no_larger_than_the_pictures_of_all_concepts_repeats_aside(tmp_path: Path) -> None:
    pictures(tmp_path / "cats" / "3_cat", 2)
    pictures(tmp_path / "cats" / "1_cat", 1)
    concepts = (
        replace(CAT, instance_data_dir=tmp_path / "cats"),
        replace(DOG, instance_data_dir=pictures(tmp_path / "dogs", 4)),
    )
    for asked, used in ((100, 7), (7, 7), (6, 6)):
        assert TrainingPlan(concepts=concepts, train_batch_size=asked).clipped().train_batch_size == used


def test_words_are_those_of_the_prompts_in_their_order_if_none_is_given() -> None:
    twice = replace(CAT, instance_prompt="a <new2> and a <new1> and a <new2>")
    assert TrainingPlan(concepts=(DOG, twice)).tokens == ("<new2>", "<new1>")
    assert TrainingPlan(concepts=(DOG,), modifier_token=("<x>",)).tokens == ("<x>",)
    assert TrainingPlan(concepts=(replace(CAT, instance_prompt="[name]"),)).tokens == ("<new1>",)


def test_the_loop_is_told_of_as_many_initializers_as_there_are_words() -> None:
    plan = TrainingPlan(concepts=(CAT, DOG))
    assert (plan.config().modifier_token, plan.config().initializer_token) == (("<new1>", "<new2>"), ("ktn", "pll"))


@pytest.mark.parametrize(
    ("prompt", "source", "found"),
    [
        ("photo of [name]", "prompt", "photo of <new1> cat"),
        ("photo of [name]", "filename", "<new1> cat"),
        ("photo of a <new1>", "txt", "photo of a <new1>"),
        ("  ", "txt", "<new1> cat"),
        ("  ", "prompt", "  "),
    ],
)
def test_name_in_a_prompt_is_the_word_and_its_class_and_in_captions_stands_for_them(
    prompt: str, source: str, found: str
) -> None:
    plan = TrainingPlan(concepts=(replace(CAT, instance_prompt=prompt),), caption_source=source)
    assert [concept.instance_prompt for concept in plan.named_concepts()] == [found]


def test_all_concepts_are_tried_together() -> None:
    plan = TrainingPlan(concepts=(replace(CAT, instance_prompt="a [name]"), DOG), modifier_token=("<a>", "<new2>"))
    assert plan.prompt_to_try == "a <a> cat and photo of a <new2> dog"


def test_a_delta_is_called_as_asked_or_by_its_words() -> None:
    plan = TrainingPlan(concepts=(CAT, DOG))
    assert (plan.result_name, replace(plan, name="pets").result_name) == ("new1-new2", "pets")


def test_class_pictures_that_are_not_trained_on_are_none_of_the_concept() -> None:
    plan = TrainingPlan(concepts=(replace(CAT, class_data_dir=Path("class")),))
    folders = [each.named_concepts()[0].class_data_dir for each in (plan, replace(plan, with_prior_preservation=True))]
    assert folders == [None, Path("class")]
