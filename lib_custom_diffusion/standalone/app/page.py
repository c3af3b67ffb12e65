"""The page: Generate, Train and Utilities on one model."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from ...deltas_folder import find_delta
from ...errors import Interrupted, UserError
from ...training.recipes import RECIPES, TOY_RECIPES
from ...ui.answers import clear_first
from ...ui.inspection import report_html
from ...ui.regularization_sections import bundled_templates
from ...ui.sections import SECTIONS
from ...ui.training_fields import FormFields
from ...ui.training_page import error_html
from ...ui.utilities import DELTA, Action, Answer, Host, Lists, Results, add_utilities, shown
from .drawing import before_each_step
from .generate_tab import add_generate_tab, usual_scale
from .jobs import Job, Jobs
from .models import Models
from .prompt_history import PromptHistory
from .reopened_pages import LastJob, ReopenedPages
from .train_tab import build_train_tab

_PACKAGE = Path(__file__).resolve().parents[2]
_SHARED_STYLE = (_PACKAGE / "ui" / "style.css", _PACKAGE.parent / "style.css")
"""Where it is in an installed package, and where the WebUI wants it in the repository."""
_STYLE = Path(__file__).with_name("page.css")
_TRAINING = Path("training")
"""Where logs and checkpoints of trainings go, and earlier prompts, from the working directory."""


def build(models: Models, deltas_dir: Path, jobs: Jobs | None = None) -> gr.Blocks:
    """The page for these models and the deltas in that folder. Fonts are the system's: nothing is fetched.

    jobs: what its jobs are run by, for who wants to end them.
    """
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    jobs, lists, history = jobs or Jobs(models.lock), Lists(), PromptHistory(_TRAINING / "prompts.json")
    with gr.Blocks(title="Custom Diffusion", css=_css(), theme=theme, analytics_enabled=False) as blocks:
        with gr.Row(elem_id="cd_head"):
            folder = html.escape(str(deltas_dir.resolve()))
            gr.HTML(f"<h1>Custom Diffusion</h1><p>Folder of {DELTA}s: <code>{folder}</code></p>")
            model = gr.Dropdown(label="Checkpoint", choices=models.names(), value=models.name, elem_id="cd_model")
            lists.add(model, models.names, "cd_model_refresh")
        told = gr.HTML(elem_id="cd_model_told")
        reopened = ReopenedPages()
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Generate", id="generate") as generate:
                prompt, scale = add_generate_tab(models, deltas_dir, jobs, lists, history, reopened)
            with gr.Tab("Train", id="train"):
                fields = build_train_tab(
                    jobs,
                    models,
                    deltas_dir,
                    _TRAINING,
                    lambda button, text: _send(button, text, prompt, tabs),
                    reopened,
                )
            with gr.Tab("Utilities", id="utilities") as utilities:
                add_utilities(_host(models, deltas_dir, jobs, lists, reopened), SECTIONS)
        lists.ask_when_opened()
        lists.ask_when_selected(generate, utilities)
        lists.ask_when_pressed(reopened.in_sight)
        _let_choose(models, jobs, model, told, fields, scale)
        for part in list(blocks.blocks.values()):  # whatever begins next; the others ask for lists
            if isinstance(part, gr.Button) and not part.elem_classes:
                clear_first(part.click, told)
    return blocks


def _let_choose(
    models: Models, jobs: Jobs, model: gr.Dropdown, told: gr.HTML, fields: FormFields, scale: gr.Slider
) -> None:
    """Have a choice of the checkpoint load it, and fill in the preset and the CFG scale that suit it."""
    filled = [scale, fields.preset, *fields.filled.values()]

    def choose(name: str) -> Iterator[list[Any]]:
        same = [gr.update() for _ in filled]
        job = jobs.start(f"loading {name}", lambda _job: models.choose(name), f"Loading {name}…")
        for progress in job.watch():
            yield [gr.update(), progress, *same]
        try:
            job.result()
        except UserError as error:
            yield [models.name, error_html(error), *same]
            return
        preset = next(iter(TOY_RECIPES if models.small else RECIPES))
        yield [gr.update(), "", usual_scale(models), preset, *fields.filled_by(preset)]

    model.input(fn=choose, inputs=[model], outputs=[model, told, *filled], show_progress=False)


def _send(button: gr.Button, text: gr.Textbox, prompt: gr.Textbox, tabs: gr.Tabs) -> None:
    """Have the button put a text into the prompt of Generate, and open that tab."""
    button.click(
        fn=lambda text: (text, gr.Tabs.update(selected="generate")), inputs=[text], outputs=[prompt, tabs],
        queue=False, show_progress=False,
    )  # fmt: skip


def _host(models: Models, deltas_dir: Path, jobs: Jobs, lists: Lists, reopened: ReopenedPages) -> Host:
    last: list[LastJob] = []  # of all actions, which have one place for what comes of them

    def bind(action: Action, results: Results) -> None:
        outputs = [results.gallery, results.delta, results.open, results.report, results.progress]
        last.extend([] if last else [reopened.part(outputs)])
        _bind(models, jobs, action, outputs, last[0])

    return Host(
        deltas_dir=deltas_dir,
        backend=lambda _sampler: models.get(),
        samplers=(),
        templates=bundled_templates(),
        bind=bind,
        open_delta=lambda button, delta: _open_delta(button, delta, deltas_dir),
        interrupt=jobs.interrupt,
        lists=lists,
    )


def _bind(models: Models, jobs: Jobs, action: Action, outputs: list[Any], last: LastJob) -> None:
    def work(job: Job[Answer], *values: Any) -> Answer:
        with before_each_step(models.get(), job.check):
            return action.run(job, *values)

    def run(*values: Any) -> Iterator[tuple[Any, ...]]:
        job = jobs.start(f"“{action.button.value}” in Utilities", lambda job: work(job, *values))
        yield from last.watch(job, lambda: _watched(job))

    action.button.click(fn=run, inputs=action.inputs, outputs=outputs, show_progress=False)


def _watched(job: Job[Answer]) -> Iterator[tuple[Any, Any, Any, Any, str]]:
    """What to show of a utility until it is over: gallery, delta, the button that opens it, report and progress."""
    same, hidden = gr.update(), gr.update(visible=False)
    yield same, "", hidden, "", ""
    for progress in job.watch():
        yield same, "", hidden, "", progress
    try:
        answer = job.result()
    except Interrupted as stop:
        yield same, "", hidden, f"<p>{html.escape(str(stop))}</p>", ""
    except UserError as error:
        yield same, "", hidden, error_html(error), ""
    else:
        yield (*shown(answer), "")


def _open_delta(button: gr.Button, delta: gr.Textbox, deltas_dir: Path) -> None:
    """Have the button show what is in the file, and offer it for download."""
    file = gr.File(label="The file", visible=False, elem_id="cd_utils_file")
    report = gr.HTML(elem_id="cd_utils_opened")

    def show(name: str) -> tuple[Any, str]:
        try:
            path = find_delta(deltas_dir, name)
            return gr.update(value=str(path), visible=True), report_html(path)
        except UserError as error:
            return gr.update(visible=False), error_html(error)

    button.click(fn=show, inputs=[delta], outputs=[file, report], queue=False)
    clear_first(button.click, report)
    delta.change(
        fn=lambda: (gr.update(visible=False), ""), inputs=[], outputs=[file, report], queue=False, show_progress=False
    )


def _css() -> str:
    """What the extension serves to the WebUI, and what the WebUI has of its own."""
    shared = next(path for path in _SHARED_STYLE if path.is_file())
    return "\n".join(path.read_text(encoding="utf-8") for path in (shared, _STYLE))
