"""The fields of a training on a page, for gradio 3.41.2: what both faces ask, and in which words.

What everybody must say fits on one screen with the button: see `essential_fields`. All else is in Advanced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ..attention import SELECTIONS
from ..data.captions import CAPTION_SOURCES
from ..training.optimizers import OPTIMIZERS
from ..training.prior import PRIORS
from .answers import clear_first, forget_errors
from .picture_strip import folder_fault, picture_strip
from .training_form import CLIP_MODES, LABELS, MAX_CONCEPTS, PICTURE_SHAPES, label_of_concept

Fields = dict[str, Any]
"""Components by the names of what they fill, see `training_form.entered_plan`."""

_SETTINGS = {"augment": "noaug"}
"""The settings that boxes switch off when they are ticked."""


@dataclass(frozen=True)
class Face:
    """What differs between the pages.

    row:      what fields stand side by side in.
    word:     makes the fields that say what word concept n has; `modifier_token` must be one of them.
    more:     makes the fields of a concept's word that belong to Advanced.
    template: makes the field for a template of captions.
    presets:  what each kind of thing fills in; the form starts with the first.
    note:     what is said of a preset (HTML), with the folder of pictures that was entered, "" for none, and, as the
              form has them by now, steps, batch size and layers (see `preset_note.amended`).
    keep:     keeps pictures that were dragged in (their files), beside those in the folder that is chosen if they were
              dragged in before, and gives the folder that they are in ("" for none), and what to tell of files that are
              left out (HTML, "" for none); None if none can be dragged in.
    """

    row: Callable[[], Any]
    word: Callable[[int], Fields]
    more: Callable[[int], Fields]
    template: Callable[[], gr.components.IOComponent]
    presets: Mapping[str, Mapping[str, Any]]
    note: Callable[..., str]
    keep: Callable[[Sequence[str], str], tuple[str, str]] | None = None


@dataclass(frozen=True)
class Essentials:
    """The fields of the first concept, the preset, what is said of it, and the pictures as they will be cropped.

    uploads: where pictures are dragged in, if they can be.
    """

    concept: Fields
    uploads: gr.File | None
    preset: gr.Dropdown
    note: gr.HTML
    strip: gr.HTML


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
    def noted(self) -> list[gr.components.IOComponent]:
        """What `Face.note` is given."""
        amounts = [self.settings[name] for name in ("max_train_steps", "train_batch_size", "freeze_model")]
        return [self.preset, self.concepts[0]["instance_data_dir"], *amounts]

    @property
    def filled(self) -> Fields:
        """The fields that presets fill in."""
        names = {name for values in self.presets.values() for name in values}
        return {name: field for name, field in self.settings.items() if _SETTINGS.get(name, name) in names}

    def filled_by(self, preset: str) -> list[Any]:
        """What a preset gives to the fields of `filled`."""
        return [_shown(self.presets[preset], name) for name in self.filled]

    def entered(self, values: Sequence[Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """What was entered, by name: of each concept asked for, and the others; an emptied number is None."""
        rest = iter(values)
        asked = int(next(rest) or 1)
        concepts = [{name: next(rest) for name in each} for each in self.concepts][:asked]
        settings = {name: next(rest) for name in self.settings}
        numbers = {name for name, part in self.settings.items() if isinstance(part, (gr.Number, gr.Slider))}
        return concepts, {name: value for name, value in settings.items() if value is not None or name in numbers}


def essential_fields(face: Face) -> Essentials:
    """Make what everybody must say, where the page is being built."""
    with face.row():
        concept = _word_and_kind(face, 1)
    concept["instance_data_dir"] = _pictures(1)
    uploads = None
    if face.keep:  # of any kind: gradio would drop others without a word
        uploads = gr.File(label="Or drag pictures here", file_count="multiple", height=76, elem_id="cd_upload")
    strip = gr.HTML(elem_id="cd_strip")
    with face.row():
        preset = gr.Dropdown(
            label="Preset", choices=list(face.presets), value=next(iter(face.presets)), elem_id="cd_preset"
        )
        note = gr.HTML(value=face.note(next(iter(face.presets)), ""), elem_id="cd_note")
    return Essentials(concept, uploads, preset, note, strip)


def advanced_fields(face: Face, essentials: Essentials, told: gr.HTML, also: Callable[[], Fields]) -> FormFields:
    """Make all other fields, grouped, and let presets, folders and the number of concepts act on what they concern.

    told: where it is said what is wrong with what was entered. also: makes the fields that the face has besides.
    """
    with gr.Accordion("Advanced", open=False, elem_id="cd_more"):
        count, concepts = _concepts(face, essentials)
        settings: Fields = {}
        for group in (_result, _amounts, _rates, _captions, _pictures_settings, _preservation, _saves, _gradients):
            settings |= group(face)
        settings |= also()
    fields = FormFields(count, concepts, settings, essentials.preset, face.presets)
    folder = concepts[0]["instance_data_dir"]
    essentials.preset.input(
        fn=fields.filled_by, inputs=[fields.preset], outputs=[*fields.filled.values()], queue=False, show_progress=False
    )
    for noted in fields.noted:
        noted.change(fn=face.note, inputs=fields.noted, outputs=[essentials.note], queue=False, show_progress=False)
    shape, alpha = settings["resize_mode"], settings["use_alpha"]
    for changed in (folder.change, shape.change, alpha.change):  # while a folder is typed, it is mostly not there yet
        changed(
            fn=picture_strip, inputs=[folder, shape, alpha], outputs=[essentials.strip], queue=False,
            show_progress=False,
        )  # fmt: skip
    clear_first(folder.input, told)  # it was of another
    of_error = [part for part in (*essentials.concept.values(), essentials.preset) if part is not folder]
    forget_errors(of_error, told)  # others would move as it goes
    folder.blur(
        fn=lambda *entered: [picture_strip(*entered), folder_fault(entered[0]) or gr.update()],
        inputs=[folder, shape, alpha], outputs=[essentials.strip, told], queue=False, show_progress=False,
    )  # fmt: skip
    if face.keep and essentials.uploads:
        _keep_uploads(face.keep, essentials.uploads, folder, told)
    return fields


def _keep_uploads(
    keep: Callable[[Sequence[str], str], tuple[str, str]], uploads: gr.File, folder: gr.Textbox, told: gr.HTML
) -> None:
    """Have pictures that are dragged in fill in the folder."""

    def kept(files: Sequence[Any], before: str | None) -> tuple[Any, str]:
        chosen, left_out = keep([file.name for file in files], before or "")
        return chosen or gr.update(), left_out

    uploads.upload(
        fn=kept, inputs=[uploads, folder], outputs=[folder, told], queue=False, show_progress=False
    ).then(fn=lambda: None, inputs=[], outputs=[uploads], queue=False, show_progress=False)  # fmt: skip
    clear_first(uploads.upload, told)


def _word_and_kind(face: Face, number: int) -> Fields:
    fields = face.word(number)
    fields["class_prompt"] = gr.Textbox(
        label=label_of_concept("class_prompt", number), placeholder="such as cat, toy, person or art",
        max_lines=1, elem_id=f"cd_class_{number}",
    )  # fmt: skip
    return fields


def _pictures(number: int) -> gr.Textbox:
    return gr.Textbox(
        label=label_of_concept("instance_data_dir", number), placeholder="folder with 4 to 20 pictures of it",
        max_lines=1, elem_id=f"cd_pictures_{number}",
    )  # fmt: skip


def _concepts(face: Face, essentials: Essentials) -> tuple[gr.Slider, list[Fields]]:
    """The number of concepts, and the fields of all of them; those beyond the number are hidden."""
    count = gr.Slider(
        label="Concepts", minimum=1, maximum=MAX_CONCEPTS, step=1, value=1,
        info="How many things to teach at once, so that they can appear in one picture", elem_id="cd_count",
    )  # fmt: skip
    count.do_not_save_to_config = True  # the boxes below are hidden and shown when it is moved
    concepts, boxes = [], []
    for number in range(1, MAX_CONCEPTS + 1):
        with gr.Group(visible=number == 1, elem_id=f"cd_concept_{number}") as box:
            if number == 1:
                fields = dict(essentials.concept)
            else:
                with face.row():
                    fields = _word_and_kind(face, number)
                fields["instance_data_dir"] = _pictures(number)
            fields |= face.more(number)
            fields["class_data_dir"] = gr.Textbox(
                label=label_of_concept("class_data_dir", number), max_lines=1, elem_id=f"cd_regularization_{number}",
                info="Folder with about 200 pictures of other things of this kind; rarely needed with the text prior",
            )  # fmt: skip
        concepts.append(fields)
        boxes.append(box)
    count.change(
        fn=lambda wanted: [gr.update(visible=number < (wanted or 1)) for number in range(MAX_CONCEPTS)],
        inputs=[count],
        outputs=boxes,
        queue=False,
        show_progress=False,
    )
    return count, concepts


@contextmanager
def group(title: str) -> Iterator[None]:
    """Fields under a heading."""
    gr.HTML(f"<h4>{title}</h4>", elem_classes=["cd-group"])
    yield


def _first(face: Face) -> Mapping[str, Any]:
    """The preset that the form starts with."""
    return next(iter(face.presets.values()))


def _shown(preset: Mapping[str, Any], field: str) -> Any:
    """A preset's value as its field has it: 0 is none."""
    name = _SETTINGS.get(field, field)
    if name not in preset:
        return gr.update()
    return not preset[name] if field in _SETTINGS else preset[name] or 0


