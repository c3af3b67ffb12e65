"""The page: Generate, Train and Utilities on one model."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from ...deltas_folder import find_delta
from ...errors import Interrupted, UserError
from ...ui.inspection import report_html
from ...ui.regularization_sections import bundled_templates
from ...ui.sections import SECTIONS
from ...ui.training_page import error_html
from ...ui.utilities import Action, Host, Lists, Outcome, Results, add_utilities, shown
from .drawing import before_each_step
from .generate_tab import add_generate_tab
from .jobs import Job, Jobs
from .models import Models
from .prompt_history import PromptHistory
from .train_tab import build_train_tab

_PACKAGE = Path(__file__).resolve().parents[2]
_SHARED_STYLE = (_PACKAGE / "ui" / "style.css", _PACKAGE.parent / "style.css")
"""Where it is in an installed package, and where the WebUI wants it in the repository."""
_STYLE = Path(__file__).with_name("page.css")
_TRAINING = Path("training")
"""Where logs and checkpoints of trainings go, and earlier prompts, from the working directory."""


def build(models: Models, model: str, deltas_dir: Path) -> gr.Blocks:
    """The page for the model of that name and the deltas in that folder. Fonts are the system's: nothing is fetched."""
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    jobs, lists, history = Jobs(models.lock), Lists(), PromptHistory(_TRAINING / "prompts.json")
    with gr.Blocks(title="Custom Diffusion", css=_css(), theme=theme, analytics_enabled=False) as blocks:
        gr.HTML(
            f"<h1>Custom Diffusion</h1><p>Model: <b>{html.escape(model)}</b>. Deltas are in"
            f" <code>{html.escape(str(deltas_dir.resolve()))}</code>.</p>",
            elem_id="cd_head",
        )
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Generate", id="generate"):
                prompt = add_generate_tab(models, model, deltas_dir, jobs, lists, history)
            with gr.Tab("Train", id="train"):
                build_train_tab(
                    jobs, models, model, deltas_dir, _TRAINING, lambda button, text: _send(button, text, prompt, tabs)
                )
            with gr.Tab("Utilities", id="utilities"):
                add_utilities(_host(models, model, deltas_dir, jobs, lists), SECTIONS)
        lists.ask_when_opened()
    return blocks


def _send(button: gr.Button, text: gr.Textbox, prompt: gr.Textbox, tabs: gr.Tabs) -> None:
    """Have the button put a text into the prompt of Generate, and open that tab."""
    button.click(
        fn=lambda text: (text, gr.Tabs.update(selected="generate")), inputs=[text], outputs=[prompt, tabs],
        queue=False, show_progress=False,
    )  # fmt: skip


def _host(models: Models, model: str, deltas_dir: Path, jobs: Jobs, lists: Lists) -> Host:
    return Host(
        deltas_dir=deltas_dir,
        backend=lambda _sampler: models.get(model),
        samplers=(),
        templates=bundled_templates(),
        bind=lambda action, results: _bind(models, model, jobs, action, results),
        open_delta=lambda button, delta: _open_delta(button, delta, deltas_dir),
        interrupt=jobs.interrupt,
        lists=lists,
    )


def _bind(models: Models, model: str, jobs: Jobs, action: Action, results: Results) -> None:
    def work(job: Job[Outcome], *values: Any) -> Outcome:
        with before_each_step(models.get(model), job.check):
            return action.run(job, *values)

    def run(*values: Any) -> Iterator[tuple[Any, Any, Any, Any, str]]:
        same, hidden = gr.update(), gr.update(visible=False)
        yield same, "", hidden, "", ""
        job = jobs.start(lambda job: work(job, *values))
        for progress in job.watch():
            yield same, "", hidden, "", progress
        try:
            outcome = job.result()
        except Interrupted as stop:
            yield same, "", hidden, f"<p>{html.escape(str(stop))}</p>", ""
        except UserError as error:
            yield same, "", hidden, error_html(error), ""
        else:
            yield (*shown(outcome), "")

    action.button.click(
        fn=run, inputs=action.inputs, show_progress=False,
        outputs=[results.gallery, results.delta, results.open, results.report, results.progress],
    )  # fmt: skip


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
    delta.change(
        fn=lambda: (gr.update(visible=False), ""), inputs=[], outputs=[file, report], queue=False, show_progress=False
    )


def _css() -> str:
    """What the extension serves to the WebUI, and what the WebUI has of its own."""
    shared = next(path for path in _SHARED_STYLE if path.is_file())
    return "\n".join(path.read_text(encoding="utf-8") for path in (shared, _STYLE))
