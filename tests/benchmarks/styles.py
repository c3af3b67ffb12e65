"""Prompts that ask for a held-out concept in another style: does it keep its shape, and does the style come?"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from held_out import HELD_OUT
from PIL import Image

from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.injection import Injection
from lib_custom_diffusion.standalone.demo import SAMPLING
from lib_custom_diffusion.standalone.diffusers_backend import DiffusersBackend
from lib_custom_diffusion.standalone.toy import world
from lib_custom_diffusion.standalone.toy.judge import Judge
from lib_custom_diffusion.standalone.toy.looks import LOOKS

GROUND = "yellow"


def styled(
    judge: Judge, backend: DiffusersBackend, name: str, delta: Delta | None, seeds: Sequence[int]
) -> dict[str, Any]:
    """Draw one of `HELD_OUT` in each style that the toy knows, and count what came out right.

    The thing is right if, of true drawings of all things in that style, one of it is nearest to the picture by the
    judge's embedding of identities; the style, if the judge sees it. Needs the font (world.py).

    Args:
        delta: what was learned; without one the class is asked for by its own name, and to be drawn is the class.
    """
    concept = HELD_OUT[name]
    wanted = concept.thing if delta else concept.of_class
    subject = f"a <new1> {concept.of_class}" if delta else world.with_article(concept.of_class)
    asked = [(f"{subject} in the style of {look} art on a {GROUND} background", look, seed)
             for look in LOOKS for seed in seeds]  # fmt: skip
    vectors = {token: each.float() for token, each in delta.embeddings.items()} if delta else {}
    with torch.no_grad(), Injection(backend.unet, [(delta, 1.0)] if delta else []):
        pictures = backend.generate([each[0] for each in asked], [each[2] for each in asked], SAMPLING, vectors)
    things = [_nearest(judge, picture, look) == wanted for picture, (_, look, _) in zip(pictures, asked, strict=True)]
    styles = [
        judge.in_style([picture], _drawings(look)[1])[0] for picture, (_, look, _) in zip(pictures, asked, strict=True)
    ]
    return {
        "asked": len(asked), "thing": sum(things), "style": sum(styles),
        "both": sum(map(all, zip(things, styles, strict=True))),
    }  # fmt: skip


@cache
def _drawings(look: str) -> tuple[list[str], list[Image.Image]]:
    things = [*world.THINGS, *world.HELD_OUT_THINGS]
    rng = random.Random(look)
    return things, [world.draw(world.scene_of(rng, thing, GROUND, look=look)) for thing in things]


def _nearest(judge: Judge, picture: Image.Image, look: str) -> str:
    things, drawings = _drawings(look)
    likeness = judge.embed_identities([picture]) @ judge.embed_identities(drawings).T
    return things[int(likeness.argmax())]
