"""The tab Train: the form, and beside it how the training goes and what came of it."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from gradio.context import Context
from PIL import Image

from ...deltas_folder import new_file
from ...errors import UserError
from ...tokens import DEFAULT_INITIALIZERS, split_tokens
from ...training.loop import PRECISIONS
from ...ui.regularization_sections import bundled_templates
from ...ui.timings import keep_timing
from ...ui.training_fields import Face, FormFields, form_fields
from ...ui.training_form import PRESETS, TOY_PRESETS, ConceptForm, TrainingForm
from ...ui.training_job import Plan, TrainingJob, estimate, training_folder
from ...ui.training_page import Outcome, error_html, outcome_html
from ..diffusers_backend import DiffusersBackend
from .jobs import Job, Jobs
from .models import Models

_INITIALIZERS = (*DEFAULT_INITIALIZERS.split("+"), "ktn")


@dataclass
class TypedConcept(ConceptForm):
    """A concept whose word is made up on the page. initializer: the word that it starts from."""

    initializer: str = _INITIALIZERS[0]

    def check(self, number: int) -> None:
        super().check(number)
        split_tokens(self.embedding)


@dataclass(frozen=True)
class _Place:
    """What trainings work on, and where things go: deltas, and logs with checkpoints.

    model: its name, for `models`.
    """

    models: Models
    model: str
    deltas_dir: Path
    logs: Path

    @property
    def timings(self) -> Path:
        """What trainings took on this machine."""
        return self.logs / "timings.json"


class _Screen:
    """What the page shows of a running job; the job's thread writes it, the page's reads it."""

    def __init__(self, job: Job[Any]) -> None:
        self.job = job
        self.text = ""
        self.picture: Image.Image | None = None

    def show(self, text: str, step: int = 0) -> None:
        self.text = text

    def show_picture(self, picture: Image.Image) -> None:
        self.picture = picture

    def interrupted(self) -> bool:
        return self.job.interrupted.is_set()


@dataclass(frozen=True)
class _Training:
    """A training that a page has asked for. screens: what shows it, once it is its turn."""

    job: Job[Outcome]
    screens: list[_Screen]


def build_train_tab(
    jobs: Jobs, models: Models, model: str, deltas_dir: Path, logs: Path, send: Callable[[gr.Button, gr.Textbox], None]
) -> None:
    """Make the tab where gradio is building one.

    logs: the folder for logs, copies and checkpoints.
    send: has a click on the button bring the text box's prompt to where pictures are drawn.
    """
    place = _Place(models, model, deltas_dir, logs)
    with gr.Row(equal_height=False):
        with gr.Column(scale=3):
            presets = {**(TOY_PRESETS if model == "toy" else {}), **PRESETS}
            fields = form_fields(Face(gr.Row, _word, _template, presets))
            vectors = gr.Slider(
                label="Vectors of each new word", minimum=1, maximum=16, step=1, value=1, elem_id="cd_vectors",
                info="More hold more detail, and take more room in prompts; 1 is usual",
            )  # fmt: skip
            with gr.Row():
                start = gr.Button("Train", variant="primary", elem_id="cd_start")
                ask = gr.Button("How long will it take?", elem_id="cd_ask")
                stop = gr.Button("Interrupt and save", elem_id="cd_stop")
        with gr.Column(scale=2):
            told = gr.HTML(elem_id="cd_estimate")
            progress = gr.HTML(elem_id="cd_progress")
            picture = gr.Image(label="Last preview", visible=False, interactive=False, elem_id="cd_preview")
            outcome = gr.HTML(elem_id="cd_outcome")
            prompt = gr.Textbox(label="Prompt to try", visible=False, interactive=True, elem_id="cd_try_prompt")
            use = gr.Button("Send to Generate", visible=False, elem_id="cd_send")
    inputs, shown = [vectors, *fields.inputs], [told, progress, picture, outcome, prompt, use]

    asked: list[_Training] = []  # the last one

    # Generator functions, not functions that return generators: only of these does gradio show all that they yield.
    def run(*values: Any) -> Iterator[tuple[Any, ...]]:
        asked[:] = [_start(jobs, place, fields, values)]
        yield from _watched(asked[0])

    def go_on() -> Iterator[tuple[Any, ...]]:
        yield tuple(gr.update() for _ in shown)  # of a generator that yields nothing gradio makes an error
        if asked and not asked[0].job.finished:
            yield from _watched(asked[0])

    def answer(*values: Any) -> Iterator[tuple[Any, ...]]:
        yield from _estimating(jobs, place, fields, values)

    start.click(fn=run, inputs=inputs, outputs=shown, show_progress=False)
    # A page that is opened while a training runs shows it too.
    Context.root_block.load(fn=go_on, inputs=[], outputs=shown, show_progress=False)
    ask.click(fn=answer, inputs=inputs, outputs=[told, progress], show_progress=False)
    stop.click(fn=jobs.interrupt, inputs=[], outputs=[], queue=False)
    send(use, prompt)


def _word(number: int) -> dict[str, Any]:
    """The word of a concept, made up here, and what it starts from."""
    return {
        "embedding": gr.Textbox(
            label=f"Word for concept {number}", value=f"<new{number}>", elem_id=f"cd_word_{number}",
            info="What you write in prompts; not a word that there is already",
        ),
        "initializer": gr.Textbox(
            label=f"Word {number} starts from", value=_INITIALIZERS[number - 1], elem_id=f"cd_initializer_{number}",
            info="A rare word, or one close to your thing",
        ),
    }  # fmt: skip


def _template() -> gr.Dropdown:
    names = list(bundled_templates())
    return gr.Dropdown(
        label="Template of captions", choices=names, value=names[0], info="Used if captions come from one",
        elem_id="cd_template",
    )  # fmt: skip


def _start(jobs: Jobs, place: _Place, fields: FormFields, values: Sequence[Any]) -> _Training:
    """Train what was entered, as soon as it is its turn."""
    screens: list[_Screen] = []

    def work(job: Job[Outcome]) -> Outcome:
        screens.append(_Screen(job))
        return train(place, *_entered(fields, values), screens[0])

    return _Training(jobs.start(work), screens)


def _watched(training: _Training) -> Iterator[tuple[Any, Any, Any, Any, Any, Any]]:
    """What to show of a training until it is over.

    Each time: estimate, progress, preview, outcome, prompt to try, and the button that sends it.
    """
    same, hidden = gr.update(), gr.update(visible=False)
    yield "", "", hidden, "", hidden, hidden
    picture = None
    for waiting in training.job.watch():
        screen = training.screens[0] if training.screens else None
        drawn = screen.picture if screen else None
        new = gr.update(value=drawn, visible=True) if drawn is not None and drawn is not picture else same
        picture = drawn
        yield same, (screen and screen.text) or waiting, new, same, same, same
    try:
        done = training.job.result()
    except UserError as error:
        yield same, "", same, error_html(error), same, same
        return
    prompt = gr.update(value=done.prompt, visible=True)
    yield same, training.screens[0].text, same, outcome_html(done), prompt, gr.update(visible=True)


def _estimating(jobs: Jobs, place: _Place, fields: FormFields, values: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    def work(job: Job[str]) -> str:
        form, vectors = _entered(fields, values)
        form.check()
        backend = place.models.get(place.model)
        return estimate(_plan(form, vectors, backend, Path(), None), backend, _Screen(job), place.timings)

    job = jobs.start(work)
    for waiting in job.watch():
        yield "", waiting
    try:
        yield f"<p>{html.escape(job.result())}</p>", ""
    except UserError as error:
        yield error_html(error), ""


def _entered(fields: FormFields, values: Sequence[Any]) -> tuple[TrainingForm, int]:
    """The form, and the number of vectors of each word."""
    vectors, *rest = values
    concepts, settings = fields.entered(rest)
    return TrainingForm([TypedConcept(**concept) for concept in concepts], **settings), int(vectors)


def train(place: _Place, form: TrainingForm, vectors: int, screen: _Screen) -> Outcome:
    """Train as the form says. Raises UserError for whatever a person can mend."""
    form.check()
    target = new_file(place.deltas_dir, form.file_name, form.overwrite or form.resume)
    backend = place.models.get(place.model)
    plan = _plan(form, vectors, backend, *training_folder(place.logs, form))
    job = TrainingJob(plan, backend, screen)
    result = job.run()
    note = job.write_delta(result, target)
    timing = job.timing()
    if timing is not None:
        keep_timing(place.timings, timing)
    return Outcome(
        result.step, result.interrupted, target, result.files[1:], plan.folder, form.prompt_to_try, note,
        resumable=result.interrupted,
    )  # fmt: skip


def _plan(form: TrainingForm, vectors: int, backend: DiffusersBackend, folder: Path, resume: Path | None) -> Plan:
    starts = [concept.initializer for concept in form.concepts if isinstance(concept, TypedConcept)]
    config = form.core_config(starts, vectors, _precision(backend.unet))
    config.check()
    template = bundled_templates().get(form.template)
    return Plan(form, form.picture_settings(template), config, folder, resume)


def _precision(unet: torch.nn.Module) -> str:
    """That in which the model was loaded."""
    dtype = next(unet.parameters()).dtype
    return next((name for name, each in PRECISIONS.items() if each == dtype), "no")
