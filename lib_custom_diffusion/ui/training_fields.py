"""The fields of a training on a page, for gradio 3.41.2: what both faces ask, and in which words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ..attention import SELECTIONS
from ..data.captions import CAPTION_SOURCES
from ..training.prior import PRIORS
from .training_form import CLIP_MODES, LABELS, MAX_CONCEPTS, PICTURE_SHAPES

Fields = dict[str, Any]
"""Components by the names of what they fill, see `training_form.entered_plan`."""


@dataclass(frozen=True)
class Face:
    """What differs between the pages.

    row:      what fields stand side by side in.
    word:     makes the fields that say what word concept n has; `modifier_token` must be one of them.
    template: makes the field for a template of captions.
    presets:  what each kind of thing fills in; the form starts with the first.
    """

    row: Callable[[], Any]
    word: Callable[[int], Fields]
    template: Callable[[], gr.components.IOComponent]
    presets: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class FormFields:
    """All fields of the form: the number of concepts, those of each concept, the others, and the preset.

    presets: what each preset fills in.
    """

    count: gr.Slider
    concepts: list[Fields]
    settings: Fields
    preset: gr.Dropdown
    presets: Mapping[str, Mapping[str, Any]]

    @property
    def inputs(self) -> list[gr.components.IOComponent]:
        """What an event must be given for `entered` to understand its values."""
        return [self.count, *(part for each in self.concepts for part in each.values()), *self.settings.values()]

    @property
    def filled(self) -> Fields:
        """The fields that presets fill in."""
        names = {name for values in self.presets.values() for name in values}
        return {name: field for name, field in self.settings.items() if name in names}

    def filled_by(self, preset: str) -> list[Any]:
        """What a preset gives to the fields of `filled`."""
        return [_shown(self.presets[preset], name) for name in self.filled]

    def entered(self, values: Sequence[Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """What was entered, by name: of each concept asked for, and the others; emptied numbers are left out."""
        rest = iter(values)
        asked = int(next(rest))
        concepts = [{name: next(rest) for name in each} for each in self.concepts][:asked]
        settings = {name: next(rest) for name in self.settings}
        return concepts, {name: value for name, value in settings.items() if value is not None}


def form_fields(face: Face) -> FormFields:
    """Make all fields where the page is being built, and let presets and the number of concepts act on them."""
    fields = FormFields(*_concepts(face), *_settings(face), face.presets)
    fields.preset.input(
        fn=fields.filled_by, inputs=[fields.preset], outputs=[*fields.filled.values()], show_progress=False
    )
    return fields


def _concepts(face: Face) -> tuple[gr.Slider, list[Fields]]:
    """The number of concepts, and the fields of all of them; those beyond the number are hidden."""
    count = gr.Slider(
        label="Concepts to learn together", minimum=1, maximum=MAX_CONCEPTS, step=1, value=1,
        info="Several things in one file, so that they can meet in one picture", elem_id="cd_count",
    )  # fmt: skip
    count.do_not_save_to_config = True  # the boxes below are hidden and shown when it is moved
    concepts, boxes = [], []
    for number in range(1, MAX_CONCEPTS + 1):
        with gr.Group(visible=number == 1, elem_id=f"cd_concept_{number}") as box:
            concepts.append(_concept(face, number))
        boxes.append(box)
    count.change(
        fn=lambda wanted: [gr.update(visible=number < wanted) for number in range(MAX_CONCEPTS)],
        inputs=[count],
        outputs=boxes,
        show_progress=False,
    )
    return count, concepts


def _concept(face: Face, number: int) -> Fields:
    with face.row():
        fields = face.word(number)
        fields["class_prompt"] = gr.Textbox(
            label=LABELS["class_prompt"].format(number),
            info="What it is, in a word the model knows: cat, toy, person, art",
            elem_id=f"cd_class_{number}",
        )
    with face.row():
        fields["instance_data_dir"] = gr.Textbox(
            label=LABELS["instance_data_dir"].format(number),
            info="A folder with 4 to 20 pictures of it, in different places and from different angles",
            elem_id=f"cd_pictures_{number}",
        )
    with gr.Accordion(f"Advanced: concept {number}", open=False):
        fields["class_data_dir"] = gr.Textbox(
            label=LABELS["class_data_dir"].format(number),
            info="A folder with some 200 real pictures of other such things; the text prior seldom needs them",
            elem_id=f"cd_regularization_{number}",
        )
    return fields


def _settings(face: Face) -> tuple[Fields, gr.Dropdown]:
    """The fields by name, without those of the concepts; and the choice of a preset."""
    fields: Fields = {}
    with face.row():
        preset = gr.Dropdown(
            label="What kind of thing", choices=list(face.presets), value=next(iter(face.presets)),
            info="Fills in the published settings for it: rates, steps, layers and caption", elem_id="cd_preset",
        )  # fmt: skip
        fields["name"] = gr.Textbox(
            label=LABELS["name"], info="What prompts call the delta; empty: as the word", elem_id="cd_name"
        )
    with face.row():
        fields["overwrite"] = gr.Checkbox(
            label=LABELS["overwrite"], value=False, info="The old file is lost", elem_id="cd_overwrite"
        )
        fields["resume_from_checkpoint"] = gr.Checkbox(
            label=LABELS["resume_from_checkpoint"], value=False, elem_id="cd_resume",
            info="Of a training of that name which was interrupted, broke off, or is to take more steps",
        )  # fmt: skip
        fields["allow_changes"] = gr.Checkbox(
            label=LABELS["allow_changes"], value=False, elem_id="cd_allow_changes",
            info="Otherwise a save is only gone on from with what it was made with",
        )  # fmt: skip
    fields |= _amounts(face) | _rates(face) | _captions(face) | _intervals(face)
    with gr.Accordion("Advanced", open=False, elem_id="cd_more"):
        fields |= _preservation(face) | _layers_and_captions(face) | _views(face) | _gradients(face) | _size(face)
    return fields, preset


def _first(face: Face) -> Mapping[str, Any]:
    """The preset that the form starts with."""
    return next(iter(face.presets.values()))


def _shown(preset: Mapping[str, Any], name: str) -> Any:
    """A preset's value as its field has it: 0 is none."""
    return (preset[name] or 0) if name in preset else gr.update()


