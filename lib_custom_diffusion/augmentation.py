"""Augmentation of the paper (arXiv 2212.04488, §3.1): views from afar and from close by, and captions that say so."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

FAR_AWAY = ("a far away ", "very small ")
CLOSE_UP = ("zoomed in ", "close up ")


@dataclass(frozen=True)
class View:
    """The square of the canvas that a picture fills, in pixels, and the words that say so.

    side:      more than the canvas's for a picture zoomed in.
    corner:    left and top of the square; negative where it reaches beyond the canvas.
    prefix:    what the caption starts with, or "".
    """

    side: int
    corner: tuple[int, int]
    prefix: str = ""


def random_view(resolution: int, rng: Random) -> View:
    """A view as the authors draw it.

    With probability 2/3 the picture has 1/3 to 1 of the canvas's side and lies anywhere on it; below 0.6 the caption
    starts "a far away " or "very small ". Otherwise it has 1.2 to 1.4 of it, and the canvas shows any part of it;
    the caption starts "zoomed in " or "close up ".
    """
    if rng.random() < 2 / 3:
        side = rng.randint(-(-resolution // 3), resolution)
        prefix = rng.choice(FAR_AWAY) if side < 0.6 * resolution else ""
    else:
        side = rng.randint(-(-6 * resolution // 5), 7 * resolution // 5)
        prefix = rng.choice(CLOSE_UP)
    low, high = sorted((0, resolution - side))
    return View(side, (rng.randint(low, high), rng.randint(low, high)), prefix)
