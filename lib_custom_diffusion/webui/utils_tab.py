"""The tab "Custom Diffusion Utils": regularization pictures, the toy model, a look into files."""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from modules import sd_samplers, shared
from modules.call_queue import wrap_gradio_gpu_call, wrap_queued_call
from modules.ui_common import create_refresh_button
from modules.ui_components import FormRow

from ..backend import Sampling
from ..errors import UserError
from ..ui.inspection import report_html
from .library import library
from .regularization_job import Interrupted, draw_captions, draw_class, pick
from .toy_model import install_toy

_SHOWN = 12
"""Pictures shown of those drawn."""


def build() -> list[tuple[gr.Blocks, str, str]]:
    """The tab, as the host asks for it."""
    with gr.Blocks(analytics_enabled=False) as blocks, gr.Row(equal_height=False):
        with gr.Column(), gr.Tabs(elem_id="cd_utils_tabs"):
            task = gr.Textbox(visible=False, elem_id="cd_utils_task")
            sections = [(add, gr.Tab(label=label, id=key)) for label, key, add in _SECTIONS]
            bound = []
            for add, tab in sections:
                with tab:
                    bound.append(add())
        with gr.Column():
            outcome = gr.HTML(elem_id="cd_utils_outcome")
            gr.HTML(elem_id="cd_utils_progress")
            gallery = gr.Gallery(label="Drawn pictures", columns=4, elem_id="cd_utils_gallery")
        for button, run, inputs in (each for section in bound for each in section):
            button.click(
                fn=wrap_gradio_gpu_call(_told(run), extra_outputs=[gr.update()]),
                _js="startCustomDiffusionUtility",
                inputs=[task, *inputs],
                outputs=[gallery, outcome],
            )
    return [(blocks, "Custom Diffusion Utils", "custom_diffusion_utils")]


Action = tuple[gr.Button, Callable[..., tuple[str, list[str]]], list[Any]]
"""A button, what it does (an outcome in HTML, and pictures to show), and the fields it reads."""


def _told(run: Callable[..., tuple[str, list[str]]]) -> Callable[..., tuple[Any, str]]:
    def told(_task: str, *values: Any) -> tuple[Any, str]:
        try:
            text, pictures = run(*values)
        except Interrupted as stop:
            return gr.update(), f"<p>{html.escape(str(stop))}</p>"
        except UserError as error:
            return gr.update(), f"<div class='error'>{html.escape(str(error))}</div>"
        return (pictures or gr.update()), text

    return told


def _draw_section() -> list[Action]:
    gr.HTML(
        "<p>Pictures of other things of the same kind keep the model from forgetting them. They are drawn by the"
        " checkpoint that is loaded, with a caption file beside each.</p>"
    )
    prompt = gr.Textbox(label="Kind of thing to draw", info="Such as: photo of a cat", elem_id="cd_reg_prompt")
    count = gr.Number(label="How many", value=200, precision=0, info="200 are usual", elem_id="cd_reg_count")
    with FormRow():
        captions = gr.Textbox(
            label="Or: a folder with captions", info="Its captions are drawn instead", elem_id="cd_reg_captions"
        )
        times = gr.Number(
            label="Times each caption", value=1, precision=0, info="As many pictures of each", elem_id="cd_reg_times"
        )
    folder = gr.Textbox(
        label="Folder for the pictures", info="What is there already is kept and counts", elem_id="cd_reg_folder"
    )
    with FormRow():
        sampler = gr.Dropdown(
            label="Sampler of the pictures",
            choices=[each.name for each in sd_samplers.all_samplers],
            value="Euler a",
            elem_id="cd_reg_sampler",
        )
        steps = gr.Slider(
            label="Steps of each picture", minimum=1, maximum=150, step=1, value=25, elem_id="cd_reg_steps"
        )
    with FormRow():
        scale = gr.Slider(
            label="CFG of the pictures", minimum=1.0, maximum=30.0, step=0.5, value=6.0, elem_id="cd_reg_cfg"
        )
        side = gr.Number(label="Size of the pictures", value=0, precision=0, info="0: the usual", elem_id="cd_reg_size")
        batch = gr.Number(label="Pictures at a time", value=4, precision=0, elem_id="cd_reg_batch")
        seed = gr.Number(label="Seed of the first picture", value=1, precision=0, elem_id="cd_reg_seed")
    with gr.Row():
        draw = gr.Button("Draw regularization pictures", variant="primary", elem_id="cd_reg_draw")
        stop = gr.Button("Interrupt", elem_id="cd_reg_stop")
    stop.click(fn=lambda: shared.state.interrupt(), inputs=[], outputs=[])

    def run(
        prompt: str, count: float, captions: str, times: float, folder: str, sampler: str, steps: float, scale: float,
        side: float, batch: float, seed: float,
    ) -> tuple[str, list[str]]:  # fmt: skip
        target = _folder(folder)
        size = (int(side), int(side)) if side else None
        sampling = Sampling(int(steps), float(scale), "", size, max(1, int(batch)))
        if captions.strip():
            drawn = draw_captions(target, Path(captions), int(times), sampling, int(seed), sampler)
        else:
            drawn = draw_class(target, prompt, int(count), sampling, int(seed), sampler)
        return f"<p>{len(drawn)} pictures drawn into <code>{html.escape(str(target))}</code>.</p>", [
            str(path) for path in drawn[:_SHOWN]
        ]

    return [(draw, run, [prompt, count, captions, times, folder, sampler, steps, scale, side, batch, seed])]


