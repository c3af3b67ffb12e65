"""Quantization: levels, bit planes, and the error that so many bits leave."""

import math

import pytest
import torch

from lib_custom_diffusion.algebra.quantization import MAX_BITS, NOISE, pack, quantize, unpack


def bits(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.uint8)


def test_planes_are_what_the_description_says() -> None:
    """Worked by hand: a row of 1 bit is ±¼; one of 2 bits ±¼ ±⅛; eight numbers a byte, the first in the highest bit."""
    planes = torch.tensor([[0b10000001], [0b11000000], [0b10100000]], dtype=torch.uint8)
    levels = unpack(planes, bits(1, 2))
    assert levels[0].tolist() == [0.25, -0.25, -0.25, -0.25, -0.25, -0.25, -0.25, 0.25]
    assert levels[1].tolist() == [0.375, 0.125, -0.125, -0.375, -0.375, -0.375, -0.375, -0.375]
    assert torch.equal(pack(levels, bits(1, 2)), planes)


def test_planes_hold_levels_exactly_whatever_the_bits() -> None:
    torch.manual_seed(0)
    widths = bits(*range(MAX_BITS + 1))
    levels, _ = quantize(torch.randn(MAX_BITS + 1, 24), widths)
    planes = pack(levels, widths)
    assert planes.shape == (sum(range(MAX_BITS + 1)), 3)
    assert torch.equal(unpack(planes, widths), levels)


def test_a_row_of_no_bits_is_zero_and_takes_no_plane() -> None:
    levels, step = quantize(torch.randn(3, 8), bits(2, 0, 1))
    assert not levels[1].any() and torch.isfinite(step).all()
    assert len(pack(levels, bits(2, 0, 1))) == 3
    assert not unpack(pack(levels, bits(2, 0, 1)), bits(2, 0, 1))[1].any()


def test_a_row_of_zeros_stays_zero() -> None:
    levels, step = quantize(torch.zeros(1, 8), bits(3))
    assert not (levels * step).any()


@pytest.mark.parametrize("width", range(1, MAX_BITS + 1))
def test_normally_distributed_numbers_lose_what_the_table_says(width: int) -> None:
    """At many bits less: among a finite count of numbers none is so large as the table reckons with."""
    torch.manual_seed(0)
    rows = torch.randn(40, 768)
    levels, step = quantize(rows, bits(*[width] * 40))
    error = (rows - levels * step).square().mean().item()
    assert error < 1.06 * NOISE[width]
    assert error > (0.95 if width < 5 else 0.25) * NOISE[width]


@pytest.mark.parametrize("width", range(6, MAX_BITS + 1))
def test_the_table_is_the_least_error_of_any_step(width: int) -> None:
    """Beyond 5 bits levels are so dense that the error is step² / 12 within reach and the distance to it outside."""

    def error(step: float) -> float:
        reach = 2 ** (width - 1) * step
        end = reach - step / 2
        beyond = math.erfc(end / 2**0.5) / 2 * (1 + end**2) - end * math.exp(-(end**2) / 2) / (2 * math.pi) ** 0.5
        return step**2 / 12 * math.erf(reach / 2**0.5) + 2 * beyond

    assert min(error(k / 100 / 2**width) for k in range(300, 1500)) == pytest.approx(NOISE[width], rel=2e-3)


def test_each_bit_more_saves_less() -> None:
    """Or else bits dealt out one by one, each for what it saves, would not be the best."""
    savings = NOISE[:-1] - NOISE[1:]
    assert len(NOISE) == MAX_BITS + 1 and (savings[1:] < savings[:-1]).all() and savings[-1] > 0


def test_few_bits_clip_an_outlier_for_the_sake_of_the_others() -> None:
    torch.manual_seed(0)
    row = torch.randn(1, 768)
    row[0, 0] = 12.0
    levels, step = quantize(row, bits(2))
    assert (row - levels * step)[0, 1:].square().mean() < 0.35
    reaching = 24.0 * ((row / 24.0 * 4).floor().clamp(-2, 1) + 0.5) / 4
    assert (row - levels * step).square().sum() < 0.3 * (row - reaching).square().sum()
