"""Views are drawn as the paper's authors draw them, and captions say what is seen."""

from random import Random

import pytest

from lib_custom_diffusion.augmentation import View, random_view

RESOLUTION = 512


@pytest.fixture(scope="module")
def views() -> list[View]:
    rng = Random(0)
    return [random_view(RESOLUTION, rng) for _ in range(4000)]


def test_two_thirds_are_shrunk_to_a_third_or_more_and_the_rest_zoomed_by_a_fifth_to_two(views: list[View]) -> None:
    shrunk = [view.side for view in views if view.side <= RESOLUTION]
    zoomed = [view.side for view in views if view.side > RESOLUTION]
    assert len(shrunk) / len(views) == pytest.approx(2 / 3, abs=0.03)
    assert 171 <= min(shrunk) < 180  # 512 / 3 = 170.7
    assert 505 < max(shrunk) <= 512
    assert sum(shrunk) / len(shrunk) == pytest.approx((171 + 512) / 2, abs=8)
    assert 615 <= min(zoomed) < 620  # 1.2 × 512 = 614.4
    assert 711 < max(zoomed) <= 716  # 1.4 × 512 = 716.8


def test_shrunk_pictures_lie_anywhere_on_the_canvas_and_zoomed_ones_cover_it(views: list[View]) -> None:
    for axis in (0, 1):
        places = []
        for view in views:
            near, far = view.corner[axis], view.corner[axis] + view.side
            if view.side <= RESOLUTION:
                assert near >= 0
                assert far <= RESOLUTION
            else:
                assert near <= 0
                assert far >= RESOLUTION
            if view.side != RESOLUTION:
                places.append(near / (RESOLUTION - view.side))  # 0 at one edge, 1 at the other
        assert min(places) == 0
        assert max(places) == 1
        assert sum(places) / len(places) == pytest.approx(0.5, abs=0.03)
    assert any(view.corner[0] != view.corner[1] for view in views)


def test_captions_say_small_below_six_tenths_and_close_above_one(views: list[View]) -> None:
    def prefixes(low: float, high: float) -> set[str]:
        return {view.prefix for view in views if low * RESOLUTION <= view.side < high * RESOLUTION}

    assert prefixes(0, 0.6) == {"a far away ", "very small "}
    assert prefixes(0.6, 1.001) == {""}
    assert prefixes(1.001, 2) == {"zoomed in ", "close up "}


@pytest.mark.parametrize("resolution", [8, 16, 128])
def test_small_models_have_every_kind_of_view(resolution: int) -> None:
    rng = Random(1)
    assert {random_view(resolution, rng).prefix for _ in range(300)} == {
        "a far away ", "very small ", "", "zoomed in ", "close up "
    }  # fmt: skip
