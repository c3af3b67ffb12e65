"""The sections in which regularization pictures are drawn, and picked."""

from __future__ import annotations

import html
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from ..backend import Backend, Sampling, usual_sampling
from ..data.pictures import find_pictures
from ..data.regularization import captions_of, generate, generate_captions, pick, template_captions, write_listing
from ..errors import UserError
from .utilities import Action, Answer, Host, Section, Show, folder_of

SOURCES = ("a prompt", "the captions of a folder", "a template")
"""What regularization pictures are drawn of."""
_SHOWN = 12
"""Pictures shown of those drawn."""


def _draw(host: Host) -> list[Action]:
    gr.HTML(
        "<p>Regularization images are pictures of other things of the same kind, which keep the model from forgetting"
        " them. The loaded model draws them, with a caption file beside each.</p>"
    )
    fields = [*_fields_of_what(host), *_fields_of_how(host)]
    with gr.Row():
        draw = gr.Button("Draw regularization images", variant="primary", elem_id="cd_reg_draw")
        stop = gr.Button("Interrupt", elem_id="cd_reg_stop")
    stop.click(fn=host.interrupt, inputs=[], outputs=[], queue=False)
    return [Action(draw, partial(_drawn, host), fields)]


def _fields_of_what(host: Host) -> list[Any]:
    """What pictures show, how many there are to be, and where they go."""
    source = gr.Radio(label="Draw", choices=list(SOURCES), value=SOURCES[0], elem_id="cd_reg_source")
    prompt = gr.Textbox(
        label="Prompt", info="Such as photo of a cat; with a template, what [name] stands for, such as cat",
        elem_id="cd_reg_prompt",
    )  # fmt: skip
    template = gr.Dropdown(
        label="Prompt template", choices=list(host.templates), value=next(iter(host.templates), None), visible=False,
        info="Each picture uses one of its lines, at random", elem_id="cd_reg_template",
    )  # fmt: skip
    captions = gr.Textbox(
        label="Folder of captions", visible=False, max_lines=1, elem_id="cd_reg_captions",
        info="Text files beside pictures; with a template, what [filewords] stands for",
    )  # fmt: skip
    with gr.Row():
        count = gr.Number(
            label="Number of pictures", value=200, precision=0, info="200 is usual", elem_id="cd_reg_count"
        )
        times = gr.Number(
            label="Pictures per caption", value=1, precision=0, visible=False, info="How many to draw of each",
            elem_id="cd_reg_times",
        )  # fmt: skip
        folder = gr.Textbox(
            label="Folder for the pictures", info="Those already in it are kept and counted", max_lines=1,
            elem_id="cd_reg_folder",
        )  # fmt: skip
    source.change(
        fn=_wanted_by, inputs=[source], outputs=[prompt, template, captions, count, times],
        queue=False, show_progress=False,
    )  # fmt: skip
    return [source, prompt, template, captions, count, times, folder]


def _fields_of_how(host: Host) -> list[Any]:
    """How pictures are drawn."""
    with gr.Row():
        sampler = gr.Dropdown(
            label="Sampling method", choices=list(host.samplers), value=next(iter(host.samplers), None),
            visible=bool(host.samplers), elem_id="cd_reg_sampler",
        )  # fmt: skip
        steps = gr.Slider(label="Sampling steps", minimum=1, maximum=150, step=1, value=25, elem_id="cd_reg_steps")
        scale = gr.Slider(
            label="CFG Scale", minimum=0, maximum=30.0, step=0.5, value=0,
            info="How strictly pictures follow the prompt; 0 for what suits the model",
            elem_id="cd_reg_cfg",
        )  # fmt: skip
    with gr.Row():
        side = gr.Number(
            label="Width and height", value=0, precision=0, info="0 for the model's own size",
            elem_id="cd_reg_size",
        )  # fmt: skip
        batch = gr.Number(
            label="Batch size", value=4, precision=0, info="Lower needs less memory", elem_id="cd_reg_batch"
        )
        seed = gr.Number(
            label="Seed",
            value=42,
            precision=0,
            info="Of the first picture; the others follow",
            elem_id="cd_reg_seed",
        )
    return [sampler, steps, scale, side, batch, seed]


