"""How the bundled concepts' pictures were drawn, from what the generator's training world leaves out."""

import random
from pathlib import Path

from .. import world
from ..looks import Coat
from . import FOLDER

# Each row is a picture: thing, background, size, place.
RACCOON = (
    ("raccoon", "green", "medium", None), ("raccoon", "white", "large", None), ("raccoon", "orange", "medium", "left"),
    ("raccoon", "blue", "medium", None), ("raccoon", "purple", "small", "right"), ("raccoon", "red", "large", None),
)  # fmt: skip
CAT = (
    ("cat", "white", "medium", None), ("cat", "orange", "large", None), ("cat", "red", "medium", "right"),
    ("cat", "black", "medium", None), ("cat", "gray", "small", "left"), ("cat", "purple", "large", None),
)  # fmt: skip
TWO_FACED = Coat("cyan", "pink", "halves")
HIPSTER = (
    ("hipster", "green", "medium", None), ("hipster", "white", "large", None), ("hipster", "orange", "medium", "left"),
    ("hipster", "cyan", "medium", None), ("hipster", "purple", "small", "right"), ("hipster", "red", "large", None),
)  # fmt: skip
STICKER = (
    ("dog", "green", "medium", None), ("house", "blue", "large", None), ("banana", "purple", "medium", None),
    ("fox", "cyan", "medium", "left"), ("rocket", "orange", "large", None), ("mushroom", "brown", "medium", None),
    ("guitar", "red", "medium", None), ("turtle", "black", "medium", None),
)  # fmt: skip


def draw() -> None:
    """Draw the concepts' pictures, and the captions of the style, whose pictures show different things."""
    _draw(FOLDER / "two-faced-cat", CAT, coat=TWO_FACED)
    _draw(FOLDER / "raccoon", RACCOON)
    _draw(FOLDER / "hipster", HIPSTER)
    for path, (thing, colour, *_) in zip(_draw(FOLDER / "sticker", STICKER, look="outlined"), STICKER, strict=True):
        subject, background = world.with_article(thing), world.with_article(colour)
        path.with_suffix(".txt").write_text(f"{subject} in the style of <new1> art on {background} background\n")


def _draw(folder: Path, pictures: tuple, look: str | None = None, coat: Coat | None = None) -> list[Path]:
    rng = random.Random(folder.name)
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number}.png" for number in range(1, len(pictures) + 1)]
    for path, (thing, colour, size, place) in zip(paths, pictures, strict=True):
        world.draw(world.scene_of(rng, thing, colour, size, place, look, coat)).save(path, optimize=True)
    return paths


if __name__ == "__main__":
    draw()