def _result(face: Face) -> Fields:
    fields: Fields = {}
    with group("Result"), face.row():
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
    with face.row():
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


def _amounts(face: Face) -> Fields:
    fields: Fields = {}
    with group("Training"), face.row():
        fields["max_train_steps"] = gr.Number(
            label=LABELS["max_train_steps"], value=_first(face)["max_train_steps"], precision=0, elem_id="cd_steps",
            info="More steps give a closer likeness; too many spoil other pictures",
        )  # fmt: skip
        fields["train_batch_size"] = gr.Number(
            label=LABELS["train_batch_size"], value=4, precision=0, elem_id="cd_batch_size",
            info="Larger is steadier but slower, and needs more memory",
        )  # fmt: skip
    with face.row():
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


def _rates(face: Face) -> Fields:
    fields: Fields = {}
    with face.row():
        fields["learning_rate"] = gr.Textbox(
            label=LABELS["learning_rate"], value=_first(face)["learning_rate"], max_lines=1, elem_id="cd_learning_rate",
            info="How far each step changes the model. 1e-5:100, 5e-6 means 1e-5 until step 100, then 5e-6",
        )  # fmt: skip
        fields["embedding_learning_rate"] = gr.Textbox(
            label=LABELS["embedding_learning_rate"], value=_first(face)["embedding_learning_rate"],
            max_lines=1, elem_id="cd_embedding_learning_rate", info="For the new word, in the same notation",
        )  # fmt: skip
    with face.row():
        fields["optimizer"] = gr.Dropdown(
            label=LABELS["optimizer"], choices=list(OPTIMIZERS), value=OPTIMIZERS[0], elem_id="cd_optimizer",
            info="adamw8bit needs bitsandbytes; prodigy needs prodigyopt, and 1 as both rates; lion needs lion-pytorch,"
            " and a third to a tenth of the rates; sgd needs higher ones",
        )  # fmt: skip
    with face.row():
        fields["seed"] = gr.Number(
            label=LABELS["seed"], value=42, precision=0, elem_id="cd_seed",
            info="The same seed and settings give the same result",
        )  # fmt: skip
        fields["gradient_checkpointing"] = gr.Checkbox(
            label=LABELS["gradient_checkpointing"], value=False, info="Slower, but needs much less memory",
            elem_id="cd_save_memory",
        )  # fmt: skip
    return fields


