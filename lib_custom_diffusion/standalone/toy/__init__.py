"""The toy model: Stable Diffusion 1 made small, pre-trained on captioned drawings (world.py) by make.py.

`CHECKPOINT` holds its weights once, in the single-file layout, with its .yaml beside it for the WebUI; `CONFIG` holds
what diffusers wants to know beside the weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import nn

from . import layout

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

FOLDER = Path(__file__).parent
CHECKPOINT = FOLDER / "toy.safetensors"
CHECKPOINT_CONFIG = FOLDER / "toy.yaml"
CONFIG = FOLDER / "config"


def load(dtype: torch.dtype = torch.float32) -> StableDiffusionPipeline:
    """The toy as a diffusers pipeline, in evaluation mode, its weights in `dtype`, on the CPU."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    tensors = {name: tensor.to(dtype) for name, tensor in load_file(CHECKPOINT).items()}
    unet_config, vae_config = (json.loads((CONFIG / part / "config.json").read_text()) for part in ("unet", "vae"))
    # On the meta device no weights are drawn only to be replaced, which would take longer than reading them.
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(unet_config)
        vae = AutoencoderKL.from_config(vae_config)
    text_encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(CONFIG / "text_encoder"))
    _fill(unet, tensors, lambda key: layout.unet_name(key, unet_config))
    _fill(vae, tensors, lambda key: layout.vae_name(key, vae_config))
    _fill(text_encoder, tensors, lambda key: layout.TEXT_PREFIX + key)
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=CLIPTokenizer.from_pretrained(CONFIG / "tokenizer"),
        unet=unet,
        scheduler=DDIMScheduler.from_pretrained(CONFIG / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _fill(model: nn.Module, tensors: layout.Tensors, name_of: Any) -> None:
    state = model.state_dict()
    model.load_state_dict({key: tensors[name_of(key)].reshape(state[key].shape) for key in state}, assign=True)
    model.eval().requires_grad_(False)
