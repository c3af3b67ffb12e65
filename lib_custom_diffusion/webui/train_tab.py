"""The tab "Custom Diffusion" inside the WebUI's Train tab."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from gradio.context import Context
from modules import script_callbacks, sd_hijack, sd_models, sd_samplers, shared
from modules.call_queue import wrap_gradio_gpu_call, wrap_queued_call
from modules.textual_inversion import textual_inversion
from modules.ui_common import create_refresh_button
from modules.ui_components import FormRow

from ..backend import Sampling
from ..errors import UserError
from ..training.plan import TrainingPlan
from ..training.recipes import RECIPES, TOY_RECIPES
from ..ui.training_fields import Face, FormFields, form_fields
from ..ui.training_form import LABELS, entered_plan
from ..ui.training_page import OUT_OF_MEMORY, error_html
from .host_backend import model_resolution
from .new_embedding import MAX_VECTORS, create_embedding
from .reopened_page import Shown, end_of, failed, succeeded
from .toy_model import no_checkpoint, toy_button
from .training_job import LOG_DIRECTORY, estimate, template_file, train

_PREVIEW_FIELDS = ("prompt", "negative_prompt", "steps", "sampler_name", "cfg_scale", "seed", "width", "height")
"""What the host hands over of the txt2img tab, in its order."""
_SENT = ("prompt", "steps", "sampler_name", "cfg_scale", "width", "height")
"""What of these is sent there with a prompt to try."""


def build(params: script_callbacks.UiTrainTabParams) -> None:
    """Make the tab; the host calls this while it makes its Train tab."""
    with gr.Tab(label="Custom Diffusion", id="train_custom_diffusion", elem_id="cd_train"):
        gr.HTML(
            "<p>Teach the model a thing, a face or a style from a few pictures. It learns a new word and a small change"
            " of how it reads prompts, and keeps both in one file that you can share.</p>"
        )
        with gr.Group(visible=no_checkpoint(), elem_id="cd_no_checkpoint") as offer:
            toy_button("cd_train_toy")
        task = gr.Textbox(visible=False, elem_id="cd_train_task")
        create = _create_embedding_box()
        fields = form_fields(Face(FormRow, _word, _template, {**RECIPES, **TOY_RECIPES}))
        words = [concept["modifier_token"] for concept in fields.concepts]
        create(words)
        # The page is made once, when the host starts; checkpoints and words come and go while it runs.
        Context.root_block.load(
            fn=lambda: [gr.update(visible=no_checkpoint()), *(gr.update(choices=_embedding_names()) for _ in words)],
            inputs=[], outputs=[offer, *words], queue=False, show_progress=False,
        )  # fmt: skip
        log_directory = gr.Textbox(
            label="Folder for logs, copies and previews",
            value=LOG_DIRECTORY,
            info="Subfolders by date and name are made in it",
            elem_id="cd_log_directory",
        )
        from_txt2img = gr.Checkbox(
            label="Draw previews with the settings of the txt2img tab",
            value=False,
            info="Its prompt, sampler, steps, seed and size, as they are when the training starts",
            elem_id="cd_preview_from_txt2img",
        )
        with gr.Row():
            start = gr.Button("Train", variant="primary", elem_id="cd_start")
            ask = gr.Button("How long will it take?", elem_id="cd_ask")
            stop = gr.Button("Interrupt and save", elem_id="cd_stop")
        told = gr.HTML(elem_id="cd_estimate")
        outcome = gr.HTML(elem_id="cd_outcome")
        with gr.Row():
            prompt = gr.Textbox(label="Prompt to try", visible=False, elem_id="cd_try_prompt", interactive=True)
            send = gr.Button("Send to txt2img", visible=False, elem_id="cd_send")
            reopened = gr.Button(visible=False, elem_id="cd_reopened")
            toy_preset = gr.Button(visible=False, elem_id="cd_toy_preset")

    def run(_task: str, from_txt2img: bool, log_directory: str, *values: Any) -> Shown:
        entered, preview = values[: len(fields.inputs)], values[len(fields.inputs) :]
        txt2img = dict(zip(_PREVIEW_FIELDS, preview, strict=True)) if from_txt2img else None
        return _train(fields, entered, log_directory, txt2img)

    start.click(
        fn=wrap_gradio_gpu_call(run, extra_outputs=[gr.update(), gr.update()]),
        _js="startCustomDiffusionTraining",
        inputs=[task, from_txt2img, log_directory, *fields.inputs, *params.txt2img_preview_params],
        outputs=[prompt, send, outcome],
    )
    # Pressed by the page, if a training runs while it is opened.
    reopened.click(fn=end_of, _js="endOfCustomDiffusionTraining", inputs=[task], outputs=[prompt, send, outcome])
    ask.click(
        fn=wrap_gradio_gpu_call(lambda _task, *values: (_estimate(fields, values),), extra_outputs=[]),
        _js="startCustomDiffusionEstimate",
        inputs=[task, *fields.inputs],
        outputs=[told],
    )
    stop.click(fn=lambda: shared.state.interrupt(), inputs=[], outputs=[])
    # Pressed by the page when the toy was installed.
    toy_preset.click(
        fn=lambda: [gr.update(visible=False), next(iter(TOY_RECIPES)), *fields.filled_by(next(iter(TOY_RECIPES)))],
        inputs=[], outputs=[offer, fields.preset, *fields.filled.values()],
        show_progress=False,
    )  # fmt: skip
    txt2img_fields = dict(zip(_PREVIEW_FIELDS, params.txt2img_preview_params, strict=True))
    send.click(
        fn=_to_txt2img, inputs=[prompt], outputs=[txt2img_fields[name] for name in _SENT], show_progress=False
    ).then(fn=None, _js="customDiffusionToTxt2img", inputs=[], outputs=[])


def _train(fields: FormFields, values: Sequence[Any], log_directory: str, txt2img: dict[str, Any] | None) -> Shown:
    """Train, and say what to show."""
    preview = None
    try:
        plan = _entered(fields, values)
        if txt2img is not None:
            plan = replace(plan, validation_prompt=txt2img["prompt"] or plan.validation_prompt)
            preview = Sampling(
                int(txt2img["steps"]), float(txt2img["cfg_scale"]), txt2img["negative_prompt"],
                (int(txt2img["width"]), int(txt2img["height"])),
            )  # fmt: skip
        done = train(plan, log_directory, preview)
    except UserError as error:
        return failed(error_html(error))
    except torch.cuda.OutOfMemoryError:
        return failed(error_html(OUT_OF_MEMORY))
    return succeeded(done)


def _to_txt2img(prompt: str) -> list[Any]:
    """The fields of `_SENT` as the previews had them: as suits the model that is loaded."""
    side, usual = model_resolution(sd_models.model_data.sd_model), Sampling()
    return [prompt, usual.steps, sd_samplers.visible_sampler_names()[0], usual.guidance_scale, side, side]


def _estimate(fields: FormFields, values: Sequence[Any]) -> str:
    try:
        return f"<p>{html.escape(estimate(_entered(fields, values)))}</p>"
    except UserError as error:
        return error_html(error)
    except torch.cuda.OutOfMemoryError:
        return error_html(OUT_OF_MEMORY)


def _entered(fields: FormFields, values: Sequence[Any]) -> TrainingPlan:
    concepts, settings = fields.entered(values)
    return entered_plan(concepts, settings, template_file)


def _embedding_names() -> list[str]:
    """The words that there are; until the host has read them, those that its folder has files for."""
    files = Path(shared.cmd_opts.embeddings_dir).rglob("*")
    names = sd_hijack.model_hijack.embedding_db.word_embeddings or (
        path.stem for path in files if path.suffix.lower() in (".pt", ".bin", ".safetensors")
    )
    return sorted(names)


def _word(number: int) -> dict[str, Any]:
    """The embedding of a concept, with the host's button that reads them again."""
    embedding = gr.Dropdown(
        label=LABELS["modifier_token"].format(number), choices=_embedding_names(),
        info="The word to teach, an embedding; make a new one above", elem_id=f"cd_embedding_{number}",
    )  # fmt: skip
    create_refresh_button(
        embedding,
        sd_hijack.model_hijack.embedding_db.load_textual_inversion_embeddings,
        lambda: {"choices": _embedding_names()},
        f"cd_refresh_embedding_{number}",
    )
    return {"modifier_token": embedding}


