"""The toy model: Stable Diffusion 1 made small, pre-trained on captioned drawings (world.py) by make.py.

`CHECKPOINT` holds its weights once, in the single-file layout, with its .yaml beside it for the WebUI; `CONFIG` holds
what diffusers wants to know beside the weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

FOLDER = Path(__file__).parent
CHECKPOINT = FOLDER / "toy.safetensors"
CHECKPOINT_CONFIG = FOLDER / "toy.yaml"
CONFIG = FOLDER / "config"


def load(dtype: torch.dtype = torch.float32) -> StableDiffusionPipeline:
    """The toy as a diffusers pipeline, in evaluation mode, its weights in `dtype`, on the CPU."""
    from ..single_file import load_checkpoint  # which tells the toy's vocabulary by CONFIG

    return load_checkpoint(CHECKPOINT).to(dtype)
