"""The settings of a training as fields, for gradio 3.41.2: what stands under Advanced, a group each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import gradio as gr

from ..attention import SELECTIONS
from ..data.captions import CAPTION_SOURCES
from ..training.optimizers import OPTIMIZERS
from ..training.prior import PRIORS
from .training_form import CLIP_MODES, LABELS, PICTURE_SHAPES

Fields = dict[str, Any]
"""Components by the names of what they fill, see `training_form.entered_plan`."""
Preset = Mapping[str, Any]
"""What a preset fills in, by the plan's names."""
Row = Callable[[], Any]
"""What fields stand side by side in."""

_SETTINGS = {"augment": "noaug"}
"""The settings that boxes switch off when they are ticked."""


def settings_fields(row: Row, start: Preset, template: Callable[[], gr.components.IOComponent]) -> Fields:
    """Make the fields of all settings where gradio is building a page, filled in as a preset says.

    template: makes the field for a template of captions.
    """
    return {
        **_result(row),
        **_amounts(row, start),
        **_rates(row, start),
        **_captions(row, start, template),
        **_pictures(row, start),
        **_preservation(row),
        **_saves(row),
        **_gradients(row, start),
    }


def is_filled_by(preset: Preset, field: str) -> bool:
    """Whether a preset says what is in a field."""
    return _SETTINGS.get(field, field) in preset


def value_shown(preset: Preset, field: str) -> Any:
    """A preset's value as its field has it: 0 is none. An update that changes nothing, if it has no such value."""
    if not is_filled_by(preset, field):
        return gr.update()
    value = preset[_SETTINGS.get(field, field)]
    return not value if field in _SETTINGS else value or 0


@contextmanager
def group(title: str) -> Iterator[None]:
    """Fields under a heading."""
    gr.HTML(f"<h4>{title}</h4>", elem_classes=["cd-group"])
    yield


def _result(row: Row) -> Fields:
    fields: Fields = {}
    with group("Result"), row():
        fields["name"] = gr.Textbox(
            label=LABELS["name"],
            info="The file with what was learned; prompts use this name. Leave empty to use the word",
            max_lines=1,
            elem_id="cd_name",
        )
        fields["overwrite"] = gr.Checkbox(
            label=LABELS["overwrite"], value=False, elem_id="cd_overwrite",
            info="Replace the delta of this name and its trained embedding",
        )  # fmt: skip
    with row():
        fields["max_size"] = gr.Number(
            label=LABELS["max_size"], value=0.0, elem_id="cd_max_megabytes",
            info="5 to 15 is usual for Stable Diffusion 1",
        )  # fmt: skip
        fields["rank"] = gr.Number(
            label=LABELS["rank"], value=0, precision=0, elem_id="cd_rank",
            info="How much each layer can learn. A low rank, such as 16, needs less memory and makes a smaller file."
            " The default is 32 for SDXL, and no limit for other models",
        )  # fmt: skip
    return fields


def _amounts(row: Row, start: Preset) -> Fields:
    fields: Fields = {}
    with group("Training"), row():
        fields["max_train_steps"] = gr.Number(
            label=LABELS["max_train_steps"], value=start["max_train_steps"], precision=0, elem_id="cd_steps",
            info="More steps give a closer likeness; too many spoil other pictures",
        )  # fmt: skip
        fields["train_batch_size"] = gr.Number(
            label=LABELS["train_batch_size"], value=4, precision=0, elem_id="cd_batch_size",
            info="Larger is steadier but slower, and needs more memory",
        )  # fmt: skip
    with row():
        fields["gradient_accumulation_steps"] = gr.Number(
            label=LABELS["gradient_accumulation_steps"], value=1, precision=0, elem_id="cd_accumulation",
            info="Multiplies the batch size: takes more time but no more memory",
        )  # fmt: skip
        fields["freeze_model"] = gr.Dropdown(
            label=LABELS["freeze_model"], choices=list(SELECTIONS), value=next(iter(SELECTIONS)), elem_id="cd_select",
            info="What connects words and pictures: crossattn_kv is enough for most things; crossattn trains twice"
            " as many weights, for faces",
        )  # fmt: skip
    return fields


def _rates(row: Row, start: Preset) -> Fields:
    fields: Fields = {}
    with row():
        fields["learning_rate"] = gr.Textbox(
            label=LABELS["learning_rate"], value=start["learning_rate"], max_lines=1, elem_id="cd_learning_rate",
            info="How far each step changes the model. 1e-5:100, 5e-6 means 1e-5 until step 100, then 5e-6",
        )  # fmt: skip
        fields["embedding_learning_rate"] = gr.Textbox(
            label=LABELS["embedding_learning_rate"], value=start["embedding_learning_rate"],
            max_lines=1, elem_id="cd_embedding_learning_rate", info="For the new word, in the same notation",
        )  # fmt: skip
    with row():
        fields["optimizer"] = gr.Dropdown(
            label=LABELS["optimizer"], choices=list(OPTIMIZERS), value=OPTIMIZERS[0], elem_id="cd_optimizer",
            info="adamw8bit needs bitsandbytes; prodigy needs prodigyopt, and 1 as both rates; lion needs lion-pytorch,"
            " and a third to a tenth of the rates; sgd needs higher ones",
        )  # fmt: skip
    with row():
        fields["seed"] = gr.Number(
            label=LABELS["seed"], value=42, precision=0, elem_id="cd_seed",
            info="The same seed and settings give the same result",
        )  # fmt: skip
        fields["gradient_checkpointing"] = gr.Checkbox(
            label=LABELS["gradient_checkpointing"], value=False, info="Slower, but needs much less memory",
            elem_id="cd_save_memory",
        )  # fmt: skip
    return fields


