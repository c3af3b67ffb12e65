"""The tab "Train Custom Diffusion" inside the WebUI's Train tab."""

from __future__ import annotations

import html
from typing import Any

import gradio as gr
import torch
from modules import script_callbacks, sd_hijack, shared
from modules.call_queue import wrap_gradio_gpu_call, wrap_queued_call
from modules.textual_inversion import textual_inversion
from modules.ui_common import create_refresh_button
from modules.ui_components import FormRow

from ..attention import SELECTIONS
from ..backend import Sampling
from ..captions import CAPTION_SOURCES
from ..errors import UserError
from .new_embedding import MAX_VECTORS, create_embedding
from .training_form import MAX_CONCEPTS, PRESETS, ConceptForm, TrainingForm
from .training_job import LOG_DIRECTORY, Outcome, train

_CONCEPT_FIELDS = tuple(ConceptForm.__dataclass_fields__)
_PREVIEW_FIELDS = ("prompt", "negative_prompt", "steps", "sampler_name", "cfg_scale", "seed", "width", "height")
"""What the host hands over of the txt2img tab, in its order."""


def build(params: script_callbacks.UiTrainTabParams) -> None:
    """Make the tab; the host calls this while it makes its Train tab."""
    with gr.Tab(label="Train Custom Diffusion", id="train_custom_diffusion", elem_id="cd_train"):
        gr.HTML(
            "<p>Teach the model a thing, a face or a style from a few pictures. It learns a new word and a small change"
            " of how it reads prompts, and keeps both in one file that you can share.</p>"
        )
        task = gr.Textbox(visible=False, elem_id="cd_train_task")
        _create_embedding_box()
        count, concepts = _concept_boxes()
        fields = _setting_boxes()
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
            stop = gr.Button("Interrupt and save", elem_id="cd_stop")
        outcome = gr.HTML(elem_id="cd_outcome")
        with gr.Row():
            prompt = gr.Textbox(label="Prompt to try", visible=False, elem_id="cd_try_prompt", interactive=True)
            send = gr.Button("Send to txt2img", visible=False, elem_id="cd_send")
    names = [*fields]

    def run(_task: str, count: int, from_txt2img: bool, log_directory: str, *values: Any) -> tuple[Any, Any, str]:
        chosen, rest = values[: len(concepts)], values[len(concepts) :]
        size = len(_CONCEPT_FIELDS)
        rows = [dict(zip(_CONCEPT_FIELDS, chosen[at : at + size], strict=True)) for at in range(0, len(chosen), size)]
        settings = dict(zip(names, rest[: len(names)], strict=True))
        txt2img = dict(zip(_PREVIEW_FIELDS, rest[len(names) :], strict=True)) if from_txt2img else None
        return _run([ConceptForm(**row) for row in rows[: int(count)]], settings, log_directory, txt2img)

    start.click(
        fn=wrap_gradio_gpu_call(run, extra_outputs=[gr.update(), gr.update()]),
        _js="startCustomDiffusionTraining",
        inputs=[
            task, count, from_txt2img, log_directory, *concepts, *fields.values(), *params.txt2img_preview_params,
        ],
        outputs=[prompt, send, outcome],
    )  # fmt: skip
    stop.click(fn=lambda: shared.state.interrupt(), inputs=[], outputs=[])
    send.click(fn=None, _js="customDiffusionToTxt2img", inputs=[prompt], outputs=[])


def _run(
    concepts: list[ConceptForm], settings: dict[str, Any], log_directory: str, txt2img: dict[str, Any] | None
) -> tuple[Any, Any, str]:
    """Train, and say what to show: the prompt to try, the button that sends it, the outcome."""
    try:
        preview = None
        if txt2img is not None:
            settings = {**settings, "preview_prompt": txt2img["prompt"]}
            preview = Sampling(
                int(txt2img["steps"]), float(txt2img["cfg_scale"]), txt2img["negative_prompt"],
                (int(txt2img["width"]), int(txt2img["height"])),
            )  # fmt: skip
        filled = {name: value for name, value in settings.items() if value is not None}  # not emptied numbers
        done = train(TrainingForm(concepts=concepts, **filled), log_directory, preview)
    except UserError as error:
        return gr.update(), gr.update(), f"<div class='error'>{html.escape(str(error))}</div>"
    except torch.cuda.OutOfMemoryError:
        message = (
            "The GPU's memory is too small for this. What was saved before is kept. Train fewer pictures at a time,"
            " tick Save memory, or use a smaller picture size."
        )
        return gr.update(), gr.update(), f"<div class='error'>{message}</div>"
    return gr.update(value=done.prompt, visible=True), gr.update(visible=True), _told(done)


