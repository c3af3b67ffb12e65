"""The fields of a training on a page, for gradio 3.41.2: what both faces ask, and in which words.

What everybody must say fits on one screen with the button: see `essential_fields`. All else is in Advanced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from .answers import clear_first, forget_errors
from .picture_strip import folder_fault, picture_strip
from .settings_fields import Fields, Preset, Row, is_filled_by, settings_fields, value_shown
from .training_form import MAX_CONCEPTS, label_of_concept


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

    row: Row
    word: Callable[[int], Fields]
    more: Callable[[int], Fields]
    template: Callable[[], gr.components.IOComponent]
    presets: Mapping[str, Preset]
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
    presets: Mapping[str, Preset]

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
        presets = self.presets.values()
        return {
            name: field for name, field in self.settings.items() if any(is_filled_by(each, name) for each in presets)
        }

    def filled_by(self, preset: str) -> list[Any]:
        """What a preset gives to the fields of `filled`."""
        return [value_shown(self.presets[preset], name) for name in self.filled]

    def entered(self, values: Sequence[Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """What was entered, by name: of each concept asked for, and the others; an emptied number is None."""
        rest = iter(values)
        asked = int(next(rest) or 1)
        concepts = [{name: next(rest) for name in each} for each in self.concepts][:asked]
        settings = {name: next(rest) for name in self.settings}
        numbers = {name for name, part in self.settings.items() if isinstance(part, (gr.Number, gr.Slider))}
        return concepts, {name: value for name, value in settings.items() if value is not None or name in numbers}

    def what(self, values: Sequence[Any]) -> str:
        """What is trained, as it was entered."""
        concepts, settings = self.entered(values)
        return settings["name"] or " and ".join(concept["modifier_token"] or "" for concept in concepts)


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
        settings = settings_fields(face.row, next(iter(face.presets.values())), face.template) | also()
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
