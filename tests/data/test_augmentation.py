"""Views are drawn as the paper's authors draw them, and captions say what is seen."""

from random import Random

import pytest

from lib_custom_diffusion.data.augmentation import View, random_view

RESOLUTION = 512


@pytest.fixture(scope="module")
def views() -> list[View]:
    rng = Random(0)
    return [random_view((RESOLUTION, RESOLUTION), rng) for _ in range(4000)]


def test_two_thirds_are_shrunk_to_a_third_or_more_and_the_rest_zoomed_by_a_fifth_to_two(views: list[View]) -> None:
    shrunk = [view.size[0] for view in views if view.size[0] <= RESOLUTION]
    zoomed = [view.size[0] for view in views if view.size[0] > RESOLUTION]
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
            near, far = view.corner[axis], view.corner[axis] + view.size[0]
            if view.size[0] <= RESOLUTION:
                assert near >= 0
                assert far <= RESOLUTION
            else:
                assert near <= 0
                assert far >= RESOLUTION
            if view.size[0] != RESOLUTION:
                places.append(near / (RESOLUTION - view.size[0]))  # 0 at one edge, 1 at the other
        assert min(places) == 0
        assert max(places) == 1
        assert sum(places) / len(places) == pytest.approx(0.5, abs=0.03)
    assert any(view.corner[0] != view.corner[1] for view in views)
    assert all(view.size[0] == view.size[1] for view in views)
    assert all(view.size[0] == view.size[1] for view in views)


def test_captions_say_small_below_six_tenths_and_close_above_one(views: list[View]) -> None:
    def prefixes(low: float, high: float) -> set[str]:
        return {view.prefix for view in views if low * RESOLUTION <= view.size[0] < high * RESOLUTION}

    assert prefixes(0, 0.6) == {"a far away ", "very small "}
    assert prefixes(0.6, 1.001) == {""}
    assert prefixes(1.001, 2) == {"zoomed in ", "close up "}


@pytest.mark.parametrize("resolution", [8, 16, 128])
def test_small_models_have_every_kind_of_view(resolution: int) -> None:
    rng = Random(1)
    assert {random_view((resolution, resolution), rng).prefix for _ in range(300)} == {
        "a far away ", "very small ", "", "zoomed in ", "close up "
    }  # fmt: skip


def test_on_a_wide_canvas_views_are_as_wide_and_lie_on_it_in_both_directions() -> None:
    rng = Random(2)
    views = [random_view((192, 96), rng) for _ in range(500)]
    for view in views:
        assert view.size[1] == pytest.approx(view.size[0] / 2, abs=0.5)
        low, high = (view.corner, view.size) if view.size[0] <= 192 else ((0, 0), (192, 96))
        assert all(start >= 0 and start + side <= full for start, side, full in zip(low, high, (192, 96), strict=True))
    assert max(view.corner[1] for view in views) > 96 / 2


def test_on_a_wide_canvas_views_are_as_wide_and_lie_anywhere_on_it() -> None:
    rng = Random(2)
    views = [random_view((192, 96), rng) for _ in range(500)]
    for view in views:
        assert view.size[1] == pytest.approx(view.size[0] / 2, abs=0.5)
        for start, side, room in zip(view.corner, view.size, (192, 96), strict=True):
            low, high = sorted((0, room - side))
            assert low <= start <= high
    assert max(view.corner[0] for view in views) > 96
    assert 48 < max(view.corner[1] for view in views) <= 64  # 96 - 96 / 3
