"""The fields of a training on a page, for gradio 3.41.2: what both faces ask, and in which words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ..attention import SELECTIONS
from ..captions import CAPTION_SOURCES
from .training_form import CLIP_MODES, MAX_CONCEPTS, PRESETS

Fields = dict[str, Any]
"""Components by the names of what they fill: fields of a ConceptForm or of a TrainingForm."""


@dataclass(frozen=True)
class Face:
    """What differs between the pages.

    row:      what fields stand side by side in.
    word:     makes the fields that say what word concept n has; `embedding` must be one of them.
    template: makes the field for a template of captions.
    defaults: values of fields that this face starts with otherwise.
    """

    row: Callable[[], Any]
    word: Callable[[int], Fields]
    template: Callable[[], gr.components.IOComponent]
    defaults: dict[str, Any]


@dataclass(frozen=True)
class FormFields:
    """All fields of the form: the number of concepts, those of each concept, and the others."""

    count: gr.Slider
    concepts: list[Fields]
    settings: Fields

    @property
    def inputs(self) -> list[gr.components.IOComponent]:
        """What an event must be given for `entered` to understand its values."""
        return [self.count, *(part for each in self.concepts for part in each.values()), *self.settings.values()]

    def entered(self, values: Sequence[Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """What was entered, by name: of each concept asked for, and the others; emptied numbers are left out."""
        rest = iter(values)
        asked = int(next(rest))
        concepts = [{name: next(rest) for name in each} for each in self.concepts][:asked]
        settings = {name: next(rest) for name in self.settings}
        return concepts, {name: value for name, value in settings.items() if value is not None}


def form_fields(face: Face) -> FormFields:
    """Make all fields where the page is being built, and let presets and the number of concepts act on them."""
    count, concepts = _concepts(face)
    settings = _settings(face)
    for name, value in face.defaults.items():
        settings[name].value = value
    return FormFields(count, concepts, settings)


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
        fields["class_word"] = gr.Textbox(
            label=f"Kind of concept {number}",
            info="What it is, in a word the model knows: cat, toy, person, art",
            elem_id=f"cd_class_{number}",
        )
    with face.row():
        fields["pictures"] = gr.Textbox(
            label=f"Pictures of concept {number}",
            info="A folder with 4 to 20 pictures of it",
            elem_id=f"cd_pictures_{number}",
        )
        fields["regularization"] = gr.Textbox(
            label=f"Regularization pictures of concept {number}",
            info="A folder with pictures of other such things, which keeps them as they are; may be empty",
            elem_id=f"cd_regularization_{number}",
        )
    return fields


def _settings(face: Face) -> Fields:
    """The fields of TrainingForm by name, without the concepts."""
    fields: Fields = {}
    with face.row():
        preset = gr.Dropdown(
            label="What kind of thing", choices=list(PRESETS), value="thing or pet",
            info="Fills in the published settings for it", elem_id="cd_preset",
        )  # fmt: skip
        fields["name"] = gr.Textbox(
            label="Name of the result", info="Of the delta file; empty: the word's name", elem_id="cd_name"
        )
        fields["overwrite"] = gr.Checkbox(
            label="Overwrite a delta of that name", value=False, info="The old file is lost", elem_id="cd_overwrite"
        )
    fields |= _amounts(face) | _rates(face) | _captions(face) | _intervals(face)
    with gr.Accordion("More", open=False, elem_id="cd_more"):
        fields |= _layers_and_captions(face) | _views(face) | _gradients(face)
    filled = sorted({name for values in PRESETS.values() for name in values})
    preset.input(
        fn=lambda chosen: [PRESETS[chosen].get(name, gr.update()) for name in filled],
        inputs=[preset],
        outputs=[fields[name] for name in filled],
        show_progress=False,
    )
    return fields


def _amounts(face: Face) -> Fields:
    fields: Fields = {}
    with face.row():
        fields["steps"] = gr.Number(
            label="Training steps", value=250, precision=0, info="More learns more, up to a point", elem_id="cd_steps"
        )
        fields["batch_size"] = gr.Number(
            label="Pictures a step", value=4, precision=0, info="More is smoother and needs more memory",
            elem_id="cd_batch_size",
        )  # fmt: skip
        fields["resolution"] = gr.Number(
            label="Picture size in pixels", value=0, precision=0,
            info="Width and height; 0: what the model was made for", elem_id="cd_resolution",
        )  # fmt: skip
    return fields


def _rates(face: Face) -> Fields:
    fields: Fields = {}
    with face.row():
        fields["learning_rate"] = gr.Textbox(
            label="Learning rate of the delta", value="8e-5", info="A number, or 1e-5:100, 5e-6 to change it at a step",
            elem_id="cd_learning_rate",
        )  # fmt: skip
        fields["embedding_learning_rate"] = gr.Textbox(
            label="Learning rate of the word", value="8e-5", info="How fast the new word moves",
            elem_id="cd_embedding_learning_rate",
        )  # fmt: skip
    return fields


def _captions(face: Face) -> Fields:
    fields: Fields = {}
    with face.row():
        fields["prompt"] = gr.Textbox(
            label="Caption of the pictures", value="photo of a [name]",
            info="[name] stands for the word and its kind", elem_id="cd_prompt",
        )  # fmt: skip
        fields["prior_loss_weight"] = gr.Slider(
            label="Weight of regularization", minimum=0.0, maximum=2.0, step=0.05, value=1.0,
            info="How much other things should stay as they are; 0 switches it off", elem_id="cd_prior_loss_weight",
        )  # fmt: skip
    return fields


def _intervals(face: Face) -> Fields:
    fields: Fields = {}
    with face.row():
        fields["save_every"] = gr.Number(
            label="Keep a copy every N steps", value=0, precision=0, info="In the log folder; 0: only the end",
            elem_id="cd_save_every",
        )  # fmt: skip
        fields["preview_every"] = gr.Number(
            label="Draw a preview every N steps", value=50, precision=0, info="0: none", elem_id="cd_preview_every"
        )
        fields["preview_prompt"] = gr.Textbox(
            label="Prompt of the previews", info="Empty: the caption of concept 1", elem_id="cd_preview_prompt"
        )
    return fields


def _layers_and_captions(face: Face) -> Fields:
    fields: Fields = {}
    with face.row():
        fields["select"] = gr.Dropdown(
            label="What to fine-tune", choices=list(SELECTIONS), value=next(iter(SELECTIONS)),
            info="Keys and values are the paper's choice; crossattn is for faces", elem_id="cd_select",
        )  # fmt: skip
        fields["captions"] = gr.Dropdown(
            label="Captions come from", choices=list(CAPTION_SOURCES), value=CAPTION_SOURCES[0],
            info="The caption above, .txt files, file names, or a template", elem_id="cd_captions",
        )  # fmt: skip
        fields["template"] = face.template()
    return fields


def _views(face: Face) -> Fields:
    fields: Fields = {}
    with face.row():
        fields["augment"] = gr.Checkbox(
            label="Vary size and place", value=True, info="The paper's augmentation", elem_id="cd_augment"
        )
        fields["flip"] = gr.Checkbox(
            label="Mirror at random", value=False, info="Not for writing, nor for faces", elem_id="cd_flip"
        )
        fields["use_alpha"] = gr.Checkbox(
            label="Learn opaque parts only", value=False, info="A PNG's transparency becomes loss weight",
            elem_id="cd_use_alpha",
        )  # fmt: skip
        fields["gradient_checkpointing"] = gr.Checkbox(
            label="Save memory", value=False, info="Slower; needs much less memory", elem_id="cd_save_memory"
        )
    return fields


def _gradients(face: Face) -> Fields:
    fields: Fields = {}
    with face.row():
        fields["gradient_accumulation"] = gr.Number(
            label="Batches a step", value=1, precision=0, info="Larger batches without more memory",
            elem_id="cd_accumulation",
        )  # fmt: skip
        fields["clip_mode"] = gr.Dropdown(
            label="Clip gradients by", choices=list(CLIP_MODES), value=CLIP_MODES[0],
            info="Keeps single pictures from doing harm", elem_id="cd_clip_mode",
        )  # fmt: skip
        fields["clip_value"] = gr.Number(
            label="Clip gradients at", value=1.0, info="1 by norm is usual", elem_id="cd_clip_value"
        )
        fields["seed"] = gr.Number(
            label="Seed of the training", value=42, precision=0, info="Same seed, same result", elem_id="cd_seed"
        )
    return fields
