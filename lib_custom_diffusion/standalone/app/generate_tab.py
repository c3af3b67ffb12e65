"""The tab Generate: pictures of a prompt, with the deltas that it names."""

from __future__ import annotations

import html
import itertools
import math
import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from ...backend import LATENT_CELL, MOST_SEED, TOY_SAMPLING, Sampling
from ...deltas_folder import find_delta, named_deltas
from ...errors import Interrupted, UserError
from ...prompt_remarks import lacking
from ...ui.answers import clear_first, forget_errors
from ...ui.inspection import summarize, words_of
from ...ui.training_page import error_html
from ...ui.utilities import Lists
from ..generate import draw, find_deltas, found_deltas, without_meaning
from ..infotext import read_parameters
from ..prompts import split_deltas
from .drawing import before_each_step
from .jobs import Job, Jobs
from .models import Models
from .prompt_history import PromptHistory
from .reopened_pages import ReopenedPages

MAX_STEPS, MAX_PICTURES, MAX_SIDE = 200, 64, 2048
_BATCH = 4  # as the command's, for the same pictures: a batch's size has a part in how numbers are rounded
_EXAMPLE = "a cat on a red background"


def usual_scale(models: Models) -> float:
    """The CFG scale that suits the model that is chosen."""
    return (TOY_SAMPLING if models.small else Sampling()).guidance_scale


@dataclass(frozen=True)
class _Tab:
    """What events are bound to. read: fills the fields in from a picture. earlier: prompts that were drawn."""

    prompt: gr.Textbox
    negative: gr.Textbox
    start: gr.Button
    stop: gr.Button
    read: gr.UploadButton
    delta: gr.Dropdown
    earlier: gr.Dropdown
    steps: gr.Slider
    scale: gr.Slider
    width: gr.Number
    height: gr.Number
    count: gr.Number
    seed: gr.Number
    told: gr.HTML
    gallery: gr.Gallery

    @property
    def entered(self) -> list[gr.components.IOComponent]:
        """What pictures are drawn of."""
        return [
            self.prompt, self.negative, self.steps, self.scale, self.count, self.width, self.height, self.seed
        ]  # fmt: skip


def add_generate_tab(
    models: Models, deltas_dir: Path, jobs: Jobs, lists: Lists, history: PromptHistory, reopened: ReopenedPages
) -> tuple[gr.Textbox, gr.Slider]:
    """Make the tab where gradio is building one; returns the fields of the prompt and of the CFG scale."""
    tab = _lay_out(models, deltas_dir, lists, history)
    shown = [tab.gallery, tab.told, tab.earlier]
    last = reopened.part(shown)

    def run(
        prompt: str, negative: str, steps: float, scale: float, count: float, width: float, height: float, seed: float
    ) -> Iterator[tuple[Any, str, Any]]:
        same = gr.update()
        try:
            sampling = _sampling(negative, steps, scale, width, height)
            asked = _number(count, "Batch count", 1, MAX_PICTURES)
            random_seed = seed is None or seed < 0
            first = random.randrange(2**32) if random_seed else _number(seed, "Seed", 0, MOST_SEED)
        except UserError as error:
            yield same, _failed(error), same
            return

        pictures: list[Path] = []

        def work(job: Job[None]) -> None:
            _draw(models, deltas_dir, job, prompt or "", sampling, first, asked, pictures)
            with suppress(UserError):  # a full disk costs the prompt, not the pictures
                history.add(prompt)

        job = jobs.start(_of(asked), work)
        told = _told(prompt or "", sampling, deltas_dir, first, asked)
        yield from last.watch(job, lambda: _watched(job, pictures, asked, told, history))

    tab.start.click(fn=run, inputs=tab.entered, outputs=shown, show_progress=False)
    tab.stop.click(fn=jobs.interrupt, inputs=[], outputs=[], queue=False)
    _fill_in(tab, deltas_dir)
    for event in (tab.start.click, tab.read.upload, tab.delta.input):
        clear_first(event, tab.told)
    forget_errors(tab.entered, tab.told)
    return tab.prompt, tab.scale


