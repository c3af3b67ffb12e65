"""Learning rates by hand."""

import pytest

from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.training.schedule import Schedule


def test_pieces_hold_until_the_step_they_name() -> None:
    schedule = Schedule.parse("1e-5:100, 5e-6:1000, 1e-6")
    rates = [schedule.rate_at(step, 2000) for step in (0, 99, 100, 999, 1000, 1999)]
    assert rates == [1e-5, 1e-5, 5e-6, 5e-6, 1e-6, 1e-6]


def test_last_piece_with_a_step_holds_to_the_end() -> None:
    assert Schedule.parse("1e-5:100").rate_at(150, 200) == 1e-5


def test_warm_up_rises_to_the_full_rate_after_its_last_step() -> None:
    schedule = Schedule.parse("1", warmup_steps=4)
    assert [schedule.rate_at(step, 10) for step in range(6)] == [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]


@pytest.mark.parametrize(("shape", "middle"), [("constant", 2.0), ("linear", 1.0), ("cosine", 1.0)])
def test_shapes_halfway_between_warm_up_and_end(shape: str, middle: float) -> None:
    schedule = Schedule.parse("2", shape, warmup_steps=10)
    assert schedule.rate_at(60, 110) == pytest.approx(middle)
    assert schedule.rate_at(10, 110) == 2.0


def test_scale_multiplies_every_piece() -> None:
    assert Schedule.parse("1:5, 2", scale=8).pieces[0][0] == 8
    assert Schedule.parse("1:5, 2", scale=8).rate_at(6, 10) == 16


@pytest.mark.parametrize("text", ["fast", "1e-5:ten", "-1", "nan", "1e-5:100, 1e-6:50", "1e-5, 1e-6", "", "1e-5:1.5"])
def test_what_is_no_schedule_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        Schedule.parse(text)


def test_unknown_shape_lists_the_valid_ones() -> None:
    with pytest.raises(UserError, match="constant, linear, cosine"):
        Schedule.parse("1e-5", "square")
