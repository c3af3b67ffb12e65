"""The trainings that pages have asked for, and what is shown of them."""

from __future__ import annotations

import html
import itertools
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import gradio as gr
from PIL import Image

from ...errors import UserError
from ...ui.training_page import Outcome, error_html, outcome_html
from .jobs import Job


class JobScreen:
    """What the page shows of a running job; the job's thread writes it, the page's reads it."""

    def __init__(self, job: Job[Any]) -> None:
        self.job = job
        self.text = ""
        self.picture: Image.Image | None = None

    def show(self, text: str, step: int = 0) -> None:
        self.text = text
        self.job.went_on()

    def show_picture(self, picture: Image.Image) -> None:
        self.picture = picture

    def interrupted(self) -> bool:
        return self.job.interrupted.is_set()


@dataclass(frozen=True)
class Training:
    """A training that a page has asked for. screens: what shows it, once it is its turn."""

    job: Job[Outcome]
    screens: list[JobScreen]

    @property
    def picture(self) -> Image.Image | None:
        """The last preview."""
        return self.screens[0].picture if self.screens else None


class Asked:
    """The trainings that pages have asked for, with what was entered for them: the last, and what came since."""

    def __init__(self) -> None:
        self._trainings: list[tuple[Job[Outcome], list[Any]]] = []

    def add(self, job: Job[Outcome], values: list[Any]) -> None:
        """A page has asked for one; values: of the form."""
        self._trainings = [*self.last(), (job, values)]

    def last(self) -> list[tuple[Job[Outcome], list[Any]]]:
        """The last that was not refused; none if there is none."""
        return [each for each in self._trainings if not each[0].refused][-1:]

    def running(self) -> str:
        """Why nothing can be asked for: a training that has not ended; "" if there is none."""
        name = next((job.name for job, _ in self._trainings if not job.finished), "")
        return name and f"{name[:1].upper()}{name[1:]} has not ended yet; wait for it, or press Interrupt and save"


def shown_outcome(job: Job[Outcome]) -> str | None:
    """What is shown of a training that is over; None if it failed."""
    with suppress(UserError):
        return outcome_html(job.result())
    return None


def is_done(job: Job[Outcome]) -> bool:
    """Whether a training is over that came to its end, neither interrupted nor broken off."""
    with suppress(UserError):
        return job.finished and not job.result().interrupted
    return False


def watched(training: Training) -> Iterator[tuple[Any, ...]]:
    """What to show of a training until it is over.

    Each time: estimate or error, progress, preview, outcome, prompt to try, and the buttons that send it, and resume.
    """
    same, hidden = gr.update(), gr.update(visible=False)
    yield "", "", same, same, same, same, same
    picture, begun = None, False
    for waiting in itertools.chain(training.job.watch(), [""]):
        if training.job.begun and not begun:  # what came of the one before stays while this one may be refused
            yield same, same, hidden, "", hidden, hidden, hidden
            begun = True
        text = training.screens[0].text if training.screens else ""
        new = same if training.picture is picture else gr.update(value=training.picture, visible=True)
        picture = training.picture
        yield same, text or waiting, new, same, same, same, same
    try:
        done = training.job.result()
    except UserError as error:
        yield error_html(error), "", same, same, same, same, same
        return
    prompt = gr.update(value=done.prompt, visible=True)
    yield same, "", same, outcome_html(done), prompt, gr.update(visible=True), gr.update(visible=done.resumable)


def estimated(job: Job[str]) -> Iterator[tuple[Any, Any]]:
    """What to show of an estimate until it is there: the estimate, and progress."""
    for waiting in job.watch():
        yield "", waiting
    try:
        yield f"<p>{html.escape(job.result())}</p>", ""
    except UserError as error:
        yield error_html(error), ""