def _captions(row: Row, start: Preset, template: Callable[[], gr.components.IOComponent]) -> Fields:
    fields: Fields = {}
    with group("Captions"), row():
        fields["instance_prompt"] = gr.Textbox(
            label=LABELS["instance_prompt"], value=start["instance_prompt"], elem_id="cd_prompt",
            info="What the pictures show; [name] stands for the word and its kind",
        )  # fmt: skip
        fields["caption_source"] = gr.Dropdown(
            label=LABELS["caption_source"], choices=list(CAPTION_SOURCES), value=CAPTION_SOURCES[0],
            elem_id="cd_captions",
            info="prompt: the caption here; txt: text files beside pictures; filename: their names; or a template",
        )  # fmt: skip
    with row():
        fields["template"] = template()
    return fields


def _pictures(row: Row, start: Preset) -> Fields:
    fields: Fields = {}
    with group("Pictures"), row():
        fields["resolution"] = gr.Number(
            label=LABELS["resolution"], value=0, precision=0, elem_id="cd_resolution",
            info="In pixels, such as 512; 0 for the model's own size",
        )  # fmt: skip
        fields["resize_mode"] = gr.Dropdown(
            label=LABELS["resize_mode"], choices=list(PICTURE_SHAPES), value=next(iter(PICTURE_SHAPES)),
            info="“as they are” keeps each picture's shape, at about the same number of pixels", elem_id="cd_shape",
        )  # fmt: skip
    with row():
        fields["augment"] = gr.Checkbox(
            label=LABELS["noaug"], value=value_shown(start, "augment"), elem_id="cd_augment",
            info="Also show each picture smaller and closer up, so that a few pictures are enough",
        )  # fmt: skip
        fields["hflip"] = gr.Checkbox(
            label=LABELS["hflip"], value=False, elem_id="cd_flip",
            info="Mirror half of the pictures; not for writing or faces",
        )  # fmt: skip
    with row():
        fields["use_alpha"] = gr.Checkbox(
            label=LABELS["use_alpha"], value=False, elem_id="cd_use_alpha",
            info="Learn nothing from transparent parts",
        )  # fmt: skip
    return fields


def _preservation(row: Row) -> Fields:
    fields: Fields = {}
    with group("Prior preservation"), row():
        fields["prior"] = gr.Dropdown(
            label=LABELS["prior"], choices=list(PRIORS), value=PRIORS[0], elem_id="cd_prior",
            info="The prior is what the model knew before: text keeps it as it was, without any pictures",
        )  # fmt: skip
        fields["text_prior_weight"] = gr.Number(
            label=LABELS["text_prior_weight"], value=0.1, elem_id="cd_text_prior_weight",
            info="Higher keeps more as it was, but your concept is learned less closely; try 0.03 to 0.3",
        )  # fmt: skip
    with row():
        fields["prior_loss_weight"] = gr.Slider(
            label=LABELS["prior_loss_weight"], minimum=0.0, maximum=2.0, step=0.05, value=1.0,
            info="0 ignores them", elem_id="cd_prior_loss_weight",
        )  # fmt: skip
    return fields


def _saves(row: Row) -> Fields:
    fields: Fields = {}
    with group("Saves and previews"), row():
        fields["checkpointing_steps"] = gr.Number(
            label=LABELS["checkpointing_steps"], value=0, precision=0, elem_id="cd_save_every",
            info="To choose the best from, and to resume from after a crash; each takes disk space, so none by default",
        )  # fmt: skip
        fields["validation_steps"] = gr.Number(
            label=LABELS["validation_steps"], value=50, precision=0, elem_id="cd_preview_every",
            info="A preview of what has been learned so far",
        )  # fmt: skip
    with row():
        fields["validation_prompt"] = gr.Textbox(
            label=LABELS["validation_prompt"], info="Leave empty to use the caption of the first concept",
            elem_id="cd_preview_prompt",
        )  # fmt: skip
    with row():
        fields["resume_from_checkpoint"] = gr.Checkbox(
            label=LABELS["resume_from_checkpoint"], value=False, elem_id="cd_resume",
            info="Continue a training of this name that was interrupted or crashed, or add steps to it",
        )  # fmt: skip
        fields["allow_changes"] = gr.Checkbox(
            label=LABELS["allow_changes"], value=False, elem_id="cd_allow_changes",
            info="Otherwise both must be the same as when it was saved",
        )  # fmt: skip
    return fields


def _gradients(row: Row, start: Preset) -> Fields:
    fields: Fields = {}
    with group("Gradients"), row():
        fields["clip_mode"] = gr.Dropdown(
            label=LABELS["clip_mode"], choices=list(CLIP_MODES), value=CLIP_MODES[0], elem_id="cd_clip_mode",
            info="Limits the effect of a single odd batch: by the norm of all gradients, or value by value",
        )  # fmt: skip
        fields["clip_value"] = gr.Number(
            label=LABELS["max_grad_norm"], value=1.0, info="Smaller is more cautious; 1 is usual with norm",
            elem_id="cd_clip_value",
        )  # fmt: skip
    with row():
        fields["snr_gamma"] = gr.Number(
            label=LABELS["snr_gamma"], value=value_shown(start, "snr_gamma"), elem_id="cd_snr_gamma",
            info="Balances what is learned from little and from much noise: smaller learns more from noisy pictures,"
            " which decide shape and color; 5 is usual, 0 is off",
        )  # fmt: skip
    return fields