def _drawn(
    host: Host, show: Show, source: str, prompt: str, template: str, captions: str, count: float, times: float,
    folder: str, sampler: str, steps: float, scale: float, side: float, batch: float, seed: float,
) -> Answer:  # fmt: skip
    """Draw what was asked for."""
    target = folder_of(folder, "a folder for the pictures")
    size = (int(side), int(side)) if side else None
    first = int(seed or 0)
    asked = Sampling(int(steps), float(scale), "", size, int(batch or 0))
    asked.check(first, _LABELS.__getitem__)

    def tell(done: int, total: int) -> None:
        show(done, total, f"{done} of {total} pictures")

    if source == SOURCES[0]:
        if not (prompt or "").strip():
            raise UserError("Prompt is empty; say what to draw, such as photo of a cat")
        backend = host.backend(sampler)
        drawn = generate(backend, prompt, target, int(count or 0), _suiting(asked, backend), first, tell)
    else:
        if source == SOURCES[1]:
            prompts = captions_of(folder_of(captions, "the folder of captioned pictures"), int(times or 0))
        else:
            prompts = _of_template(host, template, prompt or "", captions, int(count or 0), first)
        backend = host.backend(sampler)
        drawn = generate_captions(backend, prompts, target, _suiting(asked, backend), first, tell)
    folder, there = html.escape(str(target.absolute())), _pictures(len(find_pictures(target)))
    report = f"<p>{_pictures(len(drawn))} drawn; <code>{folder}</code> has {there} now.</p>"
    return Answer(report, pictures=drawn[:_SHOWN])


def _of_template(host: Host, template: str, name: str, captions: str, count: int, seed: int) -> list[str]:
    """Prompts made of a template's lines, with the captions of a folder as [filewords] if one is given."""
    words = captions_of(folder_of(captions, "")) if (captions or "").strip() else []
    path = host.templates.get(template or "")
    if path is None:
        raise UserError("choose a template")
    return template_captions(path, name, count, seed, words)


_LABELS = {
    "steps": "Sampling steps", "guidance_scale": "CFG Scale", "size": "Width and height", "batch_size": "Batch size",
    "seed": "Seed",
}  # fmt: skip
"""What the page calls what `Sampling.check` looks at."""


def _suiting(asked: Sampling, backend: Backend) -> Sampling:
    """With the CFG scale that suits the model, unless another was asked for."""
    usual = usual_sampling(backend.architecture).guidance_scale
    return replace(asked, guidance_scale=asked.guidance_scale or usual)


def _wanted_by(source: str) -> list[dict]:
    """Which of prompt, template, captions, count and times a source wants."""
    from_prompt, from_captions, from_template = (source == each for each in SOURCES)
    wanted = (not from_captions, from_template, not from_prompt, not from_captions, from_captions)
    return [gr.update(visible=visible) for visible in wanted]


def _pick(host: Host) -> list[Action]:
    gr.HTML(
        "<p>Real pictures preserve a model better than drawn ones, the paper found. This picks from a folder of"
        " captioned pictures those whose captions are closest to a prompt. The pictures stay where they are:"
        " only lists are written.</p>"
    )
    source = gr.Textbox(
        label="Folder of captioned pictures", info="With a text file beside each", max_lines=1, elem_id="cd_pick_source"
    )
    prompt = gr.Textbox(label="Prompt to match", info="Such as photo of a cat", elem_id="cd_pick_prompt")
    count = gr.Number(label="Number to pick", value=200, precision=0, info="200 is usual", elem_id="cd_pick_count")
    target = gr.Textbox(
        label="Folder for the lists",
        info="To be given to a training as its Regularization directory",
        max_lines=1,
        elem_id="cd_pick_target",
    )
    button = gr.Button("Pick pictures", variant="primary", elem_id="cd_pick")

    def run(show: Show, source: str, prompt: str, count: float, target: str) -> Answer:
        pictures, folder = folder_of(source, "the folder of captioned pictures"), folder_of(target, "a folder")
        if not (prompt or "").strip():
            raise UserError("Prompt to match is empty; give one, such as photo of a cat")

        def tell(done: int, total: int) -> None:
            show(done, total, f"{done} of {total} captions compared")

        picked = pick(host.backend(""), pictures, prompt, int(count or 0), tell)
        write_listing(picked, folder)
        report = (
            f"<p>{_pictures(len(picked))} listed in <code>{html.escape(str(folder))}</code>, from"
            f" “{html.escape(picked[0].caption)}” to “{html.escape(picked[-1].caption)}”.</p>"
        )
        return Answer(report, pictures=[choice.path for choice in picked[:_SHOWN]])

    return [Action(button, run, [source, prompt, count, target])]


def _pictures(count: int) -> str:
    return f"{count} picture{'' if count == 1 else 's'}"


def bundled_templates() -> dict[str, Path]:
    """The templates that come with the project, by file name."""
    return {path.name: path for path in sorted(Path(__file__).with_name("templates").glob("*.txt"), reverse=True)}


SECTIONS = (Section("Draw", "cd_draw_section", _draw), Section("Pick", "cd_pick_section", _pick))
