"""The tab "Custom Diffusion Utils": the shared utilities as jobs of the WebUI, and the toy model."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import gradio as gr
from modules import sd_samplers, shared
from modules.call_queue import wrap_gradio_gpu_call
from modules.textual_inversion import textual_inversion

from ..errors import Interrupted, UserError
from ..ui.sections import SECTIONS
from ..ui.training_page import error_html
from ..ui.utilities import Action, Host, Lists, Results, Section, add_utilities, shown
from .delta_library import library
from .host_backend import HostBackend, asked_to_stop
from .reopened_page import add_fetching
from .toy_model import no_checkpoint, toy_buttons
from .training_job import NOT_ON_THE_BAR
from .turns import UTILITY, admit, if_admitted

_DEFAULT_SAMPLER = "Euler a"
_NOTHING = (gr.update(), "", gr.update(visible=False))
"""What the gallery, the delta's name and the button that opens it get where nothing came of a job."""


def build() -> list[tuple[gr.Blocks, str, str]]:
    """The tab, as the host asks for it."""
    with gr.Blocks(analytics_enabled=False) as blocks:
        task = gr.Textbox(visible=False, elem_id="cd_utils_task")
        toy = Section("Toy model", "cd_toy_section", _toy)
        host = _host(task)
        results = add_utilities(host, [toy, *SECTIONS] if no_checkpoint() else [*SECTIONS, toy])
        add_fetching("cd_utils_outcome", task, _outputs(results), _NOTHING)
        host.lists.ask_when_opened()
    return [(blocks, "Custom Diffusion Utils", "custom_diffusion_utils")]


def _host(task: gr.Textbox) -> Host:
    names = [each.name for each in sd_samplers.all_samplers]
    return Host(
        deltas_dir=library.folder,
        backend=lambda sampler: HostBackend(sampler_name=sampler or None),
        samplers=sorted(names, key=lambda name: name != _DEFAULT_SAMPLER),
        templates={name: Path(each.path) for name, each in textual_inversion.textual_inversion_templates.items()},
        bind=lambda action, results: _bind(task, action, results),
        open_delta=lambda button, delta: button.click(fn=None, _js="customDiffusionShowCard", inputs=[delta]),
        interrupt=lambda: shared.state.interrupt(),
        lists=Lists(),
        loras_dir=Path(shared.cmd_opts.lora_dir) if getattr(shared.cmd_opts, "lora_dir", None) else None,
    )


def _bind(task: gr.Textbox, action: Action, results: Results) -> None:
    def run(_task: str, *values: Any) -> tuple[Any, Any, Any, str]:
        shared.state.job, shared.state.job_count = UTILITY, 0
        try:
            outcome = action.run(_show, *values)
        except Interrupted as stop:
            return *_NOTHING, f"<p>{html.escape(str(stop))}</p>"
        except UserError as error:
            return *_NOTHING, error_html(error)
        library.refresh()
        return shown(outcome)

    outputs = _outputs(results)
    job = wrap_gradio_gpu_call(run, extra_outputs=[gr.update(), gr.update(), gr.update()])
    admit(action.button, UTILITY, task, results.report, lambda: str(action.button.value))(
        fn=if_admitted(job, outputs),
        _js="startCustomDiffusionUtility",
        inputs=[task, *action.inputs],
        outputs=outputs,
    )


def _outputs(results: Results) -> list[Any]:
    return [results.gallery, results.delta, results.open, results.report]


def _show(done: int, total: int, what: str = "") -> None:
    shared.state.job_no, shared.state.job_count = done, total
    shared.state.textinfo = f"{what}{NOT_ON_THE_BAR}"
    if asked_to_stop():
        raise Interrupted("Interrupted. What was finished is kept; run it again with the same settings to continue.")


def _toy(_host: Host) -> list[Action]:
    toy_buttons("cd_toy", "Next: <i>Train</i> → <i>Custom Diffusion</i>, filled in with an example.").render()
    return []  # a copied file is no job