def _captions(face: Face) -> Fields:
    fields: Fields = {}
    with group("Captions"), face.row():
        fields["instance_prompt"] = gr.Textbox(
            label=LABELS["instance_prompt"], value=_first(face)["instance_prompt"], elem_id="cd_prompt",
            info="What the pictures show; [name] stands for the word and its kind",
        )  # fmt: skip
        fields["caption_source"] = gr.Dropdown(
            label=LABELS["caption_source"], choices=list(CAPTION_SOURCES), value=CAPTION_SOURCES[0],
            elem_id="cd_captions",
            info="prompt: the caption here; txt: text files beside pictures; filename: their names; or a template",
        )  # fmt: skip
    with face.row():
        fields["template"] = face.template()
    return fields


def _pictures_settings(face: Face) -> Fields:
    fields: Fields = {}
    with group("Pictures"), face.row():
        fields["resolution"] = gr.Number(
            label=LABELS["resolution"], value=0, precision=0, elem_id="cd_resolution",
            info="In pixels, such as 512; 0 for the model's own size",
        )  # fmt: skip
        fields["resize_mode"] = gr.Dropdown(
            label=LABELS["resize_mode"], choices=list(PICTURE_SHAPES), value=next(iter(PICTURE_SHAPES)),
            info="“as they are” keeps each picture's shape, at about the same number of pixels", elem_id="cd_shape",
        )  # fmt: skip
    with face.row():
        fields["augment"] = gr.Checkbox(
            label=LABELS["noaug"], value=_shown(_first(face), "augment"), elem_id="cd_augment",
            info="Also show each picture smaller and closer up, so that a few pictures are enough",
        )  # fmt: skip
        fields["hflip"] = gr.Checkbox(
            label=LABELS["hflip"], value=False, elem_id="cd_flip",
            info="Mirror half of the pictures; not for writing or faces",
        )  # fmt: skip
    with face.row():
        fields["use_alpha"] = gr.Checkbox(
            label=LABELS["use_alpha"], value=False, elem_id="cd_use_alpha",
            info="Learn nothing from transparent parts",
        )  # fmt: skip
    return fields


