"""A training as a page runs it: shown while it goes on, with copies and previews kept on the way."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image

from ..backend import Backend
from ..concepts import ConceptExamples, PictureSettings, encode_concept
from ..delta import SUFFIX
from ..errors import UserError
from ..storage import write_atomically
from ..tokens import embedding_pt, file_name
from ..training import Progress, Trainer, TrainingConfig, TrainingResult
from .training_form import TrainingForm
from .training_page import LossHistory, progress_html


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


class TrainingJob:
    """One training: its pictures are encoded when it is made, and `run` trains.

    folder: where copies, previews, the loss and checkpoints go.
    picture_suffix: of the previews' files, without the dot.

    Raises UserError for whatever a person can mend, and when it is interrupted before the first step.
    """

    def __init__(
        self,
        form: TrainingForm,
        backend: Backend,
        pictures: PictureSettings,
        config: TrainingConfig,
        folder: Path,
        screen: Screen,
        picture_suffix: str = "png",
    ) -> None:
        self.form, self.folder, self.screen, self.picture_suffix = form, folder, screen, picture_suffix
        concepts = form.core_concepts()
        self.examples: list[ConceptExamples] = []
        for number, concept in enumerate(concepts, start=1):

            def show(done: int, total: int, number: int = number) -> None:
                screen.show(f"Encoding pictures of concept {number}: {done} of {total}")
                self._stop_if_interrupted()

            self.examples.append(encode_concept(concept, backend, pictures, form.seed, show))
        self._stop_if_interrupted()
        self.trainer = Trainer(backend, concepts, self.examples, config, folder, form.file_name)
        self.losses = LossHistory()
        self.saved = ""

    def run(self) -> TrainingResult:
        """Train to the end, or until the person stops it; saves in both cases."""
        self.started = time.monotonic()
        return self.trainer.run(self.show, self.keep_pictures, self.screen.interrupted)

    def show(self, progress: Progress) -> None:
        """Tell the page, and keep a copy if it is time for one."""
        self.losses.add(progress)
        if self.form.save_every and progress.step % self.form.save_every == 0:
            self._keep_copy(progress.step)
        seconds_per_step = (time.monotonic() - self.started) / progress.step
        self.screen.show(progress_html(progress, seconds_per_step, self.losses, self.saved), progress.step)

    def keep_pictures(self, step: int, pictures: Sequence[Image.Image]) -> None:
        """Save the previews, and show the last one."""
        folder = self.folder / "images"
        folder.mkdir(parents=True, exist_ok=True)
        for picture in pictures:
            picture.save(folder / f"{self.form.file_name}-{step}.{self.picture_suffix}")
            self.screen.show_picture(picture)

    def _keep_copy(self, step: int) -> None:
        delta, folder = self.trainer.learned(), self.folder / "embeddings"
        self.saved = f"{self.form.file_name}-{step}{SUFFIX}"
        write_atomically(folder / self.saved, delta.to_bytes(title=self.form.file_name))
        for token, vectors in delta.embeddings.items():
            name = f"{file_name(token)}-{step}"
            write_atomically(folder / f"{name}.pt", embedding_pt(vectors, name, step))

    def _stop_if_interrupted(self) -> None:
        if self.screen.interrupted():
            raise UserError("interrupted before the first step; nothing was saved")
