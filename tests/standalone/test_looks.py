"""Coats: colourings that leave a drawing's shape alone."""

import colorsys
import random

import numpy as np
import pytest
from PIL import Image

from lib_custom_diffusion.standalone.toy.looks import PATTERNS, RECOLOURED_TURN, Coat, random_coat, wear

RED, GREEN, BLUE = 0, 85, 170  # in 256ths of a turn


def square() -> Image.Image:
    """A red square with an opaque middle, light above and dark below."""
    drawn = np.zeros((60, 60, 4), np.uint8)
    drawn[:30, :, :3], drawn[30:, :, :3] = (255, 60, 60), (90, 0, 0)
    drawn[10:50, 10:50, 3] = 255
    return Image.fromarray(drawn, "RGBA")


def hues(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB").convert("HSV"))[..., 0]


@pytest.mark.parametrize("toned", [True, False])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_coat_has_its_hues_and_leaves_the_shape(toned: bool, pattern: str) -> None:
    worn = wear(square(), Coat(toned, GREEN, pattern, BLUE))
    assert worn.getchannel("A").tobytes() == square().getchannel("A").tobytes()
    near = {hue for target in (GREEN, BLUE) for hue in range(target - 4, target + 5)}
    assert set(np.unique(hues(worn)).tolist()) <= near
    has_both = np.ptp(hues(worn)) > 40
    assert has_both == (pattern != "plain")


def test_light_and_dark_stay_light_and_dark() -> None:
    worn = np.asarray(wear(square(), Coat(True, BLUE, "plain", RED)).convert("L"), int)
    assert worn[10, 30] > worn[40, 30] + 40


def test_no_coat_turns_hues_as_the_held_out_look_does() -> None:
    rng = random.Random(0)
    turned = [coat.hue for coat in (random_coat(rng) for _ in range(500)) if not coat.toned]
    assert len(turned) > 50
    assert min(abs(hue - RECOLOURED_TURN) for hue in turned) >= 40


def test_halves_are_left_and_right() -> None:
    worn = hues(wear(square(), Coat(True, GREEN, "halves", BLUE)))
    assert abs(int(worn[30, 5]) - GREEN) < 5 and abs(int(worn[30, 55]) - BLUE) < 5
    assert colorsys.rgb_to_hsv(0, 1, 0)[0] * 256 == pytest.approx(GREEN, abs=1)
