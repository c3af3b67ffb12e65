"""A page that is opened while a training runs shows it as the page does that started it, and how it ended."""

from __future__ import annotations

import time
from typing import Any

import gradio as gr
from fastapi import FastAPI
from modules import progress

from ..delta import SUFFIX
from ..ui.training_page import Outcome, error_html, outcome_html
from .delta_library import library
from .training_job import JOB

_OURS = f"task({JOB}-"
"""How the tasks of trainings begin: those that the page starts (javascript/) and those of the API alike."""
_SECONDS_BETWEEN_LOOKS = 0.2

Shown = tuple[Any, Any, Any, Any, Any, str]
"""What a page shows of a training that is over: prompt to try; buttons to send it, show the card, compare saves; delta,
outcome."""


def register(_blocks: gr.Blocks | None, app: FastAPI) -> None:
    """Let the page ask, whether the WebUI was started with its API or not, as it asks for the progress of a task."""
    app.add_api_route("/internal/custom-diffusion-training", lambda: {"task": training_task()}, methods=["GET"])


def training_task() -> str:
    """The training that runs, else the first that waits for its turn; "" if there is none."""
    tasks = (progress.current_task, *list(progress.pending_tasks))
    return next((task for task in tasks if task and task.startswith(_OURS)), "")


def succeeded(done: Outcome) -> Shown:
    """What to show of a training that ended with a result."""
    button, name = gr.update(visible=True), done.delta.name.removesuffix(SUFFIX)
    compare = gr.update(visible=len(library.by_steps(name)) > 1)
    return gr.update(value=done.prompt, visible=True), button, button, compare, name, outcome_html(done)


def failed(sentence: str) -> Shown:
    """What to show of one that did not. sentence: HTML."""
    hidden = gr.update(visible=False)
    return hidden, hidden, hidden, hidden, "", sentence


def end_of(task: str) -> Shown:
    """Wait until a training is over; what the page that started it shows.

    The host keeps that of the last two jobs, unless one ended by an error that is none of the user's.
    """
    while task and (task == progress.current_task or task in progress.pending_tasks):
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    results = next((results for of, results in progress.recorded_results if of == task), None)
    return results or failed(error_html("The training stopped with an error; see the terminal for details."))
