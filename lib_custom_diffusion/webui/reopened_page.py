"""What pages are told of jobs whose answer gradio did not bring: of one that runs, and of how one ended.

Gradio brings an answer to the page that asked, once, and drops it if that page was reloaded, or too busy to take it. So
the page (javascript/) watches the host's tasks, and asks here for what came of one that is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from fastapi import Depends, FastAPI, Response
from modules import progress

from ..delta import SUFFIX
from ..ui.training_page import Outcome, error_html, outcome_html
from .delta_library import library

JOB = "train-custom-diffusion"
_OURS = f"task({JOB}-"
"""How the tasks of trainings begin: those that the page starts (javascript/) and those of the API alike."""

Shown = tuple[Any, Any, Any, Any, Any, Any, str]
"""What a page shows of a training that is over: prompt to try; buttons to send it, show the card, compare saves, and
resume; delta, outcome."""


@dataclass
class LastTraining:
    """The last training that was not refused, and what pages show of it: None as long as it has not ended."""

    task: str = ""
    shown: Shown | None = None

    def begin(self) -> None:
        """The host's present task is past all that can be refused, if it is a training."""
        if progress.current_task != self.task and (progress.current_task or "").startswith(_OURS):
            self.task, self.shown = progress.current_task, None

    def end(self, task: str, shown: Shown) -> None:
        """That of a training is known; one that was refused is of interest only where it was asked for."""
        if task == self.task:
            self.shown = shown


last = LastTraining()


def register(_blocks: gr.Blocks | None, app: FastAPI) -> None:
    """Let the page ask, whether the WebUI was started with its API or not, as it asks for the progress of a task."""
    app.add_api_route(
        "/internal/custom-diffusion-training", trainings, methods=["GET"], dependencies=[Depends(for_own_pages)]
    )


def for_own_pages(response: Response) -> None:
    """Have browsers give the answer to no page of another site, as a script or a picture of its own."""
    response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
    response.headers["X-Content-Type-Options"] = "nosniff"


def trainings() -> dict[str, str]:
    """The task of the training that runs, else of the first that waits for its turn; and of the last that has begun."""
    return {"running": running(JOB), "last": last.task}


def running(*jobs: str) -> str:
    """The task of one of these jobs that runs, else of the first that waits for its turn; "" if there is none."""
    tasks = (progress.current_task, *list(progress.pending_tasks))
    return next((task for task in tasks if task and task.startswith(tuple(f"task({job}-" for job in jobs))), "")


def succeeded(done: Outcome) -> Shown:
    """What to show of a training that ended with a result."""
    button, name = gr.update(visible=True), done.delta.name.removesuffix(SUFFIX)
    compare = gr.update(visible=len(library.by_steps(name)) > 1)
    resume = gr.update(visible=done.resumable)
    return gr.update(value=done.prompt, visible=True), button, button, compare, resume, name, outcome_html(done)


def failed(sentence: str) -> Shown:
    """What to show of one that did not. sentence: HTML."""
    hidden = gr.update(visible=False)
    return hidden, hidden, hidden, hidden, hidden, "", sentence


def refused(came: Shown) -> Shown:
    """What to show of one that was refused: what was wrong, above what came of the one before, if there was one."""
    if last.shown is None:
        return came
    same = gr.update()
    return same, same, same, same, same, same, came[-1] + last.shown[-1]


def add_fetching(part: str, task: gr.Textbox, outputs: Sequence[Any], without: Sequence[Any]) -> None:
    """A button, PART_fetch, that the page presses when a job is over and nothing came of it.

    outputs: those of the job. without: what they get, but for the last, if there is nothing but a sentence.
    """

    def fetch(task: str) -> Sequence[Any]:
        if task == progress.current_task or task in progress.pending_tasks:
            return [gr.update() for _ in outputs]
        return came_of(task) or [*without, error_html(_why_nothing(task))]

    gr.Button(visible=False, elem_id=f"{part}_fetch").click(
        fn=fetch, _js="customDiffusionJobThatEnded", inputs=[task], outputs=list(outputs), queue=False,
        show_progress=False,
    )  # fmt: skip


def came_of(task: str) -> Sequence[Any] | None:
    """What a page shows of a job that is over; None if it ended by an error that is none of the user's.

    The host keeps that of the last two jobs, of whatever kind.
    """
    if task and task == last.task and last.shown is not None:
        return last.shown
    return next((results for of, results in progress.recorded_results if of == task), None)


def _why_nothing(task: str) -> str:
    if task == last.task or task in progress.finished_tasks:
        return "This stopped with an error; see the terminal for details."
    return "This was not started, as the WebUI was too busy or out of reach; press the button again."
