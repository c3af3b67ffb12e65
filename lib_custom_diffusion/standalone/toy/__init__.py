"""The toy models: Stable Diffusion 1 and SDXL made small, trained on captioned drawings (world.py) by make.py.

Both draw the same world, with one VAE and one vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Toy:
    """Where a toy's files lie.

    checkpoint:  its weights, once, in the single-file layout.
    description: its .yaml, beside them for the WebUI.
    config:      what diffusers wants to know beside the weights.
    """

    checkpoint: Path
    description: Path
    config: Path

    @classmethod
    def in_folder(cls, folder: Path, name: str, config: str) -> Toy:
        """The files of that name in a folder."""
        return cls(folder / f"{name}.safetensors", folder / f"{name}.yaml", folder / config)


TOY = Toy.in_folder(FOLDER, "toy", "config")
TOY_XL = Toy.in_folder(FOLDER, "toy-xl", "config-xl")
TOYS = {"toy": TOY, "toy-xl": TOY_XL}
"""By the names that `--model` takes."""


def load(name: str = "toy", dtype: torch.dtype = torch.float32) -> DiffusionPipeline:
    """A toy as a diffusers pipeline, in evaluation mode, its weights in `dtype`, on the CPU."""
    from ..single_file import load_checkpoint  # which tells the toys' vocabulary by their files

    return load_checkpoint(TOYS[name].checkpoint).to(dtype)