def _told(done: Outcome) -> str:
    state = "Interrupted and saved" if done.interrupted else "Finished"
    files = "".join(f"<li><code>{html.escape(str(path))}</code></li>" for path in [done.delta, *done.embeddings])
    return (
        f"<p>{state} after {done.step} steps.</p><ul class='cd-files'>{files}</ul>"
        f"<p>Copies, previews and the loss are in <code>{html.escape(str(done.log_directory))}</code>.</p>"
    )


def _embedding_names() -> list[str]:
    return sorted(sd_hijack.model_hijack.embedding_db.word_embeddings)


def _create_embedding_box() -> None:
    with gr.Accordion("New word", open=False, elem_id="cd_new"):
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

    def make(name: str, text: str, vectors: float, overwrite: bool) -> str:
        try:
            created = create_embedding(name, text, int(vectors), overwrite)
        except UserError as error:
            return f"<div class='error'>{html.escape(str(error))}</div>"
        return f"<p>Created the word <b>{html.escape(created)}</b>. Press 🔄 below to see it in the list.</p>"

    create.click(fn=wrap_queued_call(make), inputs=[name, text, vectors, overwrite], outputs=[told])


def _concept_boxes() -> tuple[gr.Slider, list[gr.components.IOComponent]]:
    """The number of concepts, and the fields of all of them; those beyond the number are hidden."""
    count = gr.Slider(
        label="Concepts to learn together", minimum=1, maximum=MAX_CONCEPTS, step=1, value=1,
        info="Several things in one file, so that they can meet in one picture", elem_id="cd_count",
    )  # fmt: skip
    count.do_not_save_to_config = True  # the boxes below are hidden and shown when it is moved
    fields: list[gr.components.IOComponent] = []
    boxes = []
    for number in range(1, MAX_CONCEPTS + 1):
        with gr.Group(visible=number == 1, elem_id=f"cd_concept_{number}") as box:
            with FormRow():
                embedding = gr.Dropdown(
                    label=f"Word for concept {number}", choices=_embedding_names(),
                    info="An embedding; it is trained on from what it is", elem_id=f"cd_embedding_{number}",
                )  # fmt: skip
                create_refresh_button(
                    embedding,
                    sd_hijack.model_hijack.embedding_db.load_textual_inversion_embeddings,
                    lambda: {"choices": _embedding_names()},
                    f"cd_refresh_embedding_{number}",
                )
                class_word = gr.Textbox(
                    label=f"Kind of concept {number}",
                    info="What it is, in a word the model knows: cat, toy, person, art",
                    elem_id=f"cd_class_{number}",
                )
            with FormRow():
                pictures = gr.Textbox(
                    label=f"Pictures of concept {number}",
                    info="A folder with 4 to 20 pictures of it",
                    elem_id=f"cd_pictures_{number}",
                )
                regularization = gr.Textbox(
                    label=f"Regularization pictures of concept {number}",
                    info="A folder with pictures of other such things, which keeps them as they are; may be empty",
                    elem_id=f"cd_regularization_{number}",
                )
        boxes.append(box)
        fields += [embedding, pictures, class_word, regularization]
    count.change(
        fn=lambda wanted: [gr.update(visible=number < wanted) for number in range(MAX_CONCEPTS)],
        inputs=[count],
        outputs=boxes,
        show_progress=False,
    )
    return count, fields


