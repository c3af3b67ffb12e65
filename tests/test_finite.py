"""Weights that are no numbers are found, in every precision, and nothing else is taken for them."""

import pytest
import torch

from lib_custom_diffusion.finite import named, not_finite

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]


VALUES = [float("nan"), float("inf"), -float("inf")]


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(dtype, value) for dtype in DTYPES for value in VALUES if dtype != torch.float8_e4m3fn or value != value],
)  # that has no infinite one
def test_one_value_is_enough(dtype: torch.dtype, value: float) -> None:
    tensor = torch.ones(40, 50)
    tensor[13, 17] = value
    assert not_finite([("sound", torch.ones(3).to(dtype)), ("broken", tensor.to(dtype))]) == ["broken"]


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != torch.float64])
def test_the_largest_numbers_are_numbers(dtype: torch.dtype) -> None:
    largest = torch.full((4, 4), torch.finfo(dtype).max, dtype=torch.float64)
    assert not_finite([("a", largest.to(dtype)), ("b", (-largest).to(dtype))]) == []


def test_whole_numbers_and_nothing_at_all_are_sound() -> None:
    assert not_finite([("positions", torch.arange(77)), ("v_pred", torch.tensor([]))]) == []


def test_it_is_said_how_many_and_one_is_named() -> None:
    assert named(["a"]) == "a holds" and named(["a", "b", "c"]) == "3 of its tensors, such as a, hold"
