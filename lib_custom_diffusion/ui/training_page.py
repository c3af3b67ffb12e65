"""What a page says of a training: how far it is, how it ended, what went wrong."""

from __future__ import annotations

import datetime
import html
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..training import Progress
from .loss_plot import loss_svg

OUT_OF_MEMORY = (
    "The GPU's memory is too small for this. What was saved before is kept. Train fewer pictures at a time,"
    " tick Save memory, or use a smaller picture size."
)


@dataclass(frozen=True)
class Outcome:
    """How a training ended, and what it left: the delta and the words where the face looks for them."""

    step: int
    interrupted: bool
    delta: Path
    embeddings: list[Path]
    log_directory: Path
    prompt: str


@dataclass
class LossHistory:
    """The losses that a running training has told of, as (step, mean since the one before)."""

    points: list[tuple[int, float]] = field(default_factory=list)

    def add(self, progress: Progress) -> None:
        """Take note of a loss, if there is one."""
        if progress.loss == progress.loss:
            self.points.append((progress.step, progress.loss))


def progress_html(progress: Progress, seconds_per_step: float, losses: LossHistory, saved: str) -> str:
    """A table of how far a training is, and the loss so far as a curve. saved: the name of the last copy, or ""."""
    left = seconds_per_step * (progress.total_steps - progress.step)
    rows = {
        "Step": f"{progress.step} of {progress.total_steps}",
        "Time left": str(datetime.timedelta(seconds=round(left))),
        "Seconds a step": f"{seconds_per_step:.2f}",
        "Loss": f"{losses.points[-1][1]:.4f}" if losses.points else "…",
        "Memory": memory(),
        "Last copy": saved,
    }
    table = "".join(f"<tr><th>{key}</th><td>{html.escape(value)}</td></tr>" for key, value in rows.items() if value)
    curve = loss_svg(losses.points, progress.total_steps)
    # The WebUI writes a text of one line onto its progress bar as well; this is none for it.
    return f'<div class="cd-progress">\n<table>{table}</table>{curve}</div>'


def outcome_html(done: Outcome) -> str:
    """How a training ended, and where its files are."""
    state = "Interrupted and saved" if done.interrupted else "Finished"
    return (
        f"<p>{state} after {done.step} steps.</p>{_listed([done.delta, *done.embeddings])}"
        f"<p>Copies, previews and the loss are in <code>{html.escape(str(done.log_directory))}</code>.</p>"
    )


def error_html(error: Exception | str) -> str:
    """A sentence that says what went wrong."""
    return f"<div class='error'>{html.escape(str(error))}</div>"


def memory() -> str:
    """How much memory the training takes; "" where that cannot be told."""
    if torch.cuda.is_available():
        return f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB on the GPU at most"
    with suppress(ImportError):
        import psutil  # the WebUI has it; only people without a GPU need it

        return f"{psutil.Process().memory_info().rss / 1e9:.1f} GB"
    return ""


def _listed(paths: Sequence[Path]) -> str:
    files = "".join(f"<li><code>{html.escape(str(path))}</code></li>" for path in paths)
    return f"<ul class='cd-files'>{files}</ul>"
