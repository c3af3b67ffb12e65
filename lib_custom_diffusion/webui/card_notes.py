"""What people write beside a delta: NAME.delta.json, as the WebUI keeps it. It may be a stranger's."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

TEXTS = ("description", "notes", "activation text")
WEIGHT = "preferred weight"


def read_notes(delta: str) -> dict[str, Any]:
    """The notes beside a delta file; those of `TEXTS` are text and `WEIGHT` is a number, or they are left out.

    What other programs keep there stays as it is. Nothing if there are none or the file is damaged.
    """
    try:
        notes = json.loads(Path(delta).with_suffix(".json").read_text(encoding="utf-8"))
        json.dumps(notes, ensure_ascii=False).encode()  # half a surrogate pair can be neither shown nor written again
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(notes, dict):
        return {}
    kept = {key: value for key, value in notes.items() if key not in TEXTS or isinstance(value, str)}
    if WEIGHT in kept:
        kept[WEIGHT] = _number(kept[WEIGHT])
    return {key: value for key, value in kept.items() if value is not None}


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
