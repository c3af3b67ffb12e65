"""Coats: colourings that leave a drawing's shape alone."""

import random

import numpy as np
import pytest
from PIL import Image

from lib_custom_diffusion.standalone.toy import looks
from lib_custom_diffusion.standalone.toy.looks import PATTERNS, Coat, random_coat, wear

HUES = {"red": 0, "green": 93, "blue": 158}  # of `looks.COLOURS`, in 256ths of a turn


def square() -> Image.Image:
    """A red square with an opaque middle, light above and dark below."""
    drawn = np.zeros((60, 60, 4), np.uint8)
    drawn[:30, :, :3], drawn[30:, :, :3] = (255, 200, 200), (90, 0, 0)
    drawn[10:50, 10:50, 3] = 255
    return Image.fromarray(drawn, "RGBA")


def hues(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB").convert("HSV"))[..., 0].astype(int)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_coat_has_its_hues_and_leaves_the_shape(pattern: str) -> None:
    worn = wear(square(), Coat("green", "blue", pattern))
    assert worn.getchannel("A").tobytes() == square().getchannel("A").tobytes()
    found = hues(worn)
    green, blue = np.abs(found - HUES["green"]) < 8, np.abs(found - HUES["blue"]) < 8
    assert (green | blue).all()
    assert green.mean() > 0.3
    assert (blue.mean() > 0.3) == (pattern != "plain")


def test_light_and_dark_stay_light_and_dark() -> None:
    worn = np.asarray(wear(square(), Coat("blue", "blue", "plain")).convert("L"), int)
    assert worn[10, 30] > worn[40, 30] + 40


def test_halves_are_left_and_right() -> None:
    worn = hues(wear(square(), Coat("green", "red", "halves")))
    assert abs(worn[30, 5] - HUES["green"]) < 8 and min(worn[30, 55], 256 - worn[30, 55]) < 8


def test_names_stand_for_different_coats_and_some_are_held_out() -> None:
    coats = [*looks.NAMED_COATS.values(), *looks.HELD_OUT_COATS.values()]
    assert len(looks.NAMED_COATS) >= 60 and len(looks.HELD_OUT_COATS) >= 12
    assert len({(coat.first, coat.second, coat.pattern) for coat in coats}) == len(coats)
    assert all(coat.first != coat.second for coat in coats)


def test_no_coat_without_a_word_is_one_that_has_a_name() -> None:
    rng = random.Random(0)
    named = {(coat.first, coat.second, coat.pattern) for coat in (*looks.NAMED_COATS.values(),)}
    found = {(coat.first, coat.second, coat.pattern) for coat in (random_coat(rng) for _ in range(2000))}
    assert len(found) > 300 and not found & named
