"""What a page says of a training: how far it is, how it ended, what went wrong."""

from __future__ import annotations

import base64
import datetime
import html
import io
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image

from ..training.loop import Progress
from .loss_plot import loss_svg
from .timings import Amounts, Timing

OUT_OF_MEMORY = (
    "The GPU's memory is too small for this. What was saved before is kept. Lower the batch size or the width and"
    " height; for a training, tick Gradient checkpointing in Advanced."
)


_RESUMABLE = "Press Resume to continue from here, or later tick Resume from the last save in Advanced."


@dataclass(frozen=True)
class Outcome:
    """How a training ended, and what it left: the delta and the words where the face looks for them.

    note: what is to be said of the delta, "" for nothing. resumable: whether it can go on from here.
    preview: the last one, where the page does not show it otherwise.
    """

    step: int
    interrupted: bool
    delta: Path
    embeddings: list[Path]
    log_directory: Path
    prompt: str
    note: str = ""
    resumable: bool = False
    preview: Image.Image | None = None


@dataclass
class LossHistory:
    """The losses that a running training has told of, as (step, mean since the one before)."""

    points: list[tuple[int, float]] = field(default_factory=list)

    def add(self, progress: Progress) -> None:
        """Take note of a loss, if there is one."""
        if progress.loss == progress.loss:
            self.points.append((progress.step, progress.loss))


def progress_html(progress: Progress, seconds_per_step: float, losses: LossHistory, saved: str, name: str) -> str:
    """A table of how far a training is, and the loss so far as a curve.

    saved: the name of the last copy. name: of the delta. Either may be "".
    """
    left = seconds_per_step * (progress.total_steps - progress.step)
    rows = {
        "Delta": name,
        "Step": f"{progress.step} of {progress.total_steps}",
        "Time left": str(datetime.timedelta(seconds=round(left))),
        "Seconds per step": f"{seconds_per_step:.2f}",
        "Loss": f"{losses.points[-1][1]:.4f}" if losses.points else "…",
        "Memory": memory(),
        "Last copy": saved,
    }
    table = "".join(f"<tr><th>{key}</th><td>{html.escape(value)}</td></tr>" for key, value in rows.items() if value)
    curve = loss_svg(losses.points, progress.total_steps)
    return f'<div class="cd-progress"><table>{table}</table>{curve}</div>'


def outcome_html(done: Outcome) -> str:
    """How a training ended, and where its files are."""
    state = "Interrupted and saved" if done.interrupted else "Finished"
    notes = [done.note, _RESUMABLE if done.resumable else ""]
    preview = picture_html(done.preview, "the last preview") if done.preview else ""
    logs = html.escape(str(done.log_directory.absolute()))
    files = [("Delta", done.delta), *(("Embedding", path) for path in done.embeddings)]
    return (
        f"<p>{state} after {done.step} steps.</p>{_listed(files)}"
        f"<p>{' '.join(html.escape(note) for note in notes if note)}</p>"
        f"<p>Copies, previews and losses are in <code>{logs}</code>.</p>{preview}"
    )


def picture_html(picture: Image.Image, alt: str = "") -> str:
    """A picture that is in the page itself, as PNG."""
    content = io.BytesIO()
    picture.convert("RGB").save(content, "png", optimize=True)
    return f'<img alt="{alt}" src="data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}">'


def estimate_text(timing: Timing, amounts: Amounts, just_measured: bool) -> str:
    """About how long a training will take, and how that is known."""
    encoding, training = timing.seconds(amounts)
    basis = "a few steps taken just now" if just_measured else f"a training of {timing.day} on this machine"
    return (
        f"About {duration(encoding + training)}: {duration(encoding)} to prepare {amounts.encoded} versions of the"
        f" pictures, {duration(training)} for {amounts.steps} steps. Estimated from {basis} and the number and size"
        " of the pictures; previews take additional time."
    )


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def error_html(error: Exception | str) -> str:
    """A sentence that says what went wrong, with a capital letter unless it begins with somebody's word or a path."""
    told = str(error)
    first = re.split(r"[ ,]", told, maxsplit=1)[0]
    capital = told[:1].upper() + told[1:] if first in _FIRST_WORDS else told
    return f"<div class='error'>{html.escape(capital)}</div>"


_FIRST_WORDS = {
    "a", "an", "another", "at", "blending", "cannot", "captions", "choose", "compression", "concept", "delta",
    "each", "for", "give", "how", "in", "interrupted", "it", "its", "keys", "leave", "neither", "no", "none",
    "nothing", "of", "only", "regularization", "say", "target", "the", "there", "these", "this", "training",
    "unknown", "width", "without", "words", "write",
}  # fmt: skip
"""With which our own sentences begin: what begins otherwise may be a word that is learned, a value or a path."""


def memory() -> str:
    """How much memory the training takes; "" where that cannot be told."""
    if torch.cuda.is_available():
        return f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB on the GPU at most"
    with suppress(ImportError):
        import psutil  # the WebUI has it; only people without a GPU need it

        return f"{psutil.Process().memory_info().rss / 1e9:.1f} GB"
    return ""


def _listed(files: Sequence[tuple[str, Path]]) -> str:
    lines = "".join(f"<li>{what}: <code>{html.escape(str(path.absolute()))}</code></li>" for what, path in files)
    return f"<ul class='cd-files'>{lines}</ul>"
