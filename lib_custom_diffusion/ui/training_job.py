"""A training as a page runs it: shown while it goes on, with copies and previews kept on the way."""

from __future__ import annotations

import datetime
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

from PIL import Image

from ..algebra.files import compress_file, compressed_text
from ..backend import Backend
from ..data.concepts import ConceptExamples, PictureSettings, encode_concept
from ..delta import SUFFIX
from ..errors import UserError
from ..storage import write_atomically
from ..tokens import embedding_pt, file_name
from ..training import checkpoints
from ..training.loop import Progress, Trainer, TrainingConfig, TrainingResult
from ..training.losslog import LOSS_CSV, LossTable
from .timings import Amounts, Circumstances, Timing, comparable_timing, keep_timing
from .training_form import TrainingForm
from .training_page import LossHistory, estimate_text, progress_html

_SETTINGS = "config.json"
_OF_PICTURES = ("concepts", "resolution", "shape", "augment", "flip", "use_alpha", "captions", "prompt", "template")
"""Settings that a training must keep to go on with, beside those that its checkpoint has."""
_TRIAL_STEPS, _TRIAL_SECONDS = 12, 20.0


class Screen(Protocol):
    """What shows a training, and where a person stops it."""

    def show(self, text: str, step: int = 0) -> None:
        """Show a text (HTML) at a step."""
        ...

    def show_picture(self, picture: Image.Image) -> None:
        """Show a preview."""
        ...

    def interrupted(self) -> bool:
        """Whether the person has asked to stop."""
        ...


@dataclass(frozen=True)
class Plan:
    """A training to be run.

    folder: where copies, previews, the loss and checkpoints go, see `training_folder`.
    resume: the checkpoint to go on from.
    """

    form: TrainingForm
    pictures: PictureSettings
    config: TrainingConfig
    folder: Path
    resume: Path | None = None
    loss_table: LossTable = LOSS_CSV
    picture_suffix: str = "png"


def training_folder(logs: Path, form: TrainingForm) -> tuple[Path, Path | None]:
    """LOGS/DATE/NAME, as the WebUI names it, cleared for a new training; or the newest such folder with a save, and
    that save, if the form says to resume.

    Raises UserError if there is no save to go on from, or if it is of other pictures.
    """
    name = form.file_name
    if not form.resume:
        folder = logs / datetime.date.today().isoformat() / name
        checkpoints.claim_folder(folder, name, resuming=False, overwrite=True)
        return folder, None
    found = [(checkpoints.resolve_checkpoint(folder, "latest"), folder) for folder in logs.glob(f"*/{name}")]
    saves = [(save, folder) for save, folder in found if save is not None]
    if not saves:
        raise UserError(
            f"there is no save of a training {name} in {logs} to go on from; leave Go on from the last save unticked"
        )
    save, folder = max(saves, key=lambda each: each[0].stat().st_mtime)
    _refuse_other_pictures(folder, form)
    checkpoints.claim_folder(folder, name, resuming=True, overwrite=False)
    return folder, save


def _refuse_other_pictures(folder: Path, form: TrainingForm) -> None:
    try:
        before = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))["form"]
    except (OSError, ValueError, KeyError):
        return
    now = json.loads(json.dumps(asdict(form)))
    changed = [name for name in _OF_PICTURES if before.get(name) != now[name]]
    if changed:
        raise UserError(
            f"the training in {folder} had other settings for {', '.join(changed)}; give the same to go on from it"
        )