def _lay_out(models: Models, deltas_dir: Path, lists: Lists, history: PromptHistory) -> _Tab:
    with gr.Row(equal_height=False):
        with gr.Column():
            prompt = gr.Textbox(
                label="Prompt", lines=2, placeholder=f"{_EXAMPLE}; <delta:NAME:0.8> uses a delta",
                elem_id="cd_gen_prompt",
            )  # fmt: skip
            negative = gr.Textbox(
                label="Negative prompt", placeholder="what not to draw", elem_id="cd_gen_negative_prompt"
            )
            with gr.Row():
                start = gr.Button("Generate", variant="primary", elem_id="cd_generate")
                stop = gr.Button("Interrupt", elem_id="cd_gen_stop")
                read = gr.UploadButton("Read from picture", file_types=["image"], elem_id="cd_gen_read")
            with gr.Row():
                delta = gr.Dropdown(
                    label="Add a delta and its words", choices=list(named_deltas(deltas_dir)), elem_id="cd_delta",
                    info="A delta is the small file that a training makes: it holds your concept",
                )  # fmt: skip
                lists.add(delta, lambda: list(named_deltas(deltas_dir)), "cd_delta_refresh")
            with gr.Row():
                earlier = gr.Dropdown(label="Prompt history", choices=history.all(), elem_id="cd_gen_history")
                lists.add(earlier, history.all, "cd_gen_history_refresh")
            numbers = _numbers(usual_scale(models))
        with gr.Column():
            told = gr.HTML(elem_id="cd_gen_outcome")
            gallery = gr.Gallery(label="Pictures", columns=2, object_fit="contain", elem_id="cd_gallery")
    return _Tab(prompt, negative, start, stop, read, delta, earlier, *numbers, told, gallery)


def _numbers(usual_scale: float) -> tuple[gr.Slider, gr.Slider, gr.Number, gr.Number, gr.Number, gr.Number]:
    """The fields of steps, CFG scale, width, height, count and seed."""
    with gr.Row():
        steps = gr.Slider(
            label="Sampling steps", minimum=1, maximum=MAX_STEPS, step=1, value=25, info="More take longer",
            elem_id="cd_gen_steps",
        )  # fmt: skip
        scale = gr.Slider(
            label="CFG Scale", minimum=1.0, maximum=30.0, step=0.5, value=usual_scale,
            info="How strictly pictures follow the prompt", elem_id="cd_gen_cfg",
        )  # fmt: skip
    with gr.Row():
        width, height = (
            gr.Number(
                label=label, value=0, precision=0, info="0 for the model's own", min_width=90,
                elem_id=f"cd_gen_{label.lower()}",
            )
            for label in ("Width", "Height")
        )  # fmt: skip
        count = gr.Number(
            label="Batch count", value=4, precision=0, info="Each picture uses the next seed", min_width=90,
            elem_id="cd_gen_count",
        )  # fmt: skip
        seed = gr.Number(label="Seed", value=-1, precision=0, info="-1 for random", min_width=90, elem_id="cd_gen_seed")
    return steps, scale, width, height, count, seed


def _fill_in(tab: _Tab, deltas_dir: Path) -> None:
    """An earlier prompt, what a picture says, or a delta fills fields in."""
    tab.earlier.input(
        fn=lambda chosen: chosen or gr.update(), inputs=[tab.earlier], outputs=[tab.prompt], queue=False,
        show_progress=False,
    )  # fmt: skip
    said = [tab.prompt, tab.negative, tab.steps, tab.scale, tab.width, tab.height, tab.seed]
    tab.read.upload(
        fn=_read, inputs=[tab.read], outputs=[*said, tab.gallery, tab.told], queue=False, show_progress=False
    )
    tab.delta.input(
        fn=lambda prompt, name: _with_delta(prompt, name, deltas_dir), inputs=[tab.prompt, tab.delta],
        outputs=[tab.prompt, tab.told], queue=False, show_progress=False,
    )  # fmt: skip


def _watched(
    job: Job[None], pictures: list[Path], asked: int, told: str, history: PromptHistory
) -> Iterator[tuple[Any, str, Any]]:
    """What to show of drawing until it is over: pictures, what is told, and the choice of earlier prompts."""
    same = gr.update()
    for progress in job.watch():
        yield same, progress, same
    try:
        job.result()
    except Interrupted:
        told = f"<p>Interrupted after {len(pictures)} of {asked} pictures.</p>"
    except UserError as error:
        yield same, _failed(error, pictures), same
        return
    shown = [(str(path), path.stem.lstrip("0") or "0") for path in pictures]
    yield shown or same, told, gr.update(choices=history.all())


