"""SDXL in the real WebUI, on a tiny random model of sgm's own classes, and SD 1 before and after it in one session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import PROMPT, WebUI
from lib_custom_diffusion.tokens import embedding_sdxl

SETTINGS = {"resolution": 128, "rank": 4, "prior": "none", "learning_rate": "1e-2", "embedding_learning_rate": "1e-2"}


@pytest.fixture
def sdxl(webui: WebUI, untouched: str) -> Iterator[str]:
    """The picture that the model makes before anything was done with it; the toy is chosen again afterwards."""
    from tiny_models import write_checkpoint

    write_checkpoint(webui.data / "models" / "Stable-diffusion", "tiny-xl")
    webui.post("/sdapi/v1/refresh-checkpoints")
    # The host's own way of showing a picture on the way would download a model for SDXL.
    webui.post("/sdapi/v1/options", show_progress_type="Approx cheap", sd_model_checkpoint="tiny-xl.safetensors")
    yield webui.picture(PROMPT)[0]
    webui.post("/sdapi/v1/options", sd_model_checkpoint="toy.safetensors")
    assert webui.picture(PROMPT)[0] == untouched


def new_word(webui: WebUI) -> dict[str, torch.Tensor]:
    """Write the word `thing`, the same each time, and have the host read it; its vectors."""
    file = webui.data / "embeddings" / "thing.safetensors"
    generator = torch.Generator().manual_seed(1)
    parts = [0.02 * torch.randn(1, width, generator=generator) for width in (64, 256)]
    file.write_bytes(embedding_sdxl(parts, 0))
    os.utime(file.parent)
    webui.post("/sdapi/v1/refresh-embeddings")
    return load_file(file)


def test_sdxl_learns_a_word_in_both_encoders_and_its_pictures_stay_the_same(
    webui: WebUI, pictures: Path, sdxl: str
) -> None:
    start = new_word(webui)
    told = webui.train("xl", pictures, max_train_steps=4, **SETTINGS)
    assert told["steps"] == 4 and told["embeddings"] == [str(webui.data / "embeddings" / "thing.safetensors")]
    learned, delta = load_file(told["embeddings"][0]), load_file(webui.delta("xl"))
    # Adam moves by about the rate in each step.
    assert all(0.01 < (learned[name] - start[name]).abs().max() < 0.05 for name in ("clip_l", "clip_g"))
    factors = [tensor for name, tensor in delta.items() if name.endswith(".US")]
    assert len(factors) == 16 and all(tensor.shape == (128, 4) and tensor.any() for tensor in factors)
    assert webui.picture(PROMPT)[0] == sdxl
    assert webui.picture("a thing house <delta:xl:1>")[0] != webui.picture("a thing house")[0]
    checkpointed = webui.train("xl", pictures, max_train_steps=2, gradient_checkpointing=True, **SETTINGS)
    assert checkpointed["steps"] == 2 and webui.picture(PROMPT)[0] == sdxl
