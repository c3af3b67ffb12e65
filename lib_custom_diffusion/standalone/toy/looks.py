"""What changes how a thing is drawn: looks, which have words ("striped"), and coats, which have none.

A coat is a way for any thing to be coloured, of which there is no end. Neither the generator nor the judge is taught
any, so a thing in a coat is a concept that is new to both.
"""

import colorsys
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

LOOKS = ("sepia", "shadow", "faded", "striped")
HELD_OUT_LOOKS = ("recoloured", "outlined", "pixelated")

PATTERNS = ("plain", "stripes", "bars", "dots", "halves", "checks")
RECOLOURED_TURN = 128  # of a full turn of 256, which the held-out look "recoloured" gives hues


@dataclass(frozen=True)
class Coat:
    """A colouring of any thing; hues are in 256ths of a turn, as in Pillow's HSV.

    toned:   whether light and dark of the drawing become light and dark of `hue`; else its hues turn by `hue`.
    pattern: where `second` takes the place of `hue`; nowhere if "plain".
    """

    toned: bool
    hue: int
    pattern: str
    second: int


def random_coat(rng: random.Random) -> Coat:
    """Any coat but those near the held-out look "recoloured"."""
    toned = rng.random() < 0.75
    hue = rng.randrange(256) if toned else (RECOLOURED_TURN + rng.choice((-1, 1)) * rng.randint(40, 100)) % 256
    pattern = rng.choice(PATTERNS)
    return Coat(toned, hue, pattern, (hue + rng.randint(64, 192)) % 256)


def _where(pattern: str, height: int, width: int) -> np.ndarray:
    """Where a pattern shows, (height, width)."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    if pattern == "stripes":
        return np.floor(y * 6) % 2 == 1
    if pattern == "bars":
        return np.floor(x * 6) % 2 == 1
    if pattern == "dots":
        return (x * 3.5 % 1 - 0.5) ** 2 + (y * 3.5 % 1 - 0.5) ** 2 < 0.1
    if pattern == "halves":
        return x > 0.5
    if pattern == "checks":
        return (np.floor(x * 4) + np.floor(y * 4)) % 2 == 1
    return np.zeros((height, width), bool)


def _toned(drawn: Image.Image, hue: int) -> np.ndarray:
    """Light and dark of a drawing as light and dark of one hue, (height, width, 3) in 0 to 255."""
    light = np.asarray(drawn.convert("L"), np.float32)[..., None] / 255
    full = np.array(colorsys.hsv_to_rgb(hue / 256, 0.62, 1.0))
    pale = 1 - 0.35 * (1 - full)
    deep = 0.12 * full
    rising = np.clip(light / 0.75, 0, 1)
    colour = deep + rising * (full - deep)
    return 255 * (colour + np.clip((light - 0.75) / 0.25, 0, 1) * (pale - full))


def _turned(drawn: Image.Image, hue: int) -> np.ndarray:
    """A drawing with its hues turned and its colours stronger, (height, width, 3) in 0 to 255."""
    angle, saturation, value = drawn.convert("RGB").convert("HSV").split()
    turned = angle.point(lambda amount: (amount + hue) % 256)
    vivid = saturation.point(lambda amount: min(255, amount + 40 if amount > 20 else amount))
    return np.asarray(Image.merge("HSV", (turned, vivid, value)).convert("RGB"), np.float32)


def wear(drawn: Image.Image, coat: Coat) -> Image.Image:
    """A drawing (RGBA) in a coat."""
    colour = _toned if coat.toned else _turned
    pattern = _where(coat.pattern, drawn.height, drawn.width)[..., None]
    return _with_colours(drawn, np.where(pattern, colour(drawn, coat.second), colour(drawn, coat.hue)))


def _sepia(drawn: Image.Image) -> Image.Image:
    gray = np.asarray(drawn.convert("L"), np.float32)[..., None] / 255
    toned = gray * np.array([255, 222, 170]) + (1 - gray) * np.array([62, 34, 10])
    return _with_colours(drawn, toned)


def _shadow(drawn: Image.Image) -> Image.Image:
    return _with_colours(drawn, np.full((*drawn.size[::-1], 3), (46, 44, 58)))


def _faded(drawn: Image.Image) -> Image.Image:
    return _with_colours(drawn, np.asarray(drawn.convert("RGB"), np.float32) * 0.42 + 255 * 0.58)


def _striped(drawn: Image.Image) -> Image.Image:
    bands = (np.arange(drawn.height) * 9 // drawn.height) % 2
    rgb = np.asarray(drawn.convert("RGB"), np.float32)
    return _with_colours(drawn, np.where(bands[:, None, None] == 1, rgb * 0.35 + 255 * 0.65, rgb * 0.75))


def _recoloured(drawn: Image.Image) -> Image.Image:
    return _with_colours(drawn, _turned(drawn, RECOLOURED_TURN))


def _outlined(drawn: Image.Image) -> Image.Image:
    thickness = 7
    room = 2 * thickness
    wide = Image.new("RGBA", (drawn.width + 2 * room, drawn.height + 2 * room), (0, 0, 0, 0))
    wide.paste(drawn, (room, room))
    grown = wide.getchannel("A").filter(ImageFilter.MaxFilter(2 * thickness + 1))
    edged = Image.new("RGBA", wide.size, (255, 255, 255, 255))
    edged.putalpha(grown.filter(ImageFilter.GaussianBlur(1)))
    return Image.alpha_composite(edged, wide)


def _pixelated(drawn: Image.Image) -> Image.Image:
    blocks = drawn.resize((11, 11), Image.Resampling.BOX)
    alpha = blocks.getchannel("A").point(lambda amount: 255 if amount > 100 else 0)
    blocks.putalpha(alpha)
    return blocks.resize(drawn.size, Image.Resampling.NEAREST)


def _with_colours(drawn: Image.Image, rgb: np.ndarray) -> Image.Image:
    coloured = Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8), "RGB")
    coloured.putalpha(drawn.getchannel("A"))
    return coloured


APPLY_LOOK: dict[str, Callable[[Image.Image], Image.Image]] = {
    "sepia": _sepia, "shadow": _shadow, "faded": _faded, "striped": _striped,
    "recoloured": _recoloured, "outlined": _outlined, "pixelated": _pixelated,
}  # fmt: skip
