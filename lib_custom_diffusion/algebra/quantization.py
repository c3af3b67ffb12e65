"""Quantization: rows of numbers, each in as many bits as it is worth.

A number in b bits is one of 2^b evenly spaced levels about zero: Σ ±2^-(k+2) over k = 0 … b − 1, so that one bit more
halves the spacing and the largest level stays below one half. A row of numbers times its step stands for the row that
was rounded. Stored are bit planes: of each row the signs of its ±¼, then those of its ±⅛, and so on, eight numbers a
byte with the first in the highest bit. A row of 0 bits is zero and takes no plane.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

MAX_BITS = 16
NUMBERS_A_BYTE = 8  # in a plane; the length of a row is a multiple of it

NOISE = np.array(
    [1, 0.3634, 0.1188, 0.03744, 0.01154, 0.003495, 1.04e-3, 3.043e-4, 8.77e-5, 2.492e-5, 6.998e-6, 1.945e-6, 5.357e-7,
     1.464e-7, 3.974e-8, 1.073e-8, 2.881e-9]
)  # fmt: skip
"""Squared error of a normally distributed number of variance 1 in 0 to 16 bits, with the best step: J. Max, "Quantizing
for minimum distortion" (1960), table II, which ends at 5 bits, and the same integral beyond."""

_CLIPPINGS = [2 ** (-k / 3) for k in range(6)]
"""Steps to try, relative to the one that reaches the largest number: the fewer bits, the more it pays to clip that."""


def quantize(rows: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    """Levels (r, n) and steps (r, 1), float32, whose product is nearest to the rows (r, n), of so many bits (r,)."""
    reach = 2 * rows.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    levels = torch.zeros_like(rows)
    least = torch.full_like(reach, torch.inf)
    for clipping in _CLIPPINGS:
        tried = _nearest(rows / (clipping * reach), bits)
        error = (rows - tried * (clipping * reach)).square().sum(dim=1, keepdim=True)
        levels = torch.where(error < least, tried, levels)
        least = torch.minimum(error, least)
    squares = levels.square().sum(dim=1, keepdim=True)
    return levels, (rows * levels).sum(dim=1, keepdim=True) / torch.where(squares > 0, squares, 1.0)


def _nearest(rows: Tensor, bits: Tensor) -> Tensor:
    count = torch.exp2(bits.to(rows.dtype))[:, None]
    return ((rows * count).floor().clamp(-count / 2, count / 2 - 1) + 0.5) / count


def pack(levels: Tensor, bits: Tensor) -> Tensor:
    """Bit planes (Σ bits, n / 8), uint8, of levels (r, n) with so many bits (r,)."""
    count = torch.exp2(bits.float())[:, None]
    whole = ((levels + 0.5) * count - 0.5).round().int()
    row, shift = _planes(bits)
    return torch.from_numpy(np.packbits(((whole[row] >> shift[:, None]) & 1).to(torch.uint8).numpy(), axis=1))


def unpack(planes: Tensor, bits: Tensor) -> Tensor:
    """The levels (r, n), float32, of bit planes."""
    signs = torch.from_numpy(np.unpackbits(planes.numpy(), axis=1)).float() - 0.5
    row, shift = _planes(bits)
    weights = torch.exp2((shift - bits.int()[row]).float())[:, None]
    return torch.zeros(len(bits), signs.shape[1]).index_add_(0, row, signs * weights)


def _planes(bits: Tensor) -> tuple[Tensor, Tensor]:
    """Of each plane the row it belongs to, and the power of two that it counts for in whole numbers of that row."""
    bits = bits.int()
    row = torch.arange(len(bits)).repeat_interleave(bits)
    after = bits.cumsum(0).int()  # the plane at which the next row begins
    return row, after[row] - 1 - torch.arange(len(row), dtype=torch.int32)
