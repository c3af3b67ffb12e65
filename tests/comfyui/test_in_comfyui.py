"""The toy in ComfyUI with a delta and its word, against the same on diffusers. Needs COMFYUI_DIR: see conftest."""

from __future__ import annotations

import os

import pytest
import torch

from lib_custom_diffusion.algebra.factors import Factors
from lib_custom_diffusion.attention import projections
from lib_custom_diffusion.comfyui.acting import with_delta
from lib_custom_diffusion.comfyui.words import with_words
from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.injection import Injection

pytestmark = pytest.mark.skipif("COMFYUI_DIR" not in os.environ, reason="COMFYUI_DIR names no ComfyUI")

PROMPT = "photo of a <new1> red cup, on the beach"


@pytest.fixture(scope="module")
def backend():
    from lib_custom_diffusion.standalone import toy
    from lib_custom_diffusion.standalone.diffusers_backend import DiffusersBackend

    return DiffusersBackend(toy.load(), "toy")


@pytest.fixture
def delta(backend) -> Delta:
    torch.manual_seed(0)
    entries = {}
    for number, (key, layer) in enumerate(projections(backend.unet).items()):
        out, width = layer.shape
        low_rank = Factors(torch.randn(out, 3) / 5, torch.randn(3, width) / 5)
        entries[key] = low_rank if number % 2 else torch.randn(out, width) / 20
    return Delta(entries, {"<new1>": torch.randn(2, 128)})


def encoded(clip, prompt: str) -> torch.Tensor:
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))[0][0]


@pytest.mark.parametrize("prompt", [PROMPT, PROMPT.replace("<new1>", "embedding:new1")])
def test_a_prompt_with_a_new_word_is_encoded_as_by_diffusers(clip, backend, delta: Delta, prompt: str) -> None:
    expected = backend.encode_captions([PROMPT], delta.embeddings).crossattn
    torch.testing.assert_close(encoded(with_words(clip, delta.embeddings), prompt), expected, atol=1e-5, rtol=1e-5)
    assert (encoded(clip, PROMPT) - expected).abs().max() > 0.1


def test_a_step_of_the_unet_is_that_of_diffusers(model, clip, step, backend, delta: Delta) -> None:
    latents = torch.randn(1, 4, 16, 16)
    conditioning = backend.encode_captions([PROMPT], delta.embeddings)
    with torch.no_grad(), Injection(backend.unet, [(delta, 0.8)]):
        expected = backend.predict(latents, torch.tensor([50]), conditioning)
    made = step(with_delta(model, delta, 0.8), latents, encoded(with_words(clip, delta.embeddings), PROMPT))
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)
    assert (step(model, latents, conditioning.crossattn) - expected).abs().max() > 0.1