class TrainingJob:
    """One training: its pictures are encoded when it is made, and `run` trains.

    Raises UserError for whatever a person can mend, and when it is interrupted before the first step.
    """

    def __init__(self, plan: Plan, backend: Backend, screen: Screen) -> None:
        self.plan, self.backend, self.screen = plan, backend, screen
        concepts = plan.form.core_concepts()
        started = time.monotonic()
        self.examples = [self._encode(number) for number in range(len(concepts))]
        self.encoding_seconds = time.monotonic() - started
        name = plan.form.file_name
        self.trainer = Trainer(
            backend, concepts, self.examples, plan.config, plan.folder, name, plan.resume, plan.loss_table
        )
        settings = {"model": backend.name, "form": asdict(plan.form), "training": asdict(plan.config)}
        write_atomically(plan.folder / _SETTINGS, (json.dumps(settings, indent=2) + "\n").encode())
        self.losses, self.saved, self.page = LossHistory(), "", ""
        self.last_preview: Image.Image | None = None
        self._clock = _StepClock()

    def _encode(self, number: int) -> ConceptExamples:
        def show(done: int, total: int) -> None:
            self.screen.show(f"Encoding pictures of concept {number + 1}: {done} of {total}")
            if self.screen.interrupted():
                raise UserError("interrupted before the first step; nothing was saved")

        form = self.plan.form
        return encode_concept(form.core_concepts()[number], self.backend, self.plan.pictures, form.seed, show)

    def run(self) -> TrainingResult:
        """Train to the end, or until the person stops it; saves in both cases."""
        return self.trainer.run(self.show, self.keep_pictures, self.screen.interrupted)

    def show(self, progress: Progress) -> None:
        """Tell the page, and keep a copy if it is time for one."""
        self._clock.at(progress.step)
        self.losses.add(progress)
        if self.plan.form.save_every and progress.step % self.plan.form.save_every == 0:
            self._keep_copy(progress.step)
        self.page = progress_html(progress, self._clock.seconds_per_step, self.losses, self.saved)
        self.screen.show(self.page, progress.step)

    def keep_pictures(self, step: int, pictures: Sequence[Image.Image]) -> None:
        """Save the previews, and show the last one."""
        folder = self.plan.folder / "images"
        folder.mkdir(parents=True, exist_ok=True)
        for picture in pictures:
            picture.save(folder / f"{self.plan.form.file_name}-{step}.{self.plan.picture_suffix}")
            self.screen.show_picture(picture)
            self.last_preview = picture

    def _keep_copy(self, step: int) -> None:
        delta, folder = self.trainer.learned(), self.plan.folder / "embeddings"
        self.saved = f"{self.plan.form.file_name}-{step}{SUFFIX}"
        write_atomically(folder / self.saved, delta.to_bytes(title=self.plan.form.file_name))
        for token, vectors in delta.embeddings.items():
            name = f"{file_name(token)}-{step}"
            write_atomically(folder / f"{name}.pt", embedding_pt(vectors, name, step))

    def write_delta(self, result: TrainingResult, target: Path) -> str:
        """Write what was learned to `target`, compressed if the form says so; returns what that did, as a sentence.

        The whole of it stays in the folder of the training. What can't be compressed that far is written whole.
        """
        limit, whole = self.plan.form.limit(), result.files[0]
        if limit is not None:
            self.screen.show(f"{self.page}\n<p>Compressing what was learned…</p>", result.step)
            try:
                return compressed_text(compress_file(whole, target, limit, lambda: self.backend))
            except UserError as error:
                write_atomically(target, whole.read_bytes())
                return f"It is not compressed: {error}."
        write_atomically(target, whole.read_bytes())
        return ""

    def timing(self) -> Timing | None:
        """How long it takes on this machine; None before the second step."""
        if not self._clock.steps:
            return None
        encoded = sum(len(concept.instance) + len(concept.prior) for concept in self.examples)
        concepts = self.plan.form.core_concepts()
        amounts = replace(Amounts.of(concepts, self.backend, self.plan.pictures, self.plan.config), encoded=encoded)
        circumstances = Circumstances.of(self.backend, self.plan.config)
        return Timing.measured(circumstances, amounts, self.encoding_seconds, self._clock.seconds_per_step)


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


def estimate(plan: Plan, backend: Backend, screen: Screen, timings: Path) -> str:
    """About how long a training will take, in sentences that say what this is based on.

    timings: the file of what was measured on this machine; without anything comparable there, a few steps are trained.
    Raises UserError as `try_out` does.
    """
    known = comparable_timing(timings, Circumstances.of(backend, plan.config))
    amounts = Amounts.of(plan.form.core_concepts(), backend, plan.pictures, plan.config)
    timing = known or try_out(plan, backend, screen)
    if known is None:
        keep_timing(timings, timing)
    return estimate_text(timing, amounts, just_measured=known is None)


def try_out(plan: Plan, backend: Backend, screen: Screen) -> Timing:
    """Train a few steps for the time they take, at most for some 20 seconds and one step more, and leave nothing.

    Raises UserError as TrainingJob does, and when it is interrupted.
    """
    with tempfile.TemporaryDirectory() as folder:
        job = TrainingJob(_shortened(plan, Path(folder)), backend, screen)
        started = time.monotonic()

        def enough() -> bool:
            return screen.interrupted() or (bool(job.timing()) and time.monotonic() - started > _TRIAL_SECONDS)

        job.trainer.run(job.show, interrupted=enough)
        timing = job.timing()
    if screen.interrupted() or timing is None:
        raise UserError("interrupted before it was measured how long a step takes")
    return timing


def _shortened(plan: Plan, folder: Path) -> Plan:
    return replace(
        plan,
        form=replace(plan.form, save_every=0, preview_every=0),
        pictures=replace(plan.pictures, variants=1, num_class_images=plan.config.train_batch_size),
        config=replace(
            plan.config, max_train_steps=_TRIAL_STEPS, checkpointing_steps=_TRIAL_STEPS, validation_prompt=None,
            report_to="none",
        ),
        folder=folder,
        resume=None,
        loss_table=LOSS_CSV,
    )  # fmt: skip