def _amounts(face: Face) -> Fields:
    fields: Fields = {}
    with face.row():
        fields["max_train_steps"] = gr.Number(
            label=LABELS["max_train_steps"], value=_first(face)["max_train_steps"], precision=0, elem_id="cd_steps",
            info="More make the thing more alike; too many spoil other pictures",
        )  # fmt: skip
        fields["train_batch_size"] = gr.Number(
            label=LABELS["train_batch_size"], value=4, precision=0, elem_id="cd_batch_size",
            info="More is steadier, slower, and needs more memory",
        )  # fmt: skip
    with face.row():
        fields["resolution"] = gr.Number(
            label=LABELS["resolution"], value=0, precision=0, elem_id="cd_resolution",
            info="Width and height, such as 512; 0: what the model was made for",
        )  # fmt: skip
        fields["resize_mode"] = gr.Dropdown(
            label=LABELS["resize_mode"], choices=list(PICTURE_SHAPES), value=next(iter(PICTURE_SHAPES)),
            info="As they are: upright and wide ones keep their shape, with about as many pixels", elem_id="cd_shape",
        )  # fmt: skip
    return fields


def _rates(face: Face) -> Fields:
    fields: Fields = {}
    with face.row():
        fields["learning_rate"] = gr.Textbox(
            label=LABELS["learning_rate"], value=_first(face)["learning_rate"], elem_id="cd_learning_rate",
            info="How fast the model changes. 1e-5:100, 5e-6 means: the first until step 100, then the second",
        )  # fmt: skip
        fields["embedding_learning_rate"] = gr.Textbox(
            label=LABELS["embedding_learning_rate"], value=_first(face)["embedding_learning_rate"],
            elem_id="cd_embedding_learning_rate",
            info="How fast the meaning of the new word changes. Written as the other rate",
        )  # fmt: skip
    return fields


def _captions(face: Face) -> Fields:
    fields: Fields = {}
    with face.row():
        fields["instance_prompt"] = gr.Textbox(
            label=LABELS["instance_prompt"], value=_first(face)["instance_prompt"], elem_id="cd_prompt",
            info="What the pictures show; [name] stands for the word and its kind",
        )  # fmt: skip
        fields["prior"] = gr.Dropdown(
            label=LABELS["prior"], choices=list(PRIORS), value=PRIORS[0], elem_id="cd_prior",
            info="text: other things of the kind, and all else, stay as they are; needs no pictures and little time",
        )  # fmt: skip
    return fields


def _preservation(face: Face) -> Fields:
    fields: Fields = {}
    with face.row():
        fields["text_prior_weight"] = gr.Number(
            label=LABELS["text_prior_weight"], value=0.1, elem_id="cd_text_prior_weight",
            info="Higher keeps more as it was, and the thing becomes less alike; 0.03 to 0.3 are usual",
        )  # fmt: skip
        fields["prior_loss_weight"] = gr.Slider(
            label=LABELS["prior_loss_weight"], minimum=0.0, maximum=2.0, step=0.05, value=1.0,
            info="Of the folders that a concept's Advanced has; 0 leaves them out", elem_id="cd_prior_loss_weight",
        )  # fmt: skip
    return fields


