"""The tab Generate: pictures of a prompt, with the deltas that it names."""

from __future__ import annotations

import itertools
import math
import random
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import gradio as gr

from ...backend import Sampling
from ...deltas_folder import named_deltas
from ...errors import UserError
from ...ui.inspection import summarize
from ...ui.training_page import error_html
from ...ui.utilities import Lists
from ..generate import draw, find_deltas
from .drawing import before_each_step
from .jobs import Job, Jobs
from .models import Models

MAX_STEPS, MAX_PICTURES, MAX_SIDE = 200, 64, 2048
_BATCH = 4  # as the command's, for the same pictures: a batch's size has a part in how numbers are rounded
_EXAMPLE = "a cat on a red background"


def add_generate_tab(models: Models, model: str, deltas_dir: Path, jobs: Jobs, lists: Lists) -> gr.Textbox:
    """Make the tab where gradio is building one; returns the field of the prompt."""
    with gr.Row(equal_height=False):
        with gr.Column():
            prompt = gr.Textbox(
                label="Prompt", lines=2, placeholder=_EXAMPLE, info="<delta:NAME:0.8> uses a delta",
                elem_id="cd_gen_prompt",
            )  # fmt: skip
            negative = gr.Textbox(label="Negative prompt", info="What not to draw", elem_id="cd_gen_negative_prompt")
            with gr.Row():
                delta = gr.Dropdown(
                    label="Use a delta", choices=list(named_deltas(deltas_dir)), elem_id="cd_delta",
                    info="Puts it and its words into the prompt",
                )  # fmt: skip
                lists.add(delta, lambda: list(named_deltas(deltas_dir)), "cd_delta_refresh")
            with gr.Row():
                steps = gr.Slider(label="Steps", minimum=1, maximum=MAX_STEPS, step=1, value=25, elem_id="cd_gen_steps")
                scale = gr.Slider(label="CFG", minimum=1.0, maximum=30.0, step=0.5, value=6.0, elem_id="cd_gen_cfg")
            with gr.Row():
                count = gr.Number(
                    label="Pictures", value=4, precision=0, info="Each has the next seed", elem_id="cd_gen_count"
                )
                side = gr.Number(label="Size", value=0, precision=0, info="0: the model's own", elem_id="cd_gen_size")
                seed = gr.Number(label="Seed", value=-1, precision=0, info="-1: any", elem_id="cd_gen_seed")
            with gr.Row():
                start = gr.Button("Generate", variant="primary", elem_id="cd_generate")
                stop = gr.Button("Interrupt", elem_id="cd_gen_stop")
        with gr.Column():
            told = gr.HTML(elem_id="cd_gen_outcome")
            gallery = gr.Gallery(label="Pictures", columns=2, object_fit="contain", elem_id="cd_gallery")

    def run(
        prompt: str, negative: str, steps: float, scale: float, count: float, side: float, seed: float
    ) -> Iterator[tuple[Any, str]]:
        try:
            sampling = _sampling(negative, steps, scale, side)
            asked = _number(count, "number of pictures", 1, MAX_PICTURES)
            first = int(seed) if seed is not None and seed >= 0 else random.randrange(2**32)
            job = jobs.start(lambda job: _draw(models, model, deltas_dir, job, prompt or "", sampling, first, asked))
            for progress in job.watch():
                yield gr.update(), progress
            pictures = job.result()
        except UserError as error:
            yield gr.update(), error_html(error)
            return
        yield [(str(path), path.stem.lstrip("0") or "0") for path in pictures], f"<p>{_seeds(first, asked)}</p>"

    start.click(
        fn=run, inputs=[prompt, negative, steps, scale, count, side, seed], outputs=[gallery, told],
        show_progress=False,
    )  # fmt: skip
    stop.click(fn=jobs.interrupt, inputs=[], outputs=[], queue=False)
    delta.input(
        fn=lambda prompt, name: _with_delta(prompt, name, deltas_dir), inputs=[prompt, delta], outputs=[prompt, told],
        queue=False, show_progress=False,
    )  # fmt: skip
    return prompt


def _sampling(negative: str, steps: float, scale: float, side: float) -> Sampling:
    size = int(side or 0)
    if size < 0 or size > MAX_SIDE or size % 8:
        raise UserError(f"the size should be a multiple of 8 up to {MAX_SIDE}, or 0 for the model's own, not {size}")
    chosen = _number(steps, "number of steps", 1, MAX_STEPS)
    return Sampling(chosen, float(scale), negative or "", (size, size) if size else None, _BATCH)


def _number(value: float | None, what: str, least: int, most: int) -> int:
    if value is None or not least <= value <= most:
        raise UserError(f"the {what} should be {least} to {most}, not {value}")
    return int(value)


def _seeds(first: int, count: int) -> str:
    return f"Seed {first}" if count == 1 else f"Seeds {first} to {first + count - 1}"


def _draw(
    models: Models, model: str, deltas_dir: Path, job: Job, prompt: str, sampling: Sampling, seed: int, count: int
) -> list[Path]:
    """The pictures, as files in a folder of their own that the page reads them from."""
    if not prompt.strip():
        raise UserError(f"write a prompt, such as {_EXAMPLE}")
    deltas = find_deltas(prompt, deltas_dir)
    job(0, 0, "Loading the model")
    backend = models.get(model)
    steps = itertools.count()
    total = sampling.steps * math.ceil(count / sampling.batch_size)
    folder = Path(tempfile.mkdtemp(prefix="custom-diffusion-"))
    paths: list[Path] = []
    with (
        before_each_step(backend, lambda: job(next(steps), total, f"Drawing {count} pictures")),
        closing(draw(backend, prompt, deltas, sampling, seed, count)) as drawn,
    ):
        for picture in drawn:
            paths.append(folder / f"{picture.seed:05d}.png")
            paths[-1].write_bytes(picture.png)
    return paths


def _with_delta(prompt: str, name: str | None, deltas_dir: Path) -> tuple[str, str]:
    """The prompt with a delta's tag and words at its end, unless they are in it; and an error, if there is one."""
    path = named_deltas(deltas_dir).get(name or "")
    if path is None:
        return prompt, ""
    try:
        words = summarize(path).activation_text()
    except UserError as error:
        return prompt, error_html(error)
    added = [part for part in (words, f"<delta:{name}:1>") if part and part not in prompt]
    return " ".join(filter(None, [prompt.strip(), *added])), ""