def _failed(error: UserError, drawn: Sequence[Path] = ()) -> str:
    """What was wrong, and that pictures which may stand there are earlier ones."""
    ended = "" if str(error).endswith((".", "?")) else "."
    return error_html(error if drawn else f"{error}{ended} Nothing was drawn.")


def _read(picture: Any) -> list[Any]:
    """What a picture says of how it was made, for the fields, and what to tell; what it does not say stays."""
    try:
        said = read_parameters(Path(picture.name))
    except UserError as error:
        return [*[gr.update()] * 8, error_html(error)]
    width, height = said.size or (None, None)
    numbers = (said.steps, said.cfg_scale, width, height, said.seed)
    names = ("Sampling steps", "CFG Scale", "Width", "Height", "Seed")
    found = ["Prompt", *(["Negative prompt"] if said.negative_prompt else [])]
    found += [f"{name} {number:g}" for name, number in zip(names, numbers) if number is not None]
    return [
        said.prompt, said.negative_prompt, *(gr.update() if number is None else number for number in numbers),
        [(picture.name, "the picture that was read")],
        f"<p>Filled in from this picture: {', '.join(found)}. Press Generate to draw it again.</p>",
    ]  # fmt: skip


def _sampling(negative: str, steps: float, scale: float, width: float, height: float) -> Sampling:
    size = int(width or 0), int(height or 0)
    for side in size:
        if side < 0 or side > MAX_SIDE or side % LATENT_CELL:
            raise UserError(
                f"width and height should be multiples of 8 up to {MAX_SIDE}, or 0 for the model's own, not {side}"
            )
    if any(size) and not all(size):
        raise UserError("give both width and height, or 0 for both")
    chosen = _number(steps, "Sampling steps", 1, MAX_STEPS)
    if scale is None:
        raise UserError("CFG Scale is empty; give a number")
    return Sampling(chosen, float(scale), negative or "", size if all(size) else None, _BATCH)


def _number(value: float | None, what: str, least: int, most: int) -> int:
    if value is None:
        raise UserError(f"{what} is empty; give a number")
    if not least <= value <= most:
        raise UserError(f"{what} should be {least} to {most}, not {value}")
    return int(value)


def _of(count: int) -> str:
    return f"drawing {count} pictures" if count > 1 else "drawing a picture"


def _told(prompt: str, sampling: Sampling, deltas_dir: Path, first: int, count: int) -> str:
    """What is said beside pictures: their seeds, what becomes of them, and what in the prompt has no effect."""
    seeds = f"Seed {first}" if count == 1 else f"Seeds {first} to {first + count - 1}"
    told = f"<p>{seeds}. Pictures are not kept: save the ones you want.</p>"
    with suppress(UserError):  # of a tag, which drawing tells
        text, named = split_deltas(prompt)
        used = [(words_of(find_delta(deltas_dir, name, by_path=True)), weight) for name, weight in named]
        there = {name: words_of(path) for name, path in named_deltas(deltas_dir).items()}
        elsewhere = lacking(text, there, [word for words, _ in used for word in words])
        sentences = [
            *found_deltas(prompt, deltas_dir),
            *elsewhere.values(),
            *without_meaning(text, used, sampling, _LABELS.__getitem__, elsewhere),
        ]
        told += "".join(f"<p>{html.escape(each)}</p>" for each in sentences)
    return told


_LABELS = {"negative_prompt": "Negative prompt", "guidance_scale": "CFG Scale"}


def _draw(
    models: Models, deltas_dir: Path, job: Job, prompt: str, sampling: Sampling, seed: int, count: int,
    paths: list[Path],
) -> None:  # fmt: skip
    """Draw pictures as files in a folder of their own that the page reads them from, and add them to `paths`."""
    if not prompt.strip():
        raise UserError(f"write a prompt, such as {_EXAMPLE}")
    deltas = find_deltas(prompt, deltas_dir)
    job(0, 0, "Loading the model")
    backend = models.get()
    steps = itertools.count()
    total = sampling.steps * math.ceil(count / sampling.batch_size)
    folder = Path(tempfile.mkdtemp(dir=os.environ.get("GRADIO_TEMP_DIR")))
    with (
        before_each_step(backend, lambda: job(next(steps), total, _of(count).capitalize())),
        closing(draw(backend, prompt, deltas, sampling, seed, count)) as drawn,
    ):
        for picture in drawn:
            paths.append(folder / f"{picture.seed:05d}.png")
            paths[-1].write_bytes(picture.png)


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
