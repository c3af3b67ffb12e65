"""The same thing has the same default on the pages and on the command line, or a reason to differ."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

gr = pytest.importorskip("gradio")
from lib_custom_diffusion.standalone.app.page import build  # noqa: E402 - it needs gradio
from lib_custom_diffusion.standalone.app.train_tab import _INITIALIZERS  # noqa: E402
from lib_custom_diffusion.standalone.cli import parser  # noqa: E402
from page import Part, parts  # noqa: E402

FLAGS = {
    "cd_gen_steps": ("generate", "num_inference_steps"),
    "cd_gen_count": ("generate", "num_images"),
    "cd_gen_width": ("generate", "resolution"),
    "cd_reg_count": ("regularize", "num_class_images"),
    "cd_reg_steps": ("regularize", "num_inference_steps"),
    "cd_reg_cfg": ("regularize", "guidance_scale"),
    "cd_reg_size": ("regularize", "resolution"),
    "cd_reg_batch": ("regularize", "sample_batch_size"),
    "cd_reg_seed": ("regularize", "seed"),
    "cd_pick_count": ("regularize", "num_class_images"),
    "cd_batch_size": ("train", "train_batch_size"),
    "cd_accumulation": ("train", "gradient_accumulation_steps"),
    "cd_select": ("train", "freeze_model"),
    "cd_optimizer": ("train", "optimizer"),
    "cd_seed": ("train", "seed"),
    "cd_captions": ("train", "caption_source"),
    "cd_resolution": ("train", "resolution"),
    "cd_rank": ("train", "rank"),
    "cd_prior": ("train", "prior"),
    "cd_text_prior_weight": ("train", "text_prior_weight"),
    "cd_prior_loss_weight": ("train", "prior_loss_weight"),
    "cd_preview_every": ("train", "validation_steps"),
    "cd_clip_value": ("train", "max_grad_norm"),
    "cd_vectors": ("train", "vectors_per_token"),
    "cd_flip": ("train", "hflip"),
    "cd_use_alpha": ("train", "use_alpha"),
    "cd_merge_prompts": ("merge", "target_prompts"),
    "cd_blend_weights": ("blend", "weights"),
    "cd_compress_float16": ("compress", "float16"),
    "cd_convert_rank": ("convert", "rank"),
}
"""What fields have in common with flags. On a page, 0 and an empty text are what a flag that is not given is."""
DIFFERENT = {
    "cd_gen_seed": "random, as in the WebUI",
    "cd_gen_cfg": "the number that suits the model, which a flag that is not given is as well",
    "cd_save_every": "a page keeps all in one folder of logs, and says that copies take room",
}


class SomeModel:
    """What the app has before a model is loaded."""

    name, lock, loaded, small = "v1-5.safetensors", threading.Lock(), None, False

    def names(self) -> list[str]:
        return [self.name]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Part]:
    folder = tmp_path_factory.mktemp("deltas")
    with pytest.MonkeyPatch.context() as there:
        there.chdir(folder)
        return parts(build(SomeModel(), Path()))


@pytest.fixture(scope="module")
def commands() -> Mapping[str, argparse.ArgumentParser]:
    [found] = (each for each in parser()._actions if isinstance(each, argparse._SubParsersAction))
    return found.choices


@pytest.mark.parametrize("field", FLAGS)
def test_a_field_has_the_default_of_its_flag(
    field: str, made: Mapping[str, Part], commands: Mapping[str, argparse.ArgumentParser]
) -> None:
    command, flag = FLAGS[field]
    assert (made[field].value or None) == (commands[command].get_default(flag) or None)


def test_every_number_that_a_page_asks_for_is_one_of_these_or_a_presets(made: Mapping[str, Part]) -> None:
    numbers = {each for each, part in made.items() if isinstance(part.component, (gr.Number, gr.Slider))}
    presets = {"cd_steps", "cd_learning_rate", "cd_embedding_learning_rate", "cd_snr_gamma"}
    of_pages = {"cd_count", "cd_reg_times"} | {each for each in numbers if each.startswith("cd_compress_")}
    sizes = {"cd_gen_height", "cd_max_megabytes", "cd_blend_size"}  # where 0 is no size
    assert numbers - {*FLAGS, *DIFFERENT} - presets - of_pages - sizes == set()


def test_words_start_from_what_the_command_starts_them_from(commands: Mapping[str, argparse.ArgumentParser]) -> None:
    assert list(_INITIALIZERS[:3]) == commands["train"].get_default("initializer_token").split("+")
