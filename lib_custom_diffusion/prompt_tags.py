"""What stands in `<delta:NAME:…>` after the name, in every host's prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .errors import UserError

MOST_WEIGHT = 1e6
"""Below which weights are, that the numbers of a picture may stay numbers."""


def weight_of(arguments: Sequence[object]) -> float:
    """The weight that a tag's arguments say: `0.8` or, as the WebUI's Lora has it, `unet=0.8`; 1 without any.

    `unet=` counts where both are given. Raises UserError for a weight that is no number, for more than one, and for
    other names: a delta acts on the UNet, and what its words say to the text encoder has no weight.
    """
    positional = [str(each).strip() for each in arguments if "=" not in str(each)]
    named = dict(str(each).split("=", 1) for each in arguments if "=" in str(each))
    text = named.pop("unet", positional[0] if positional else "") or "1"
    if named:
        name = next(iter(named))
        raise UserError(f"{name}= has no meaning for a delta, which only acts on the UNet; write unet=0.8 or just 0.8")
    if len(positional) > 1:
        raise UserError(f"it has several weights ({', '.join(positional)}); write one")
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise UserError(f"its weight should be a number, not {text!r}")
    if abs(weight) >= MOST_WEIGHT:
        raise UserError(f"its weight should be below {MOST_WEIGHT:,.0f}, not {text!r}")
    return weight
