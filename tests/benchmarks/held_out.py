"""Twelve more concepts for fidelity.py, of many classes: things and coats that the toy model has never seen.

Each is taught as a particular one of what it resembles. Their pictures are drawn when they are asked for, which needs
the font (world.py).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lib_custom_diffusion.standalone.toy import world
from lib_custom_diffusion.standalone.toy.concepts import BundledConcept
from lib_custom_diffusion.standalone.toy.looks import HELD_OUT_COATS

PICTURES = (
    ("white", "medium", None), ("orange", "large", None), ("purple", "medium", "right"), ("black", "medium", None),
    ("gray", "small", "left"),
)  # fmt: skip
"""Background, size and place of each of a concept's pictures."""
GROUNDS = ("yellow", "pink", "green")
"""That none of them has, to ask for."""
BESIDE = "tree"
"""What the last prompt asks for as well."""


@dataclass(frozen=True)
class HeldOut:
    """What is taught, in which of `HELD_OUT_COATS` if in any, as a particular one of which class."""

    thing: str
    of_class: str
    coat: str | None = None

    @property
    def name(self) -> str:
        """As the command line calls it."""
        return f"{self.coat}-{self.thing}" if self.coat else self.thing


_COATS = iter(HELD_OUT_COATS)
HELD_OUT = {
    each.name: each
    for each in (
        HeldOut("wolf", "fox"), HeldOut("lobster", "crab"), HeldOut("prince", "man"), HeldOut("violin", "guitar"),
        HeldOut("scooter", "bicycle"), HeldOut("tulip", "rose"),
        *(HeldOut(thing, thing, next(_COATS)) for thing in ("dog", "owl", "woman", "drum", "car", "house")),
    )
}  # fmt: skip


def held_out_concept(name: str, folder: Path) -> BundledConcept:
    """One of `HELD_OUT`, its pictures drawn into `folder` if they are not there.

    Raises FileNotFoundError without the font.
    """
    concept = HELD_OUT[name]
    folder.mkdir(parents=True, exist_ok=True)
    rng, coat = random.Random(name), HELD_OUT_COATS[concept.coat] if concept.coat else None
    for number, (colour, size, place) in enumerate(PICTURES, start=1):
        path, scene = folder / f"{number}.png", world.scene_of(rng, concept.thing, colour, size, place, None, coat)
        if not path.exists():
            world.draw(scene).save(path)
    category = world.with_article(world.CATEGORY[concept.thing])
    first, second, third = GROUNDS

    def prompts(subject: str, small: str, of_it: str) -> tuple[str, ...]:
        return (
            f"{subject} on a {first} background", f"photo of {small} on a {second} background",
            f"{of_it} and a {BESIDE} on a {third} background",
        )  # fmt: skip

    taught = f"<new1> {concept.of_class}"
    return BundledConcept(
        name=name, description="", folder=folder, instance_prompt=f"photo of a {taught}",
        class_prompt=f"photo of {world.with_article(concept.of_class)}", modifier_token="<new1>",
        initializer_token="ktn", caption_source="prompt", known_as=None if concept.coat else concept.thing,
        prompts=prompts(f"a {taught}", f"a small {taught}", f"a {taught}"),
        judge_captions=prompts(category, f"a small {world.CATEGORY[concept.thing]}", category),
        sentences=("", "", ""), unrelated_prompts=("a cup on a white background",),
    )  # fmt: skip


def true_drawings(concept: BundledConcept, seeds: Sequence[int]) -> list[tuple[str, Image.Image]]:
    """What a perfect model would draw of one of `HELD_OUT`: each of its prompts, and a drawing of it for each seed.

    Raises FileNotFoundError without the font.
    """
    thing, coat = HELD_OUT[concept.name].thing, HELD_OUT_COATS.get(HELD_OUT[concept.name].coat or "")
    first, second, third = GROUNDS
    drawn = []
    for seed in seeds:
        rng = random.Random(f"{concept.name}/{seed}")
        scenes = (
            world.scene_of(rng, thing, first, coat=coat), world.scene_of(rng, thing, second, "small", coat=coat),
            world.pair_of(rng, thing, BESIDE, third, coats=(coat, None)),
        )  # fmt: skip
        drawn += [(prompt, world.draw(scene)) for prompt, scene in zip(concept.prompts, scenes, strict=True)]
    return drawn
