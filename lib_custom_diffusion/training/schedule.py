"""Learning rates over the steps of a training."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import UserError

SHAPES = ("constant", "linear", "cosine")
_MOST = 1000.0
"""Of a rate; what is more is a slip of the pen, and would be found out when all is lost."""


@dataclass(frozen=True)
class Schedule:
    """A learning rate for every optimizer step.

    pieces: (rate, last step it holds for) in order; the last piece holds to the end.
    shape:  what multiplies them after the warm-up: "constant" 1, "linear" 1 → 0, "cosine" half a cosine 1 → 0.
    """

    pieces: tuple[tuple[float, float], ...]
    shape: str = "constant"
    warmup_steps: int = 0

    @classmethod
    def parse(cls, text: str | float, shape: str = "constant", warmup_steps: int = 0, scale: float = 1.0) -> Schedule:
        """Read a rate ("1e-5"), or the WebUI's syntax "1e-5:100, 5e-6:1000, 1e-6": RATE:LAST_STEP pieces.

        `scale` multiplies every rate. Raises UserError where the text says nothing of the kind.
        """
        if shape not in SHAPES:
            raise UserError(f"unknown learning-rate schedule {shape!r}; choose one of {', '.join(SHAPES)}")
        pieces: list[tuple[float, float]] = []
        for piece in str(text).split(","):
            rate_text, _, until_text = piece.partition(":")
            try:
                rate, until = float(rate_text), float(int(until_text)) if until_text.strip() else math.inf
            except ValueError:
                raise UserError(
                    f"{text!r} is not a learning rate; write 1e-5, or 1e-5:100, 5e-6 to change it"
                ) from None
            if not 0 <= rate <= _MOST:
                raise UserError(f"a learning rate is 0 or more and at most {_MOST:g}, not {rate_text.strip()}")
            if until < 1:
                raise UserError(f"{text!r} has a rate until step {until:g}; the first step is 1")
            if pieces and pieces[-1][1] >= until:
                raise UserError(f"the steps in {text!r} must increase, and only the last rate may have none")
            pieces.append((rate * scale, until))
        return cls(tuple(pieces), shape, warmup_steps)

    def rate_at(self, step: int, total_steps: int) -> float:
        """The rate for optimizer step `step` of `total_steps`, 0 to total_steps - 1."""
        rate = next((rate for rate, until in self.pieces if step < until), self.pieces[-1][0])
        if step < self.warmup_steps:
            return rate * (step + 1) / (self.warmup_steps + 1)
        done = (step - self.warmup_steps) / max(1, total_steps - self.warmup_steps)
        if self.shape == "linear":
            return rate * (1.0 - done)
        if self.shape == "cosine":
            return rate * 0.5 * (1.0 + math.cos(math.pi * done))
        return rate
