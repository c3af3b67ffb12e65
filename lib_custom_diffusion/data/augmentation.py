"""Augmentation of the paper (arXiv 2212.04488, §3.1): views from afar and from close by, and captions that say so."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

FAR_AWAY = ("a far away ", "very small ")
CLOSE_UP = ("zoomed in ", "close up ")


@dataclass(frozen=True)
class View:
    """The part of the canvas that a picture fills, in pixels, and the words that say so.

    size:      its width and height, more than the canvas's for a picture zoomed in.
    corner:    its left and top; negative where it reaches beyond the canvas.
    prefix:    what the caption starts with, or "".
    """

    size: tuple[int, int]
    corner: tuple[int, int]
    prefix: str = ""


def random_view(canvas: tuple[int, int], rng: Random) -> View:
    """A view of a canvas (width, height) as the authors draw it; of the canvas's own shape.

    With probability 2/3 the picture has 1/3 to 1 of the canvas's side and lies anywhere on it; below 0.6 the caption
    starts "a far away " or "very small ". Otherwise it has 1.2 to 1.4 of it, and the canvas shows any part of it;
    the caption starts "zoomed in " or "close up ".
    """
    side = canvas[0]
    if rng.random() < 2 / 3:
        width = rng.randint(-(-side // 3), side)
        prefix = rng.choice(FAR_AWAY) if width < 0.6 * side else ""
    else:
        width = rng.randint(-(-6 * side // 5), 7 * side // 5)
        prefix = rng.choice(CLOSE_UP)
    size = width, max(1, round(width * canvas[1] / side))
    left, top = (rng.randint(*sorted((0, room - taken))) for room, taken in zip(canvas, size))
    return View(size, (left, top), prefix)
