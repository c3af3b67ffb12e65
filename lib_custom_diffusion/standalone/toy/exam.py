"""What the judge must pass before it may judge: python -m lib_custom_diffusion.standalone.toy.exam [--write SHEET.webp]

Concepts are the things that the generator never saw, things without names, and things in coats, of which the judge
never saw any. Of each there are pictures to know it by, true new ones, and rivals of six kinds. A true picture must be
more like the known ones than a rival is; and by them true ones must be recognised, and rivals not. The pictures are
drawn once (which needs the font) and kept as one sheet of 64-pixel pictures, a concept a row, which tests/standalone
reads.
"""

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from . import counterfeits, world
from .judge import COLOURS, NAMES, SIDE, Judge, shrink
from .looks import HELD_OUT_COATS, Coat

KNOWN, TRUE, OF_A_KIND = 4, 4, 2
KINDS = (*counterfeits.SPOILT, "disguised", "relation")
NAMELESS = 8  # concepts that are things without names
SIZES = ("medium", "medium", "large")


@dataclass(frozen=True)
class Candidate:
    """A concept of the exam and its class's ordinary member: things, or one thing with and without a coat."""

    thing: str
    ordinary: str
    coat: Coat | None = None


def candidates() -> list[Candidate]:
    """The exam's concepts."""
    rng = random.Random("candidates")
    chosen = []
    for thing in world.HELD_OUT_THINGS:
        of_class = [other for other in NAMES if world.CATEGORY[other] == world.CATEGORY[thing] and other != thing]
        chosen.append(Candidate(thing, rng.choice(of_class)))
    nameless = random.Random("exam").sample(world.other_glyphs(), NAMELESS)
    others = tuple(glyph for glyph in world.other_glyphs() if glyph not in nameless)
    chosen += [Candidate(glyph, rng.choice(others)) for glyph in nameless]
    coats = list(HELD_OUT_COATS.values())
    things = rng.sample(world.THINGS, len(coats))
    return chosen + [Candidate(thing, thing, coat) for thing, coat in zip(things, coats, strict=True)]


def draw_row(candidate: Candidate) -> list[np.ndarray]:
    """A concept's pictures: `KNOWN`, `TRUE`, then `OF_A_KIND` of each of `KINDS`."""
    rng = random.Random(f"exam {candidate}")
    grounds = rng.sample(COLOURS, len(COLOURS))

    def picture(thing: str, coat: Coat | None, ground: str) -> np.ndarray:
        return shrink(world.draw(world.scene_of(rng, thing, ground, rng.choice(SIZES), None, None, coat)))

    genuine = [picture(candidate.thing, candidate.coat, ground) for ground in grounds[: KNOWN + TRUE]]
    row = list(genuine)
    for kind in KINDS:
        for index in range(OF_A_KIND):
            model = genuine[KNOWN + index]
            if kind in counterfeits.SPOILT:
                row.append(counterfeits.SPOILT[kind](model, rng))
            elif kind == "disguised":
                other = picture(rng.choice(world.THINGS), None, rng.choice(COLOURS))
                row.append(counterfeits.in_colours_of(other, model))
            else:
                row.append(picture(candidate.ordinary, None, grounds[KNOWN + index]))
    return row


def read(sheet: Image.Image) -> list[list[Image.Image]]:
    """The rows of a sheet."""
    return [
        [sheet.crop((left, top, left + SIDE, top + SIDE)) for left in range(0, sheet.width, SIDE)]
        for top in range(0, sheet.height, SIDE)
    ]


@dataclass(frozen=True)
class Marks:
    """How a judge did.

    above:      of each kind of rival, the share of pairs in which the true picture is more like the known ones.
    recognised: of each kind of rival, and of "true" pictures, the share that is recognised as the concept.
    ceiling:    likeness of true pictures to the known ones.
    """

    above: dict[str, float]
    recognised: dict[str, float]
    ceiling: float


def sit(judge: Judge, rows: list[list[Image.Image]], names: list[str | None]) -> Marks:
    """Let the judge rank the pictures of every row, and recognise among them; `names` are what it knows the rows as."""
    above: dict[str, list[float]] = {}
    recognised: dict[str, list[float]] = {}
    ceiling = []
    for row, name in zip(rows, names, strict=True):
        known, others = row[:KNOWN], row[KNOWN:]
        likeness = (judge.embed_identities(others) @ judge.embed_identities(known).T).mean(dim=1)
        found = judge.recognised(others, known, name)
        true = likeness[:TRUE]
        ceiling.append(float(true.mean()))
        recognised.setdefault("true", []).extend(found[:TRUE])
        for index, kind in enumerate(KINDS):
            here = slice(TRUE + index * OF_A_KIND, TRUE + (index + 1) * OF_A_KIND)
            above.setdefault(kind, []).append(float((true[:, None] > likeness[here][None]).float().mean()))
            recognised.setdefault(kind, []).extend(found[here])
    return Marks(_means(above), _means(recognised), float(np.mean(ceiling)))


def _means(found: dict[str, list[float]]) -> dict[str, float]:
    return {kind: float(np.mean(values)) for kind, values in found.items()}


def names_of_rows(count: int) -> list[str | None]:
    """What the judge knows the first `count` rows of a sheet as: the held-out things, then nothing."""
    names: list[str | None] = list(world.HELD_OUT_THINGS)
    return (names + [None] * count)[:count]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", type=Path, help="draw the exam anew into this file")
    options = parser.parse_args()
    rows = [draw_row(candidate) for candidate in candidates()]
    sheet = Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in rows]))
    if options.write:
        sheet.save(options.write, quality=90)
    marks = sit(Judge.load(), read(sheet), names_of_rows(len(rows)))
    print(f"true pictures: likeness {marks.ceiling:.2f}, recognised {marks.recognised['true']:.1%}, bar 95 %")
    for kind in KINDS:
        print(f"{kind:12} below them in {marks.above[kind]:6.1%}, bar 95 %; recognised {marks.recognised[kind]:6.1%}")


if __name__ == "__main__":
    main()
