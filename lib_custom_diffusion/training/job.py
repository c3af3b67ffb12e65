"""One training from the settings to the files, whatever shows it: plan, check, prepare, train, save, compress, report.

A face (command line, page, API) shows and asks; a host gives a model and folders; what is done, and what is refused, is
decided here. Nothing is deleted, drawn or encoded before all that can be refused was checked, and what a new training
replaces is replaced when its first save is on the disk.
"""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from PIL import Image

from .. import __version__
from ..algebra.files import compress_file
from ..algebra.reports import compressed_text
from ..attention import cross_attentions, projections, refuse_bypassed
from ..backend import Backend, usual_sampling
from ..data import regularization
from ..data.buckets import size_multiple
from ..data.captions import has_listing
from ..data.concepts import Concept, ConceptExamples, encode_concept
from ..data.pictures import moving_text
from ..delta import SUFFIX
from ..errors import Interrupted, NotSaved, UserError
from ..injection import parameter_shapes
from ..storage import FolderLock, printable, write_atomically
from ..text_features import read_captions
from ..tokens import embedding_file, file_name, initial_vectors
from . import checkpoints, parallel
from .checks import check_device, check_settings
from .config import rank_of
from .event_file import LOGS
from .loop import Progress, Trainer, TrainingResult
from .losslog import LOSS_CSV, LossTable, Recorder
from .place import COPIES, PREVIEWS, check_place, check_results, class_folder
from .plan import TrainingPlan, Wording
from .resuming import identity_of, refuse_other
from .unused import unused
from .words import check_words, kind_notes

logger = logging.getLogger(__name__)

SETTINGS = "config.json"
_SHOWN = 3


class Face(Protocol):
    """What shows a training, and where a person stops it."""

    wording: Wording

    def preparing(self, what: str, done: int, total: int) -> None:
        """Show how far the work before the first step, or after the last, is."""
        ...

    def progress(self, progress: Progress) -> None:
        """Show a step."""
        ...

    def preview(self, picture: Image.Image) -> None:
        """Show a picture of what is learned so far."""
        ...

    def copied(self, name: str) -> None:
        """Tell of a copy that was kept on the way."""
        ...

    def interrupted(self) -> bool:
        """Whether the person has asked to stop."""
        ...


@dataclass(frozen=True)
class Host:
    """What a training is given.

    folder:         where checkpoints, losses, settings and previews go, and the delta as it was learned.
    delta:          where the delta goes to be used, if that is elsewhere.
    copies:         whether each save on the way is also kept as a delta and embeddings of their own, NAME-STEP.
    picture_suffix: of previews.
    recorder:       makes what else is told of the training, such as a service, when the first step is near.
    logging_dir:    of TensorBoard's logs, from folder.
    """

    backend: Backend
    folder: Path
    delta: Path | None = None
    copies: bool = False
    loss_table: LossTable = LOSS_CSV
    picture_suffix: str = "png"
    recorder: Callable[[], Recorder] | None = None
    logging_dir: Path = LOGS


@dataclass(frozen=True)
class Report:
    """How a training ended, what it left, and what it used.

    delta:  the file to be used. files: the delta as it was learned, and the words, in the training's folder.
    notes:  sentences to be told: what was used and left out, what was changed of what was asked, how it was compressed.
    """

    result: TrainingResult
    delta: Path
    folder: Path
    prompt: str
    notes: tuple[str, ...] = ()
    preview: Image.Image | None = None

    @property
    def step(self) -> int:
        """Steps taken."""
        return self.result.step

    @property
    def interrupted(self) -> bool:
        """Whether it was stopped before the last step."""
        return self.result.interrupted