def _setting_boxes() -> dict[str, gr.components.IOComponent]:
    """The fields of TrainingForm by name, without the concepts."""
    made: dict[str, gr.components.IOComponent] = {}
    with FormRow():
        preset = gr.Dropdown(
            label="What kind of thing", choices=list(PRESETS), value="thing or pet",
            info="Fills in the published settings for it", elem_id="cd_preset",
        )  # fmt: skip
        made["name"] = gr.Textbox(
            label="Name of the result", info="Of the delta file; empty: the word's name", elem_id="cd_name"
        )
        made["overwrite"] = gr.Checkbox(
            label="Overwrite a delta of that name", value=False, info="The old file is lost", elem_id="cd_overwrite"
        )
    with FormRow():
        made["steps"] = gr.Number(
            label="Training steps", value=250, precision=0, info="More learns more, up to a point", elem_id="cd_steps"
        )
        made["batch_size"] = gr.Number(
            label="Pictures a step", value=4, precision=0, info="More is smoother and needs more memory",
            elem_id="cd_batch_size",
        )  # fmt: skip
        made["resolution"] = gr.Number(
            label="Picture size in pixels",
            value=0,
            precision=0,
            info="Width and height; 0: what the model was made for",
            elem_id="cd_resolution",
        )
    with FormRow():
        made["learning_rate"] = gr.Textbox(
            label="Learning rate of the delta", value="8e-5", info="A number, or 1e-5:100, 5e-6 to change it at a step",
            elem_id="cd_learning_rate",
        )  # fmt: skip
        made["embedding_learning_rate"] = gr.Textbox(
            label="Learning rate of the word",
            value="8e-5",
            info="How fast the new word moves",
            elem_id="cd_embedding_learning_rate",
        )
    with FormRow():
        made["prompt"] = gr.Textbox(
            label="Caption of the pictures",
            value="photo of a [name]",
            info="[name] stands for the word and its kind",
            elem_id="cd_prompt",
        )
        made["prior_loss_weight"] = gr.Slider(
            label="Weight of regularization", minimum=0.0, maximum=2.0, step=0.05, value=1.0,
            info="How much other things should stay as they are; 0 switches it off", elem_id="cd_prior_loss_weight",
        )  # fmt: skip
    with FormRow():
        made["save_every"] = gr.Number(
            label="Keep a copy every N steps", value=0, precision=0, info="In the log folder; 0: only the end",
            elem_id="cd_save_every",
        )  # fmt: skip
        made["preview_every"] = gr.Number(
            label="Draw a preview every N steps", value=50, precision=0, info="0: none", elem_id="cd_preview_every"
        )
        made["preview_prompt"] = gr.Textbox(
            label="Prompt of the previews", info="Empty: the caption of concept 1", elem_id="cd_preview_prompt"
        )
    with gr.Accordion("More", open=False, elem_id="cd_more"):
        with FormRow():
            made["select"] = gr.Dropdown(
                label="What to fine-tune", choices=list(SELECTIONS), value=next(iter(SELECTIONS)),
                info="Keys and values are the paper's choice; crossattn is for faces", elem_id="cd_select",
            )  # fmt: skip
            made["captions"] = gr.Dropdown(
                label="Captions come from", choices=list(CAPTION_SOURCES), value=CAPTION_SOURCES[0],
                info="The caption above, .txt files, file names, or a template", elem_id="cd_captions",
            )  # fmt: skip
            made["template"] = gr.Dropdown(
                label="Template of captions", choices=sorted(textual_inversion.textual_inversion_templates),
                value="subject_filewords.txt", info="Used if captions come from one", elem_id="cd_template",
            )  # fmt: skip
        with FormRow():
            made["augment"] = gr.Checkbox(
                label="Vary size and place", value=True, info="The paper's augmentation", elem_id="cd_augment"
            )
            made["flip"] = gr.Checkbox(
                label="Mirror at random", value=False, info="Not for writing, nor for faces", elem_id="cd_flip"
            )
            made["use_alpha"] = gr.Checkbox(
                label="Learn opaque parts only",
                value=False,
                info="A PNG's transparency becomes loss weight",
                elem_id="cd_use_alpha",
            )
            made["gradient_checkpointing"] = gr.Checkbox(
                label="Save memory", value=False, info="Slower; needs much less memory", elem_id="cd_save_memory"
            )
        with FormRow():
            made["gradient_accumulation"] = gr.Number(
                label="Batches a step", value=1, precision=0, info="Larger batches without more memory",
                elem_id="cd_accumulation",
            )  # fmt: skip
            made["clip_mode"] = gr.Dropdown(
                label="Clip gradients by", choices=["norm", "value", "disabled"], value="norm",
                info="Keeps single pictures from doing harm", elem_id="cd_clip_mode",
            )  # fmt: skip
            made["clip_value"] = gr.Number(
                label="Clip gradients at", value=1.0, info="1 by norm is usual", elem_id="cd_clip_value"
            )
            made["seed"] = gr.Number(
                label="Seed of the training", value=42, precision=0, info="Same seed, same result", elem_id="cd_seed"
            )
    filled = sorted({name for values in PRESETS.values() for name in values})
    preset.input(
        fn=lambda chosen: [PRESETS[chosen].get(name, gr.update()) for name in filled],
        inputs=[preset],
        outputs=[made[name] for name in filled],
        show_progress=False,
    )
    return made