def _intervals(face: Face) -> Fields:
    fields: Fields = {}
    with face.row():
        fields["checkpointing_steps"] = gr.Number(
            label=LABELS["checkpointing_steps"], value=0, precision=0, elem_id="cd_save_every",
            info="To choose from, and to go on from after a crash; 0: only at the end",
        )  # fmt: skip
        fields["validation_steps"] = gr.Number(
            label=LABELS["validation_steps"], value=50, precision=0, elem_id="cd_preview_every",
            info="A picture of what is learned so far; 0: none",
        )  # fmt: skip
    with face.row():
        fields["validation_prompt"] = gr.Textbox(
            label=LABELS["validation_prompt"], info="Empty: the caption of concept 1", elem_id="cd_preview_prompt"
        )
    return fields


def _layers_and_captions(face: Face) -> Fields:
    fields: Fields = {}
    with face.row():
        fields["freeze_model"] = gr.Dropdown(
            label=LABELS["freeze_model"], choices=list(SELECTIONS), value=next(iter(SELECTIONS)), elem_id="cd_select",
            info="crossattn_kv: what reads the prompt, for most; crossattn: twice as much, for faces",
        )  # fmt: skip
        fields["caption_source"] = gr.Dropdown(
            label=LABELS["caption_source"], choices=list(CAPTION_SOURCES), value=CAPTION_SOURCES[0],
            elem_id="cd_captions",
            info="The caption above, a .txt file beside each picture, the files' names, or a template",
        )  # fmt: skip
    with face.row():
        fields["template"] = face.template()
    return fields


def _views(face: Face) -> Fields:
    fields: Fields = {}
    with face.row():
        fields["augment"] = gr.Checkbox(
            label=LABELS["noaug"], value=True, elem_id="cd_augment",
            info="Shows pictures from afar and close by, so that few are enough",
        )  # fmt: skip
        fields["hflip"] = gr.Checkbox(
            label=LABELS["hflip"], value=False, elem_id="cd_flip",
            info="Shows half of the pictures mirrored; not for writing, nor for faces",
        )  # fmt: skip
    with face.row():
        fields["use_alpha"] = gr.Checkbox(
            label=LABELS["use_alpha"], value=False, elem_id="cd_use_alpha",
            info="Leaves out what is transparent in PNG files",
        )  # fmt: skip
        fields["gradient_checkpointing"] = gr.Checkbox(
            label=LABELS["gradient_checkpointing"],
            value=False,
            info="Slower, with much less memory",
            elem_id="cd_save_memory",
        )
    return fields


def _gradients(face: Face) -> Fields:
    fields: Fields = {}
    with face.row():
        fields["gradient_accumulation_steps"] = gr.Number(
            label=LABELS["gradient_accumulation_steps"], value=1, precision=0, elem_id="cd_accumulation",
            info="So many times the pictures a step, in more time but no more memory",
        )  # fmt: skip
        fields["seed"] = gr.Number(
            label=LABELS["seed"], value=42, precision=0, elem_id="cd_seed",
            info="Start of all that is random: the same seed and settings give the same result",
        )  # fmt: skip
    with face.row():
        fields["clip_mode"] = gr.Dropdown(
            label=LABELS["clip_mode"], choices=list(CLIP_MODES), value=CLIP_MODES[0], elem_id="cd_clip_mode",
            info="Keeps a single odd picture from doing harm: by its whole push, or each number by itself",
        )  # fmt: skip
        fields["clip_value"] = gr.Number(
            label=LABELS["max_grad_norm"], value=1.0, info="Smaller is more careful; 1 by norm is usual",
            elem_id="cd_clip_value",
        )  # fmt: skip
    with face.row():
        fields["snr_gamma"] = gr.Number(
            label=LABELS["snr_gamma"], value=_shown(_first(face), "snr_gamma"), elem_id="cd_snr_gamma",
            info="Smaller learns more from noisy pictures, where shape and colour are decided; 5 is usual; 0: off",
        )  # fmt: skip
    return fields


def _size(face: Face) -> Fields:
    fields: Fields = {}
    with face.row():
        fields["max_size"] = gr.Number(
            label=LABELS["max_size"], value=0.0, elem_id="cd_max_megabytes",
            info="5 to 15 are usual for Stable Diffusion; 0: leave it as it is",
        )  # fmt: skip
        fields["rank"] = gr.Number(
            label=LABELS["rank"], value=0, precision=0, elem_id="cd_rank",
            info="Instead of a size in MB: 1 is smallest, 64 is next to all; 0: no",
        )  # fmt: skip
    return fields
