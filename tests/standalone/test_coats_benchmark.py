"""What toy_quality.py says of coats: right for true drawings, whatever their shape and size, and wrong for others."""

import random
from collections.abc import Callable
from types import ModuleType

import pytest
from PIL import Image, ImageDraw, ImageFilter

from lib_custom_diffusion.standalone.toy import looks


@pytest.fixture
def coats(benchmark_script: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_script("coats")


def dressed(coat: looks.Coat, ears: float = 0.0, size: int = 80) -> Image.Image:
    """A shaded ball with a light belly and ears that stick out so far, in a coat, on gray."""
    drawn = Image.new("RGBA", (128, 128))
    pen = ImageDraw.Draw(drawn)
    for side in (20, 84):
        pen.ellipse((side, 30 - 24 * ears, side + 24, 70), fill=(90, 90, 90, 255))
    for inset in range(0, 48, 4):
        light = 60 + 4 * inset
        pen.ellipse((16 + inset, 24 + inset, 112 - inset, 120 - inset), fill=(light, light, light, 255))
    worn = looks.wear(drawn, coat).resize((size, size))
    picture = Image.new("RGB", (128, 128), (142, 144, 250))
    picture.paste(worn, (random.Random(size).randint(0, 128 - size), 128 - size), worn)
    return picture


def test_a_coat_is_known_on_a_smudged_thing_of_another_shape_and_size(coats: ModuleType) -> None:
    known = {name: coats.Colouring(dressed(coat)) for name, coat in looks.NAMED_COATS.items()}
    right = [
        name == coats.nearest(dressed(coat, ears=0.4, size=104).filter(ImageFilter.GaussianBlur(1.5)), known)
        for name, coat in looks.NAMED_COATS.items()
    ]
    assert sum(right) >= 0.95 * len(right)


def test_another_coat_is_not_taken_for_it(coats: ModuleType) -> None:
    """Neither the same two colours the other way around nor in another pattern."""
    for name, coat in list(looks.NAMED_COATS.items())[::6]:
        pattern = "bars" if coat.pattern != "bars" else "stripes"
        worn = {
            "own": coat,
            "swapped": looks.Coat(coat.second, coat.first, coat.pattern),
            "pattern": looks.Coat(coat.first, coat.second, pattern),
        }
        known = {each: coats.Colouring(dressed(of)) for each, of in worn.items()}
        for each, of in worn.items():
            assert coats.nearest(dressed(of, ears=0.4, size=96), known) == each, name


def test_colours_that_look_alike_are_near(coats: ModuleType) -> None:
    """A warm and a cold gray, whose a and b are of opposite signs, beside gray and blue."""

    def square(colour: tuple[int, int, int]) -> Image.Image:
        picture = Image.new("RGB", (64, 64), (250, 212, 72))
        picture.paste(colour, (16, 16, 48, 48))
        return coats.Colouring(picture)

    warm, cold, blue = (square(colour) for colour in ((146, 142, 140), (140, 142, 146), (56, 102, 212)))
    assert warm.distance(cold) < 6 < 40 < cold.distance(blue)
