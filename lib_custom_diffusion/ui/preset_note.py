"""What is said of a preset: what it is for, and the time and memory that it takes on this machine."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.concepts import PictureSettings
from ..data.pictures import find_pictures
from ..errors import UserError
from ..storage import typed_path
from .timings import Amounts, read_timings
from .training_page import duration

PURPOSES = {
    "thing or pet": "A thing or a pet, from 4 to 10 pictures.",
    "style": "A way of drawing or painting, from 5 to 20 pictures.",
    "two things together": "Two concepts (see Advanced) that can appear in one picture.",
    "face": "A face, from 15 to 20 pictures; trains more layers.",
    "toy model: thing": "A thing for the toy model, from 4 to 10 pictures.",
}
"""What each recipe is for."""
_USUAL_PICTURES, _BATCH = 6, 4


@dataclass(frozen=True)
class Loaded:
    """What is known of the model that is loaded: its architecture, and the side of its pictures in pixels."""

    architecture: str
    resolution: int


def preset_note(preset: str, recipe: Mapping[str, Any], folder: str, loaded: Loaded | None, timings: Path) -> str:
    """HTML. folder: of the pictures, "" for none yet. timings: the file of what was measured on this machine."""
    return f"<p class='cd-note'>{html.escape(f'{PURPOSES[preset]} {_cost(recipe, folder, loaded, timings)}')}</p>"


def amended(recipe: Mapping[str, Any], steps: Any = None, batch: Any = None, layers: Any = None) -> dict[str, Any]:
    """The recipe with what the form has by now; None and 0 are nothing entered."""
    entered = {"max_train_steps": steps, "train_batch_size": batch, "freeze_model": layers}
    return {**recipe, **{name: value for name, value in entered.items() if value}}


def _cost(recipe: Mapping[str, Any], folder: str, loaded: Loaded | None, timings: Path) -> str:
    steps = recipe["max_train_steps"]
    known = [
        timing
        for timing in read_timings(timings)
        if loaded
        and timing.circumstances.architecture == loaded.architecture
        and timing.circumstances.freeze_model == recipe["freeze_model"]
    ]
    if not known or loaded is None:
        return f"{steps} steps; how long they take is known after the first training on this machine."
    pictures = _count(folder)
    amounts = Amounts(
        pictures * PictureSettings().drawn_variants,
        steps,
        min(recipe.get("train_batch_size", _BATCH), pictures),
        loaded.resolution**2 / 1e6,
    )
    memory = f" Memory: {known[-1].memory}." if known[-1].memory else ""
    return f"About {duration(sum(known[-1].seconds(amounts)))} for {steps} steps on this machine.{memory}"


def _count(folder: str) -> int:
    try:
        return len(find_pictures(typed_path(folder))) if folder.strip() else _USUAL_PICTURES
    except UserError:
        return _USUAL_PICTURES
