"""Sizes that pictures may have, so that they can be learned from in the shape that they are.

Aspect ratio bucketing as NovelAI described it (2022): all sizes have about the same area, their sides are multiples of
what the UNet halves without a remainder, and none is longer than twice the model's own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from torch import nn

from ..backend import LATENT_CELL

Size = tuple[int, int]
"""Width and height in pixels."""

_DOWNSAMPLER = re.compile(r"(^|\.)(down_blocks\.\d+\.downsamplers\.\d+|input_blocks\.\d+\.\d+\.op)$")
"""What halves the latents, by diffusers' and by LDM's names."""


def size_multiple(unet: nn.Module) -> int:
    """Pixels that a side must be a multiple of: 8 for a cell of the latents, times 2 each time the UNet halves them.

    64 for Stable Diffusion 1 and 2.
    """
    return LATENT_CELL * 2 ** sum(bool(_DOWNSAMPLER.search(name)) for name, _ in unet.named_modules())


def bucket_sizes(resolution: int, multiple: int) -> list[Size]:
    """Sizes of about resolution² pixels, from the most upright to the widest; with each also the one turned over."""
    found = set()
    for side in range(multiple, 2 * resolution + 1, multiple):
        other = max(1, math.floor(resolution**2 / side / multiple + 0.5)) * multiple
        if other <= 2 * resolution:
            found |= {(side, other), (other, side)}
    return sorted(found or {(multiple, multiple)}, key=lambda size: (aspect_ratio(size), size))


def aspect_ratio(size: Size) -> float:
    """Width by height."""
    return size[0] / size[1]


def nearest_bucket(size: Size, buckets: Sequence[Size]) -> Size:
    """The bucket whose shape loses least of a picture when this is cropped to it."""
    return min(buckets, key=lambda bucket: abs(math.log(aspect_ratio(bucket) / aspect_ratio(size))))


def dealt_out(sizes: Sequence[Size], buckets: Sequence[Size]) -> list[Size]:
    """A bucket for each picture, in the shares that the buckets have; upright pictures get upright ones.

    So regularization pictures come in the very sizes of the concept's own, and are cropped as little as that allows.
    """
    wanted = sorted(buckets, key=aspect_ratio)
    order = sorted(range(len(sizes)), key=lambda index: aspect_ratio(sizes[index]))
    dealt = {index: wanted[rank * len(wanted) // len(sizes)] for rank, index in enumerate(order)}
    return [dealt[index] for index in range(len(sizes))]