def _template() -> Any:
    return gr.Dropdown(
        label=LABELS["template"], choices=sorted(textual_inversion.textual_inversion_templates),
        value="subject_filewords.txt", info="Used if captions come from one", elem_id="cd_template",
    )  # fmt: skip


def _create_embedding_box() -> Callable[[list[gr.Dropdown]], None]:
    """Where a new word is made; open where there is none yet. To be called with the fields that words are chosen in."""
    with gr.Accordion("New word", open=not _embedding_names(), elem_id="cd_new"):
        with FormRow():
            name = gr.Textbox(
                label="Name of the new word",
                info="What you write in prompts, such as mycat",
                elem_id="cd_new_name",
            )
            text = gr.Textbox(
                label="Starts from the words",
                value="ktn",
                info="A rare word, or one close to your thing",
                elem_id="cd_new_text",
            )
        with FormRow():
            vectors = gr.Slider(
                label="Vectors of the new word", minimum=1, maximum=MAX_VECTORS, step=1, value=1,
                info="More hold more detail, and take more room in prompts; 1 is usual", elem_id="cd_new_vectors",
            )  # fmt: skip
            overwrite = gr.Checkbox(
                label="Overwrite a word of that name",
                value=False,
                info="Its old vectors are lost",
                elem_id="cd_new_overwrite",
            )
        create = gr.Button("Create the word", elem_id="cd_new_create")
        told = gr.HTML(elem_id="cd_new_told")

    def make(name: str, text: str, vectors: float, overwrite: bool, *chosen: str) -> list[Any]:
        try:
            created = create_embedding(name, text, int(vectors), overwrite)
        except UserError as error:
            return [error_html(error), *(gr.update() for _ in chosen)]
        told = f"<p>Created the word <b>{html.escape(created)}</b>; it is in the list below.</p>"
        words, first = _embedding_names(), chosen[0] or created
        return [told, gr.update(choices=words, value=first), *(gr.update(choices=words) for _ in chosen[1:])]

    def bind(choices: list[gr.Dropdown]) -> None:
        inputs = [name, text, vectors, overwrite, *choices]
        create.click(fn=wrap_queued_call(make), inputs=inputs, outputs=[told, *choices])

    return bind