class TrainingJob:
    """One training. When it is made, everything that can be refused is; `run` does the work.

    Raises UserError for whatever a person can mend.
    """

    def __init__(self, plan: TrainingPlan, host: Host, face: Face) -> None:
        check_settings(plan, face.wording)
        self.host, self.face, self.backend = host, face, host.backend
        self.notes: list[str] = []
        self.plan = plan.clipped()
        if self.plan != plan:
            pictures, asked = self.plan.train_batch_size, plan.train_batch_size
            label = face.wording.label("train_batch_size")
            self.notes.append(f"{label} is {pictures} rather than {asked}, as there are {pictures} pictures.")
        self.name = plan.result_name
        self.target = host.delta or host.folder / f"{self.name}{SUFFIX}"
        self.resume = check_place(self.plan, face.wording, host.folder, host.delta, host.logging_dir)
        if self.resume is None and plan.resume_from_checkpoint is not None:
            self.notes.append("There was no save to resume from; it started at the first step.")
        self._check_model()
        if self.resume is not None:
            refuse_other(self.plan, face.wording, self.resume, identity_of(self.plan, host.folder, self.backend))
        self.replaced: list[Path] = []
        self.examples: list[ConceptExamples] = []
        self.encoding_seconds = 0.0
        self.last_preview: Image.Image | None = None
        self.notes += unused(self.plan, self.resume is not None, face.wording.label)

    def run(self) -> Report:
        """Train to the end, or until the person stops it; saves in both cases.

        Raises Interrupted when that is before the first step, and UserError as `Trainer.run` and its preparations do.
        """
        main, folder_is_new = parallel.rank() == 0, not self.host.folder.exists()
        try:
            with FolderLock(self.host.folder) if main else nullcontext():
                if main:
                    self._look_again()
                parallel.wait_for_all()
                self._prepare()
                result = self.trainer.run_locked(self._progress, self._keep_previews, self.face.interrupted)
                if not result.step:
                    raise self._interrupted()
                try:
                    return self._report(result) if main else Report(result, self.target, self.host.folder, "")
                finally:
                    parallel.wait_for_all()  # launchers end all processes soon after one that was interrupted is gone
        finally:
            if main and folder_is_new:
                with suppress(OSError):
                    self.host.folder.rmdir()  # if nothing was put there

    def _look_again(self) -> None:
        """What is in the folder now that no other training can write there; one may have ended meanwhile."""
        folder = self.host.folder
        if check_results(self.plan, self.face.wording, folder, self.host.delta) != self.resume:
            raise UserError(f"another training has saved into {folder} meanwhile; start again to resume from there")
        goes_on_here = self.resume is not None and checkpoints.is_in(self.resume, folder)
        self.replaced = [] if goes_on_here else checkpoints.results_in(folder, self.name)

    def _prepare(self) -> None:
        """Draw or pick the class pictures that there are to be, encode all pictures, and make the trainer."""
        with ExitStack() as undone:
            recorder = None
            if parallel.rank() == 0 and self.host.recorder is not None:
                recorder = self.host.recorder()
                undone.callback(recorder.close)
            concepts = [self._with_class_pictures(*each) for each in enumerate(self.plan.named_concepts(), start=1)]
            identity = identity_of(self.plan, self.host.folder, self.backend)
            if self.resume is not None:
                refuse_other(self.plan, self.face.wording, self.resume, identity)
            self._encode(concepts)
            self.trainer = Trainer(
                self.backend, concepts, self.examples, self.plan.config(), self.host.folder, self.name, self.resume,
                self.host.loss_table, identity, allow_changes=True, on_save=self._saved, recorder=recorder,
                logging_dir=self.host.logging_dir,
            )  # fmt: skip
            undone.pop_all()  # the trainer closes it

    def _encode(self, concepts: Sequence[Concept]) -> None:
        started = time.monotonic()
        self.examples = [
            encode_concept(
                concept, self.backend, self.plan.pictures(), self.plan.seed,
                partial(self._preparing, f"Encoding pictures of concept {number}"),
            )
            for number, concept in enumerate(concepts, start=1)
        ]  # fmt: skip
        self.encoding_seconds = time.monotonic() - started

    # What is refused.

    def _check_model(self) -> None:
        plan, backend, label = self.plan, self.backend, self.face.wording.label
        check_device(plan, backend.device, self.face.wording)
        refuse_bypassed(cross_attentions(backend.unet))
        layers = projections(backend.unet, plan.freeze_model, plan.train_blocks)
        multiple, resolution = size_multiple(backend.unet), plan.resolution or backend.resolution
        if resolution % multiple:
            near = max(1, round(resolution / multiple)) * multiple
            raise UserError(
                f"{label('resolution')} must be a multiple of {multiple} pixels for the model {backend.name}, which"
                f" halves pictures so often, not {resolution}; the nearest is {near}"
            )
        config = plan.config()
        tokens = config.modifier_token, config.initializer_token
        vectors = initial_vectors(backend, *tokens, plan.vectors_per_token)
        if self.resume is not None:
            own = {f"embedding.{token}": tuple(each.shape) for token, each in vectors.items()}
            shapes = {**own, **parameter_shapes(layers, rank_of(config, backend.architecture))}
            checkpoints.check_shapes(checkpoints.shapes_in(self.resume), shapes)
        if plan.prior != "none" and not plan.prior_captions:
            read_captions(backend.captions)
        on_device = {token: each.to(backend.device) for token, each in vectors.items()}
        captions = [plan.captions_of(concept) for concept in plan.named_concepts()]
        self.notes += [f"{told[:1].upper()}{told[1:]}." for told in check_words(backend, on_device, captions)]
        self.notes += kind_notes(backend, plan, self.face.wording.of_concept)
        if plan.report_to not in ("none", "tensorboard") and self.host.recorder is None:
            raise UserError(f"{label('report_to')} {plan.report_to} is for the command line; use tensorboard or none")

    # What is prepared.

    def _preparing(self, what: str, done: int, total: int) -> None:
        self.face.preparing(what, done, total)
        if self.face.interrupted():
            raise self._interrupted()

    def _interrupted(self) -> Interrupted:
        if self.resume is not None:
            return Interrupted(
                "interrupted before the first step; the last save is unchanged, and can still be resumed from"
            )
        return Interrupted("interrupted before the first step; nothing was saved or replaced")

    def _with_class_pictures(self, number: int, concept: Concept) -> Concept:
        """The concept with the folder of its class pictures; drawn or picked first where need be."""
        folder = class_folder(self.plan, self.host.folder, number, concept)
        if folder is None:
            return replace(concept, class_data_dir=None)
        if parallel.rank() == 0:
            self._make_class_pictures(concept, folder)
        parallel.wait_for_all()
        return replace(concept, class_data_dir=folder)

    def _make_class_pictures(self, concept: Concept, folder: Path) -> None:
        plan, backend = self.plan, self.backend
        if plan.real_prior:
            if self.resume is not None and has_listing(folder) and not plan.allow_changes:
                return  # those of the save, whatever there is to pick from by now
            assert concept.class_data_dir is not None
            picked = regularization.pick(
                backend, concept.class_data_dir, concept.class_prompt, plan.num_class_images or 200,
                partial(self._preparing, f"Comparing captions with {concept.class_prompt}"),
            )  # fmt: skip
            regularization.write_listing(picked, folder)
        elif plan.num_class_images and not folder.is_file():
            regularization.generate(
                backend, concept.class_prompt, folder, plan.num_class_images,
                replace(usual_sampling(backend.architecture), batch_size=plan.sample_batch_size), plan.seed,
                partial(self._preparing, f"Drawing {concept.class_prompt}"),
            )  # fmt: skip

    # What happens on the way.

    def _progress(self, progress: Progress) -> None:
        self.face.progress(progress)

    def _after_save(self, step: int) -> None:
        """The first one replaces what there was; copies are kept if the host wants them."""
        if self.trainer.saves == 1:
            checkpoints.remove([path for path in self.replaced if path.name != checkpoints.name_of(step)])
        if self.trainer.saves == 1 or not (self.host.folder / SETTINGS).exists():  # gone with the folder meanwhile
            self._write_settings()
        every = self.plan.checkpointing_steps
        if self.host.copies and every and step % every == 0:
            self._keep_copy(step)

    def _saved(self, step: int) -> None:
        """A save is on the disk; what else cannot be written, the disk being full, costs no training."""
        try:
            self._after_save(step)
        except UserError as error:
            logger.warning("%s. The training continues", error)

    def _write_settings(self) -> None:
        settings = {
            "model": self.backend.name, "checkpoint": self.backend.checkpoint_hash, "library_version": __version__,
            **self.plan.to_json(),
        }  # fmt: skip
        write_atomically(self.host.folder / SETTINGS, (json.dumps(settings, indent=2) + "\n").encode())

    def _keep_copy(self, step: int) -> None:
        delta, folder = self.trainer.learned(), self.host.folder / COPIES
        name = f"{self.name}-{step}{SUFFIX}"
        write_atomically(folder / name, delta.to_bytes(title=self.name))
        for token, vectors in delta.embeddings.items():
            file, content = embedding_file(vectors, f"{file_name(token)}-{step}", step, delta.provenance.architecture)
            write_atomically(folder / file, content)
        self.face.copied(name)

    def _keep_previews(self, step: int, pictures: Sequence[Image.Image]) -> None:
        """Show the previews, and save them as NAME-STEP, or NAME-STEP-NUMBER if there are several."""
        folder = self.host.folder / PREVIEWS
        for number, picture in enumerate(pictures):
            stem = f"{self.name}-{step}" + (f"-{number}" if len(pictures) > 1 else "")
            self.last_preview = picture
            self.face.preview(picture)
            content = io.BytesIO()
            picture.save(content, Image.registered_extensions()[f".{self.host.picture_suffix.lower()}"])
            write_atomically(folder / f"{stem}.{self.host.picture_suffix}", content.getvalue())

    # What comes of it.

    def _report(self, result: TrainingResult) -> Report:
        notes = [*self.used(), *self.notes, *self._deliver(result)]
        if self.trainer.unseen:
            notes.append(f"T{self.trainer.unseen[1:]}.")
        prompt = f"{self.plan.prompt_to_try} <delta:{self.name}:1>"
        return Report(result, self.target, self.host.folder, prompt, tuple(map(printable, notes)), self.last_preview)

    def used(self) -> list[str]:
        """What was trained on, and what was left out, as sentences."""
        told = []
        for number, examples in enumerate(self.examples, start=1):
            of = f" of concept {number}" if len(self.examples) > 1 else ""
            for what, found, left_out in zip(("picture", "class picture"), examples.found, examples.left_out):
                if found:
                    told.append(_used(what, of, found, left_out))
            told += filter(None, [moving_text([path.name for path in examples.moving])])
        return told

    def _deliver(self, result: TrainingResult) -> list[str]:
        """Put the delta where it is used, compressed if that was asked for; says what that did.

        As it was learned it stays in the training's folder, or in its last save. What can't be made so small is kept
        whole.
        """
        limit, learned = self.plan.limit, result.files[0]
        notes = []
        if limit is not None:
            whole = learned
            if whole == self.target:
                whole = self.host.folder / checkpoints.name_of(result.step) / whole.name
            self.face.preparing("Compressing what was learned", 0, 1)
            try:
                return [compressed_text(compress_file(whole, self.target, limit, lambda: self.backend))]
            except UserError as error:
                notes.append(f"It is not compressed: {error}.")
        if learned != self.target:
            try:
                write_atomically(self.target, learned.read_bytes())
            except NotSaved as error:
                raise UserError(f"{error}. What was learned is in {learned}") from error
        return notes


def _used(what: str, of: str, found: int, left_out: dict[Path, str]) -> str:
    all_found, used = f"{found} {what}{'' if found == 1 else 's'}{of}", found - len(left_out)
    if not left_out:
        return f"{all_found} {'was' if used == 1 else 'were'} used."
    named = [f"{printable(path.name)} ({reason})" for path, reason in list(left_out.items())[:_SHOWN]]
    more = len(left_out) - _SHOWN
    return (
        f"{used} of {all_found} {'was' if used == 1 else 'were'} used; left out: {', '.join(named)}"
        f"{f' and {more} more' if more > 0 else ''}."
    )
