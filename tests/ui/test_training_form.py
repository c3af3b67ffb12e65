"""What is entered becomes what the core is asked for; what cannot be is one sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lib_custom_diffusion.algebra.compression import Limit
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.ui.training_form import PICTURE_SHAPES, PRESETS, ConceptForm, TrainingForm

FORM = TrainingForm([ConceptForm("<new1>", "/own", "cat", "/regularization")])


def test_the_word_and_its_kind_stand_for_name_in_captions() -> None:
    [concept] = replace(FORM, prompt="photo of a [name] at night").core_concepts()
    assert concept.instance_prompt == "photo of a <new1> cat at night"
    assert (concept.instance_data_dir, concept.class_prompt) == (Path("/own"), "cat")
    [concept] = replace(FORM, captions="txt").core_concepts()
    assert concept.instance_prompt == "<new1> cat"


def test_regularization_pictures_are_left_out_without_a_weight_or_a_folder() -> None:
    assert FORM.core_concepts()[0].class_data_dir == Path("/regularization")
    assert replace(FORM, prior_loss_weight=0).core_concepts()[0].class_data_dir is None
    assert TrainingForm([ConceptForm("a", "/own", "cat", " ")]).core_concepts()[0].class_data_dir is None


def test_settings_reach_the_core() -> None:
    form = replace(
        FORM, steps=7, batch_size=3, gradient_accumulation=2, clip_mode="value", clip_value=0.5, select="crossattn",
        shape="as they are", resolution=256, flip=True, augment=False, save_every=5, preview_every=2, seed=9,
    )  # fmt: skip
    config = form.core_config(["ktn"], 2, "bf16")
    assert (config.modifier_tokens, config.initializer_tokens, config.vectors_per_token) == (("<new1>",), ("ktn",), 2)
    assert (config.max_train_steps, config.train_batch_size, config.gradient_accumulation_steps) == (7, 3, 2)
    assert (config.max_grad_norm, config.max_grad_value, config.freeze_model) == (None, 0.5, "crossattn")
    assert (config.checkpointing_steps, config.validation_steps, config.seed) == (5, 2, 9)
    assert config.validation_prompt == "photo of a <new1> cat"
    pictures = form.picture_settings(None)
    assert (pictures.resolution, pictures.resize_mode, pictures.hflip, pictures.augment) == (256, "bucket", True, False)
    assert FORM.core_config(["ktn"], 1).validation_prompt is None
    assert FORM.picture_settings(None).resolution is None


def test_every_shape_is_one_of_the_cores() -> None:
    for shape in PICTURE_SHAPES:
        replace(FORM, shape=shape).picture_settings(None).check()


def test_presets_are_the_published_recipes() -> None:
    """Rates are the published ones times the batch of 8 that they were used with (arXiv 2212.04488, appendix)."""
    published = {
        "thing or pet": (1e-5 * 8, 250, "crossattn_kv", "photo of a [name]"),
        "style": (1e-5 * 8, 250, "crossattn_kv", "painting in the style of [name]"),
        "two things together": (1e-5 * 8, 500, "crossattn_kv", "photo of a [name]"),
        "face": (5e-6 * 8, 1000, "crossattn", "photo of a [name]"),
    }
    found = {
        name: (float(preset["learning_rate"]), preset["steps"], preset["select"], preset["prompt"])
        for name, preset in PRESETS.items()
    }
    assert found == published
    assert all(preset["learning_rate"] == preset["embedding_learning_rate"] for preset in PRESETS.values())


def test_the_limit_of_the_file() -> None:
    assert FORM.limit() is None
    assert replace(FORM, max_megabytes=5).limit() == Limit(max_bytes=5_000_000)
    assert replace(FORM, rank=8).limit() == Limit(rank=8)


def test_the_prompt_to_try_names_all_concepts() -> None:
    two = TrainingForm([ConceptForm("<a>", "/a", "cat"), ConceptForm("<b>", "/b", "dog")])
    assert two.prompt_to_try == "photo of a <a> cat and photo of a <b> dog <delta:a-b:1>"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"concepts": []}, "1 to 4 concepts, not 0"),
        ({"concepts": [ConceptForm(" ", "/own")]}, "concept 1 has no word"),
        ({"concepts": [ConceptForm("a", "/own"), ConceptForm("a", "/own")]}, "the same word"),
        ({"clip_mode": "hard"}, "norm, value, disabled, not 'hard'"),
        ({"shape": "round"}, "as they are, not 'round'"),
        ({"max_megabytes": 5, "rank": 8}, "one of max_bytes, rank and energy"),
        ({"rank": -1}, "rank must be 1 or more"),
        ({"max_megabytes": -2}, "more than -2 MB"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(change: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        replace(FORM, **change).check()