def _pick_section() -> list[Action]:
    gr.HTML(
        "<p>Real pictures keep a model better than drawn ones. From a folder of pictures with caption files, those"
        " whose captions are nearest to the prompt are chosen. They stay where they are: only lists are written.</p>"
    )
    source = gr.Textbox(label="Folder of captioned pictures", elem_id="cd_pick_source")
    prompt = gr.Textbox(label="Kind of thing to pick", info="Such as: cat", elem_id="cd_pick_prompt")
    count = gr.Number(label="How many to pick", value=200, precision=0, info="200 are usual", elem_id="cd_pick_count")
    target = gr.Textbox(
        label="Folder for the lists", info="Give it as regularization folder of a training", elem_id="cd_pick_target"
    )
    button = gr.Button("Pick pictures", variant="primary", elem_id="cd_pick")

    def run(source: str, prompt: str, count: float, target: str) -> tuple[str, list[str]]:
        picked = pick(_folder(source), _folder(target), prompt, int(count))
        return f"<p>{picked} pictures listed in <code>{html.escape(target)}</code>.</p>", []

    return [(button, run, [source, prompt, count, target])]


def _toy_section() -> list[Action]:
    gr.HTML(
        "<p>A very small model of drawings, with which everything here can be tried in minutes, on any computer. It is"
        " copied to the WebUI's checkpoints.</p>"
    )
    button = gr.Button("Install the toy model", variant="primary", elem_id="cd_toy")

    def run() -> tuple[str, list[str]]:
        path = html.escape(str(install_toy()))
        return f"<p>Installed <code>{path}</code>. Press 🔄 beside the checkpoints at the top to see it.</p>", []

    return [(button, run, [])]


def _inspect_section() -> list[Action]:
    with FormRow():
        names = gr.Dropdown(label="Delta", choices=_names(), elem_id="cd_inspect_name")
        create_refresh_button(names, library.refresh, lambda: {"choices": _names()}, "cd_inspect_refresh")
    button = gr.Button("Inspect", variant="primary", elem_id="cd_inspect")
    report = gr.HTML(elem_id="cd_inspect_report")

    def show(name: str) -> str:
        try:
            return report_html(library.find(name or "").path)
        except UserError as error:
            return f"<div class='error'>{html.escape(str(error))}</div>"

    button.click(fn=wrap_queued_call(show), inputs=[names], outputs=[report])
    return []


def _names() -> list[str]:
    library.refresh()
    return [delta.name for delta in library.all()]


def _folder(text: str) -> Path:
    if not (text or "").strip():
        raise UserError("give a folder")
    return Path(text.strip()).expanduser()


_SECTIONS: tuple[tuple[str, str, Callable[[], list[Action]]], ...] = (
    ("Draw regularization pictures", "cd_draw", _draw_section),
    ("Pick regularization pictures", "cd_pick", _pick_section),
    ("Toy model", "cd_toy", _toy_section),
    ("Inspect a delta", "cd_inspect", _inspect_section),
)
"""The tab's parts: label, id, and what makes it."""