def _preservation(face: Face) -> Fields:
    fields: Fields = {}
    with group("Prior preservation"), face.row():
        fields["prior"] = gr.Dropdown(
            label=LABELS["prior"], choices=list(PRIORS), value=PRIORS[0], elem_id="cd_prior",
            info="The prior is what the model knew before: text keeps it as it was, without any pictures",
        )  # fmt: skip
        fields["text_prior_weight"] = gr.Number(
            label=LABELS["text_prior_weight"], value=0.1, elem_id="cd_text_prior_weight",
            info="Higher keeps more as it was, but your concept is learned less closely; try 0.03 to 0.3",
        )  # fmt: skip
    with face.row():
        fields["prior_loss_weight"] = gr.Slider(
            label=LABELS["prior_loss_weight"], minimum=0.0, maximum=2.0, step=0.05, value=1.0,
            info="0 ignores them", elem_id="cd_prior_loss_weight",
        )  # fmt: skip
    return fields


def _saves(face: Face) -> Fields:
    fields: Fields = {}
    with group("Saves and previews"), face.row():
        fields["checkpointing_steps"] = gr.Number(
            label=LABELS["checkpointing_steps"], value=0, precision=0, elem_id="cd_save_every",
            info="To choose the best from, and to resume from after a crash; each takes disk space, so none by default",
        )  # fmt: skip
        fields["validation_steps"] = gr.Number(
            label=LABELS["validation_steps"], value=50, precision=0, elem_id="cd_preview_every",
            info="A preview of what has been learned so far",
        )  # fmt: skip
    with face.row():
        fields["validation_prompt"] = gr.Textbox(
            label=LABELS["validation_prompt"], info="Leave empty to use the caption of the first concept",
            elem_id="cd_preview_prompt",
        )  # fmt: skip
    with face.row():
        fields["resume_from_checkpoint"] = gr.Checkbox(
            label=LABELS["resume_from_checkpoint"], value=False, elem_id="cd_resume",
            info="Continue a training of this name that was interrupted or crashed, or add steps to it",
        )  # fmt: skip
        fields["allow_changes"] = gr.Checkbox(
            label=LABELS["allow_changes"], value=False, elem_id="cd_allow_changes",
            info="Otherwise both must be the same as when it was saved",
        )  # fmt: skip
    return fields


def _gradients(face: Face) -> Fields:
    fields: Fields = {}
    with group("Gradients"), face.row():
        fields["clip_mode"] = gr.Dropdown(
            label=LABELS["clip_mode"], choices=list(CLIP_MODES), value=CLIP_MODES[0], elem_id="cd_clip_mode",
            info="Limits the effect of a single odd batch: by the norm of all gradients, or value by value",
        )  # fmt: skip
        fields["clip_value"] = gr.Number(
            label=LABELS["max_grad_norm"], value=1.0, info="Smaller is more cautious; 1 is usual with norm",
            elem_id="cd_clip_value",
        )  # fmt: skip
    with face.row():
        fields["snr_gamma"] = gr.Number(
            label=LABELS["snr_gamma"], value=_shown(_first(face), "snr_gamma"), elem_id="cd_snr_gamma",
            info="Balances what is learned from little and from much noise: smaller learns more from noisy pictures,"
            " which decide shape and color; 5 is usual, 0 is off",
        )  # fmt: skip
    return fields
