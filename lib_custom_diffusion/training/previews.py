"""Pictures of what has been learned so far."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from PIL import Image
from torch import Tensor

from ..backend import Backend, usual_sampling
from .config import TrainingConfig


@torch.no_grad()
def draw_previews(backend: Backend, config: TrainingConfig, vectors: Mapping[str, Tensor]) -> list[Image.Image]:
    """The validation pictures, always of the same seeds, with what acts on the UNet and the words as they are by now.

    The autoencoder, which is aside while steps are taken, is there meanwhile.
    """
    count = config.num_validation_images
    prompts = [config.validation_prompt or ""] * count
    seeds = [config.seed + index for index in range(count)]
    backend.autoencoder_aside(False)
    try:
        return backend.generate(prompts, seeds, usual_sampling(backend.architecture), vectors)
    finally:
        backend.autoencoder_aside(True)
