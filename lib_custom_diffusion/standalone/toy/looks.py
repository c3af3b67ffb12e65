"""What changes how a thing is drawn: looks ("in the style of striped art") and coats ("a blue cat", "a delin cat").

A coat is a way for any thing to be coloured. Colours and invented names before a noun stand for coats, so the generator
has learned that a word there means this particular one, as a breed does. Other coats have no word: a thing in one of
those is a concept that is new to it.
"""

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageFilter

LOOKS = ("sepia", "shadow", "faded", "striped")
HELD_OUT_LOOKS = ("recoloured", "outlined", "pixelated")

COLOURS = {
    "red": (212, 48, 48),
    "orange": (242, 143, 52),
    "yellow": (250, 212, 72),
    "green": (70, 158, 82),
    "blue": (56, 102, 212),
    "cyan": (88, 204, 216),
    "purple": (132, 76, 182),
    "pink": (246, 162, 198),
    "brown": (122, 80, 52),
    "black": (26, 26, 28),
    "gray": (142, 144, 150),
    "white": (245, 245, 245),
}
PATTERNS = ("plain", "stripes", "bars", "halves", "spotlight")
RECOLOURED_TURN = 128  # of a full turn of 256, which the held-out look "recoloured" gives hues


@dataclass(frozen=True)
class Coat:
    """A colouring of any thing, whose light and dark become those of one or two of `COLOURS`.

    word:    what captions call it, before the noun: a colour or an invented name; "" if it has no word.
    pattern: where `second` takes the place of `first`; nowhere if "plain".
    """

    first: str
    second: str
    pattern: str
    word: str = ""


def random_coat(rng: random.Random) -> Coat:
    """Any coat of two colours that has no name."""
    while True:
        first, second = rng.sample(list(COLOURS), 2)
        coat = Coat(first, second, rng.choice(PATTERNS[1:]))
        if coat not in _NAMED:
            return coat


def _invented_names() -> list[str]:
    starts = ("ba", "de", "fi", "go", "lu", "ma", "ne", "pi", "ro", "su", "va", "zi")
    endings = ("lin", "mox", "rak", "tuv", "vek", "zol")
    return [start + ending for ending in endings for start in starts]


def _named_coats() -> dict[str, Coat]:
    rng = random.Random("named coats")
    every = [Coat(*pair, pattern) for pair in itertools.permutations(COLOURS, 2) for pattern in PATTERNS[1:]]
    names = _invented_names()
    return {name: replace(coat, word=name) for name, coat in zip(names, rng.sample(every, len(names)), strict=True)}


_ALL_NAMED_COATS = _named_coats()
_NAMED = {replace(coat, word="") for coat in _ALL_NAMED_COATS.values()}
HELD_OUT_NAMES = tuple(_ALL_NAMED_COATS)[-12:]
COLOUR_COATS = {colour: Coat(colour, colour, "plain", colour) for colour in COLOURS}
"""What a colour before a noun makes of the thing: "a blue cat"."""
NAMED_COATS = {name: coat for name, coat in _ALL_NAMED_COATS.items() if name not in HELD_OUT_NAMES}
"""What an invented name before a noun makes of it, as a breed does: "a delin cat"."""
HELD_OUT_COATS = {name: _ALL_NAMED_COATS[name] for name in HELD_OUT_NAMES}
"""Coats that the generator never saw on anything."""


def _where(pattern: str, light: np.ndarray) -> np.ndarray:
    """Where a pattern shows on a drawing of this lightness in 0 to 1, (height, width)."""
    height, width = light.shape
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    if pattern == "stripes":
        return np.floor(y * 5) % 2 == 1
    if pattern == "bars":
        return np.floor(x * 5) % 2 == 1
    if pattern == "halves":
        return x > 0.5
    if pattern == "spotlight":
        return light > 0.62
    return np.zeros((height, width), bool)


def _toned(light: np.ndarray, colour: str) -> np.ndarray:
    """Light and dark, (height, width) in 0 to 1, as light and dark of a colour, (height, width, 3) in 0 to 255."""
    full = np.array(COLOURS[colour]) / 255
    pale = 1 - 0.35 * (1 - full)
    deep = 0.12 * full
    rising = np.clip(light / 0.75, 0, 1)[..., None]
    toned = deep + rising * (full - deep)
    return 255 * (toned + np.clip((light - 0.75) / 0.25, 0, 1)[..., None] * (pale - full))


def wear(drawn: Image.Image, coat: Coat) -> Image.Image:
    """A drawing (RGBA) in a coat."""
    light = np.asarray(drawn.convert("L"), np.float32) / 255
    pattern = _where(coat.pattern, light)[..., None]
    return _with_colours(drawn, np.where(pattern, _toned(light, coat.second), _toned(light, coat.first)))


def _turned(drawn: Image.Image, hue: int) -> np.ndarray:
    """A drawing with its hues turned and its colours stronger, (height, width, 3) in 0 to 255."""
    angle, saturation, value = drawn.convert("RGB").convert("HSV").split()
    turned = angle.point(lambda amount: (amount + hue) % 256)
    vivid = saturation.point(lambda amount: min(255, amount + 40 if amount > 20 else amount))
    return np.asarray(Image.merge("HSV", (turned, vivid, value)).convert("RGB"), np.float32)


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
