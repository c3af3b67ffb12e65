"""A training as a page shows it, and how long one will take."""

from __future__ import annotations

import html
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from PIL import Image

from ..errors import UserError
from ..training.job import Host, Report, TrainingJob
from ..training.loop import Progress
from ..training.plan import TrainingPlan, Wording
from .timings import Amounts, Circumstances, Timing, comparable_timing, keep_timing
from .training_form import PAGE
from .training_page import LossHistory, Outcome, estimate_text, memory, progress_html

_TRIAL_STEPS, _TRIAL_SECONDS = 12, 20.0


class Screen(Protocol):
    """Where a page shows a training, and where a person stops it."""

    def show(self, text: str, step: int = 0) -> None:
        """Show a text (HTML) at a step."""
        ...

    def show_picture(self, picture: Image.Image) -> None:
        """Show a preview."""
        ...

    def interrupted(self) -> bool:
        """Whether the person has asked to stop."""
        ...


class PageFace:
    """A training's face on a page: how far it is, the loss as a curve, the last copy and preview.

    name: of the delta, for pages that are opened later; "" where nobody asks.
    """

    def __init__(self, screen: Screen, wording: Wording = PAGE, name: str = "") -> None:
        self.screen, self.wording, self.name = screen, wording, name
        self.losses, self.last_copy, self.page, self.step = LossHistory(), "", "", 0
        self.clock = _StepClock()

    def preparing(self, what: str, done: int, total: int) -> None:
        """Under what is shown of the steps, if there were any."""
        count = f": {done} of {total}" if total > 1 else "…"
        ended = ". Preparing the steps…" if done == total > 1 and not self.page else ""
        told = f"{html.escape(what)}{count}{ended}"
        named = html.escape(f"Training {self.name}. ") if self.name else ""
        self.screen.show(f"{self.page}\n<p>{told}</p>" if self.page else f"{named}{told}", self.step)

    def progress(self, progress: Progress) -> None:
        self.clock.at(progress.step)
        self.losses.add(progress)
        self.step = progress.step
        self.page = progress_html(progress, self.clock.seconds_per_step, self.losses, self.last_copy, self.name)
        self.screen.show(self.page, progress.step)

    def preview(self, picture: Image.Image) -> None:
        self.screen.show_picture(picture)

    def copied(self, name: str) -> None:
        self.last_copy = name

    def interrupted(self) -> bool:
        return self.screen.interrupted()


class _StepClock:
    """Measures steps, from the end of the first, which is slower than the others."""

    def __init__(self) -> None:
        self.first: tuple[int, float] | None = None
        self.steps, self.seconds_per_step = 0, 0.0
        self._made = time.monotonic()

    def at(self, step: int) -> None:
        """A step has just ended."""
        now = time.monotonic()
        if self.first is None:
            self.first, self.seconds_per_step = (step, now), now - self._made
            return
        self.steps = step - self.first[0]
        self.seconds_per_step = (now - self.first[1]) / self.steps


def run_on_page(plan: TrainingPlan, host: Host, face: PageFace, timings: Path) -> Report:
    """Train, and remember how long it took, see `timings`. Raises UserError as `TrainingJob` does."""
    job = TrainingJob(plan, host, face)
    report = job.run()
    with suppress(UserError):  # of a full disk, or of pictures that are gone since
        timing = _timing(job, face)
        if timing is not None:
            keep_timing(timings, timing)
    return report


def outcome_of(report: Report, embeddings: list[Path], resumable: bool, preview: Image.Image | None = None) -> Outcome:
    """What a page says of a training that is over. embeddings: the words where they are to be used."""
    return Outcome(
        report.step, report.interrupted, report.delta, embeddings, report.folder, report.prompt,
        " ".join(report.notes), resumable, preview,
    )  # fmt: skip


def _timing(job: TrainingJob, face: PageFace) -> Timing | None:
    """How long it takes on this machine; None before the second step."""
    if not face.clock.steps:
        return None
    encoded = sum(len(examples.instance) + len(examples.prior) for examples in job.examples)
    amounts = replace(_amounts(job), encoded=encoded)
    circumstances = Circumstances.of(job.backend, job.plan.config())
    return Timing.measured(circumstances, amounts, job.encoding_seconds, face.clock.seconds_per_step, memory())


def _amounts(job: TrainingJob) -> Amounts:
    plan = job.plan
    return Amounts.of(plan.named_concepts(), job.backend, plan.pictures(), plan.config())


def estimate(plan: TrainingPlan, host: Host, screen: Screen, timings: Path) -> str:
    """About how long a training will take, in sentences that say what this is based on.

    timings: the file of what was measured on this machine; without anything comparable there, a few steps are trained.
    Raises UserError as `try_out` does.
    """
    with tempfile.TemporaryDirectory() as folder:
        there = Host(host.backend, Path(folder))
        asked = TrainingJob(replace(plan, resume_from_checkpoint=None), there, PageFace(screen))
        known = comparable_timing(timings, Circumstances.of(host.backend, asked.plan.config()))
        timing = known or _try_out(asked.plan, there, screen)
    if known is None:
        keep_timing(timings, timing)
    return estimate_text(timing, _amounts(asked), just_measured=known is None)


def _try_out(plan: TrainingPlan, host: Host, screen: Screen) -> Timing:
    """Train a few steps for the time they take, at most for some 20 seconds and one step more.

    Raises UserError as TrainingJob does, and when it is interrupted.
    """
    face = _Trial(screen)
    job = TrainingJob(_shortened(plan), host, face)
    job.run()
    timing = _timing(job, face)
    if screen.interrupted() or timing is None:
        raise UserError("interrupted before it was measured how long a step takes")
    return timing


class _Trial(PageFace):
    """Stops as soon as enough was measured."""

    def interrupted(self) -> bool:
        long = self.clock.first is not None and time.monotonic() - self.clock.first[1] > _TRIAL_SECONDS
        return self.screen.interrupted() or (long and self.clock.steps > 0)


def _shortened(plan: TrainingPlan) -> TrainingPlan:
    return replace(
        plan, variants=1, max_train_steps=_TRIAL_STEPS, checkpointing_steps=0, validation_steps=0, report_to="none",
        max_size="", energy=None,
    )  # fmt: skip
