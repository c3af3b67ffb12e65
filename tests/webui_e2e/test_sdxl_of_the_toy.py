"""The toy in SDXL's layout in the real WebUI: what it draws, and a word that it learns."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from conftest import PROMPT, TOY, Page, WebUI, difference
from lib_custom_diffusion.algebra.converting import convert_files
from lib_custom_diffusion.standalone.models import load_model

pytestmark = pytest.mark.skipif(not (TOY / "toy-xl.safetensors").is_file(), reason="the model isn't there")


@pytest.fixture
def toy_xl(webui: WebUI, untouched: str) -> Iterator[str]:
    """The picture that it makes before anything was done with it; the other toy is chosen again afterwards."""
    webui.load_toy_xl()
    yield webui.picture(PROMPT)[0]
    webui.post("/sdapi/v1/options", sd_model_checkpoint="toy.safetensors")
    assert webui.picture(PROMPT)[0] == untouched


def test_it_draws_what_the_words_say_as_sdxl(webui: WebUI, toy_xl: str) -> None:
    for colour, channel in (("red", 0), ("green", 1), ("blue", 2)):
        [picture], infotext = webui.images(f"a panda on a {colour} background", steps=12)
        corner = np.asarray(picture.convert("RGB"))[:12, :12].mean(axis=(0, 1))
        assert corner.argmax() == channel
        assert "Model: toy-xl" in infotext


def test_both_encoders_read_one_vocabulary_and_learn_a_word(webui: WebUI, toy_xl: str, pictures: Path) -> None:
    file = webui.make_word_of_toy_xl("thing", like="house")
    # A word that has a known one's vectors in both encoders is that word.
    assert webui.picture("a thing on a red background")[0] == webui.picture("a house on a red background")[0]
    assert webui.picture("a thing, on a red background")[0] == webui.picture("a house, on a red background")[0]
    start = load_file(file)
    # Of its own size: pictures of 1024 pixels a side, as SDXL's, would take minutes a step.
    told = webui.train("xl", pictures, max_train_steps=4, prior="none", embedding_learning_rate="1e-2")
    assert told["steps"] == 4 and math.isfinite(told.get("loss", 0.0))
    learned = load_file(file)
    assert all(not torch.equal(learned[name], start[name]) for name in ("clip_l", "clip_g"))
    assert webui.picture(PROMPT)[0] == toy_xl
    prompt = "a thing on a red background"
    bare, delta = webui.images(prompt)[0][0], webui.images(f"{prompt} <delta:xl:1>")[0][0]
    assert difference(bare, delta)[1] > 0.5
    # Converted to a LoRA it makes the same picture, up to rounding: the WebUI writes a LoRA into the weights.
    converted = convert_files([webui.delta("xl")], "lora", lambda: load_model("toy-xl"), rank=128)
    (webui.data / "models" / "Lora" / "xl.safetensors").write_bytes(converted.files["lora.safetensors"])
    file.unlink()  # the word is in the LoRA, too
    os.utime(file.parent)
    webui.post("/sdapi/v1/refresh-embeddings")
    webui.post("/sdapi/v1/refresh-loras")
    largest, mean = difference(webui.images(f"{prompt} <lora:xl:1>")[0][0], delta)
    print(f"\nLoRA against delta: at most {largest} of 255, on average {mean:.4f}")
    assert largest <= 8 and mean <= 0.2


def test_its_button_installs_it_and_brings_the_toys_preset(webui: WebUI, page: Page, untouched: str) -> None:
    webui.post("/sdapi/v1/options", show_progress_type="Approx cheap")  # see `toy_xl`
    page.tab("Custom Diffusion Utils")
    page.tab("Toy model", "#cd_utils_tabs")
    page.press("cd_toy_xl")
    chosen = "document.querySelector('#setting_sd_model_checkpoint input').value"
    page.page.wait_for_function(f"() => {chosen}.startsWith('custom-diffusion-toy-xl')", timeout=300_000)
    page.open_training()
    page.page.wait_for_function("() => document.querySelector('#cd_preset input').value === 'toy model: thing'")
    _, infotext = webui.picture(PROMPT)
    assert "Model: custom-diffusion-toy-xl" in infotext
    webui.post("/sdapi/v1/options", sd_model_checkpoint="toy.safetensors")
    assert webui.picture(PROMPT)[0] == untouched
