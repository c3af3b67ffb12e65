"""The formulas against numbers worked by hand and against their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from lib_custom_diffusion.standalone.evaluation.alignment import (
    chance,
    image_alignment,
    kernel_distance,
    likeness_of_references,
    score,
    text_alignment,
    told_apart,
)

EAST, NORTH, WEST = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]
NORTH_EAST = [3.0, 3.0]  # at 45° from both, and not of unit length
HALF = math.sqrt(0.5)


def test_image_alignment_is_the_mean_cosine_of_all_pairs() -> None:
    pictures, references = torch.tensor([EAST, NORTH_EAST]), torch.tensor([EAST, NORTH])
    assert image_alignment(pictures, references) == pytest.approx((1 + 0 + HALF + HALF) / 4)


def test_references_are_compared_with_each_other_and_not_with_themselves() -> None:
    assert likeness_of_references(torch.tensor([EAST, NORTH, NORTH_EAST])) == pytest.approx((0 + HALF + HALF) / 3)
    assert likeness_of_references(torch.tensor([EAST])) == 1.0


def test_text_alignment_is_clipscore() -> None:
    pictures, captions = torch.tensor([EAST, EAST, EAST]), torch.tensor([EAST, NORTH_EAST, WEST])
    assert text_alignment(pictures, captions) == pytest.approx((1 + HALF + 0) / 3)
    assert text_alignment(pictures, captions, 2.5) == pytest.approx(2.5 * (1 + HALF) / 3)


def test_captions_are_told_apart_by_how_much_nearer_the_own_one_is() -> None:
    pictures = torch.tensor([EAST, EAST, NORTH])
    captions = torch.tensor([EAST, EAST, NORTH_EAST])
    own, others = (4 * 1 + HALF) / 5, (HALF + HALF + 0 + 0) / 4
    assert told_apart(pictures, captions, ["a", "a", "b"]) == pytest.approx(own - others)
    assert told_apart(pictures, captions, ["a", "a", "a"]) is None


def test_kernel_distance_is_the_sum_over_pairs_that_kid_is_defined_by() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(4, 3), torch.randn(3, 3) + 1

    def k(a: torch.Tensor, b: torch.Tensor) -> float:
        return (float(a @ b) / 3 + 1) ** 3

    within_x = sum(k(x[i], x[j]) for i in range(4) for j in range(4) if i != j) / 12
    within_y = sum(k(y[i], y[j]) for i in range(3) for j in range(3) if i != j) / 6
    across = sum(k(a, b) for a in x for b in y) / 12
    assert kernel_distance(x, y) == pytest.approx(within_x + within_y - 2 * across, rel=1e-5)


def test_kernel_distance_is_nought_on_average_for_pictures_of_one_kind() -> None:
    torch.manual_seed(0)
    same = torch.tensor([kernel_distance(torch.randn(20, 8), torch.randn(20, 8)) for _ in range(200)])
    other = torch.tensor([kernel_distance(torch.randn(20, 8), torch.randn(20, 8) + 0.5) for _ in range(200)])
    assert abs(same.mean()) < 3 * same.std() / 200**0.5
    assert other.mean() > 10 * same.std() / 200**0.5


@pytest.mark.parametrize(
    ("likeness", "obedience", "expected"),
    [
        (0.0, 1.0, 0.0),  # nothing was learned
        (0.4, 1.0, 2 / 3),  # half as like as the concept's own pictures: harmonic mean of 0.5 and 1
        (0.8, 0.5, 2 / 3),
        (0.8, 0.0, 0.0),  # prompts are ignored
        (0.8, 1.0, 1.0),
        (0.9, 1.3, 1.0),  # more than all counts as all
        (-0.1, -0.2, 0.0),
    ],
)
def test_score_wants_both_likeness_and_obedience(likeness: float, obedience: float, expected: float) -> None:
    assert score(likeness, greatest=0.8, obedience=obedience) == pytest.approx(expected)


def test_chance_is_the_standard_error_where_that_is_known_of_a_mean() -> None:
    values, others = [1.0, 2.0, 6.0], [0.0, 1.0, 1.0]  # differences 1, 1 and 5: deviation 4/√3, over √3 of them

    def without_each(numbers: list[float]) -> list[float]:
        return [(sum(numbers) - number) / 2 for number in numbers]

    assert chance(without_each(values), without_each(others)) == pytest.approx(4 / 3)
    assert chance([], []) == chance([1.0], [0.0]) == math.inf
