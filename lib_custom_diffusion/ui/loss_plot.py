"""The loss of a training as a picture, in SVG, so that any page can show it."""

from __future__ import annotations

import math
from collections.abc import Sequence

WIDTH, HEIGHT, LEFT, BOTTOM, MARGIN = 560, 200, 52, 20, 6
SMOOTHING = 0.9
"""Share of the past in the smoothed curve, an exponential mean corrected for its start."""


def smoothed(losses: Sequence[float]) -> list[float]:
    """Exponential mean of the losses, without the pull of its start towards zero."""
    result, mean = [], 0.0
    for count, loss in enumerate(losses, start=1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        result.append(mean / (1 - SMOOTHING**count))
    return result


def loss_svg(points: Sequence[tuple[int, float]], total_steps: int) -> str:
    """Raw and smoothed loss over (step, loss) points; "" before there are two."""
    points = [(step, loss) for step, loss in points if math.isfinite(loss)]
    if len(points) < 2:
        return ""
    losses = [loss for _, loss in points]
    top = max(losses) or 1.0

    def line(values: Sequence[float], kind: str) -> str:
        drawn = " ".join(
            f"{LEFT + (WIDTH - LEFT - MARGIN) * step / total_steps:.1f},"
            f"{MARGIN + (HEIGHT - BOTTOM - MARGIN) * (1 - value / top):.1f}"
            for (step, _), value in zip(points, values, strict=True)
        )
        return f'<polyline class="{kind}" points="{drawn}"/>'

    floor = HEIGHT - BOTTOM
    return (
        f'<svg class="cd-loss" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="loss over steps">'
        f'<path class="axes" d="M{LEFT} {MARGIN}V{floor}H{WIDTH - MARGIN}"/>'
        f'<text x="{LEFT - 4}" y="{MARGIN + 9}" text-anchor="end">{top:.3g}</text>'
        f'<text x="{LEFT - 4}" y="{floor}" text-anchor="end">0</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 5}">0</text>'
        f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - 5}" text-anchor="end">{total_steps} steps</text>'
        f"{line(losses, 'raw')}{line(smoothed(losses), 'smooth')}</svg>"
    )
