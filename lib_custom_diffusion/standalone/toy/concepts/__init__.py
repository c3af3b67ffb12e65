"""The concepts that the demo teaches: pictures that the toy has never seen the like of, and how to speak of them.

`draw` (concepts/drawing.py) made the pictures from what the generator's training world leaves out; concepts.json
describes them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class BundledConcept:
    """A concept in `folder`.

    prompts:           what to draw to see whether it was learned, with the modifier token.
    judge_captions:    what each of `prompts` should show, in words that the judge knows. They name a look or a coat
                       that is learned, because to the judge a cat in odd colours is less of a "cat": captions with
                       that word are at 0.65 from the two-faced one and at 0.77 from a plain one; with "nerak", a coat
                       of pink and cyan that has a name, they are at 0.74 (cosines).
    sentences:         what to look for in the pictures of each of `prompts`, for a layman.
    unrelated_prompts: what should look as it did before.
    known_as:          the thing of the judge's that its pictures show as it is, if they do.
    is_style:          whether it is a way of drawing, of whatever things.
    """

    name: str
    description: str
    folder: Path
    instance_prompt: str
    class_prompt: str
    modifier_token: str
    initializer_token: str
    caption_source: str
    prompts: tuple[str, ...]
    judge_captions: tuple[str, ...]
    sentences: tuple[str, ...]
    unrelated_prompts: tuple[str, ...]
    known_as: str | None = None
    is_style: bool = False


def bundled_concepts() -> dict[str, BundledConcept]:
    """The bundled concepts by name, in the order in which the demo offers them."""
    described = json.loads((FOLDER / "concepts.json").read_text(encoding="utf-8"))
    return {name: _concept(name, entry) for name, entry in described.items()}


def _concept(name: str, entry: dict[str, Any]) -> BundledConcept:
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    return BundledConcept(name=name, folder=FOLDER / name, **values)
