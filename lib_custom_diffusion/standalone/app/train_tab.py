"""The tab Train: the form, and beside it how the training goes and what came of it."""

from __future__ import annotations

import datetime
import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.context import Context

from ...data.pictures import is_picture, why_unread
from ...delta import SUFFIX
from ...errors import UserError
from ...tokens import DEFAULT_INITIALIZERS, split_tokens
from ...training.checks import check_settings
from ...training.config import PRECISIONS
from ...training.job import Host
from ...training.place import check_place, dated_folder
from ...training.plan import TrainingPlan
from ...training.recipes import RECIPES, TOY_RECIPES
from ...training.resuming import identity_of, refuse_other
from ...training.words import stands_alone
from ...ui.answers import clear_first
from ...ui.picture_strip import left_out_html
from ...ui.preset_note import Loaded, amended, preset_note
from ...ui.regularization_sections import bundled_templates
from ...ui.settings_fields import group
from ...ui.training_face import PageFace, estimate, outcome_of, run_on_page
from ...ui.training_fields import Essentials, Face, FormFields, advanced_fields, essential_fields
from ...ui.training_form import LABELS, PAGE, entered_plan, label_of_concept
from ...ui.training_page import Outcome, error_html
from .jobs import Job, Jobs
from .models import Models
from .reopened_pages import LastJob, ReopenedPages
from .trainings import Asked, JobScreen, Training, estimated, is_done, shown_outcome, watched

_EMPTY = (
    "<ol class='cd-begin'><li><b>Word</b>: what your concept will be called in prompts. It is made up, so that no other"
    " word changes.</li><li><b>Kind</b>: what it is, in a word that the model knows, such as cat.</li><li><b>Pictures"
    "</b>: 4 to 20 of it, in a folder or dragged in. They are shown here as they will be cropped.</li><li><b>Train</b>:"
    " progress and previews are shown here, then the files, and a prompt to send to <i>Generate</i>.</li></ol>"
)
_INITIALIZERS = (*DEFAULT_INITIALIZERS.split("+"), "ktn")


@dataclass(frozen=True)
class _Place:
    """What trainings work on, and where things go: deltas, and logs with checkpoints."""

    models: Models
    deltas_dir: Path
    logs: Path

    @property
    def timings(self) -> Path:
        """What trainings took on this machine."""
        return self.logs / "timings.json"

    def note(self, preset: str, folder: str, *entered: Any) -> str:
        """What is said of a preset. entered: of the form, see `amended`."""
        backend = self.models.loaded
        loaded = Loaded(backend.architecture, backend.resolution) if backend else None
        return preset_note(preset, amended({**RECIPES, **TOY_RECIPES}[preset], *entered), folder, loaded, self.timings)

    def keep(self, files: Sequence[str], before: str) -> tuple[str, str]:
        """Copy pictures that were dragged in to a folder of their own; the folder, and what is left out (HTML).

        before: the folder that was chosen; pictures that were dragged into it are among the new ones.
        """
        paths = [Path(file) for file in files]
        left_out = {
            path: why_unread(path) or "it is not a picture that can be read" for path in paths if not is_picture(path)
        }
        told = f"<div class='error'>{left_out_html(left_out)}</div>" if left_out else ""
        if len(left_out) == len(paths):
            return "", told
        kept = (self.logs / "pictures").resolve()
        folder = _new(kept, datetime.datetime.now().strftime("%Y-%m-%d %H.%M.%S"))
        folder.mkdir(parents=True)
        earlier = sorted(Path(before).glob("*")) if Path(before).parent == kept else []
        for file in [*earlier, *filter(is_picture, paths)]:
            shutil.copyfile(file, _new(folder, file.stem, file.suffix))
        return str(folder), told


def _new(folder: Path, stem: str, suffix: str = "") -> Path:
    """A path that is not there yet: cat.png, cat-2.png."""
    names = (f"{stem}-{number}{suffix}" for number in itertools.count(2))
    return next(path for name in itertools.chain([f"{stem}{suffix}"], names) if not (path := folder / name).exists())


@dataclass(frozen=True)
class _Tab:
    """What events are bound to."""

    essentials: Essentials
    start: gr.Button
    ask: gr.Button
    stop: gr.Button
    told: gr.HTML
    progress: gr.HTML
    prompt: gr.Textbox
    use: gr.Button
    resume: gr.Button
    picture: gr.Image
    outcome: gr.HTML
    fields: FormFields

    @property
    def shown(self) -> list[Any]:
        """In the order of `watched`."""
        return [self.told, self.progress, self.picture, self.outcome, self.prompt, self.use, self.resume]


def build_train_tab(
    jobs: Jobs, models: Models, deltas_dir: Path, logs: Path, send: Callable[[gr.Button, gr.Textbox], None],
    reopened: ReopenedPages,
) -> FormFields:  # fmt: skip
    """Make the tab where gradio is building one; returns its form.

    logs: the folder for logs, copies and checkpoints.
    send: has a click on the button bring the text box's prompt to where pictures are drawn.
    """
    place, asked = _Place(models, deltas_dir, logs), Asked()
    tab = _lay_out(place)
    fields, shown = tab.fields, tab.shown
    form = [fields.preset, *fields.inputs]
    last, last_estimate = reopened.part(shown), reopened.part([tab.told, tab.progress], when_opened=False)

    # Generator functions, not functions that return generators: only of these does gradio show all that they yield.
    def run(preset: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        if asked.running():
            yield error_html(asked.running()), *[gr.update()] * (len(shown) - 1)
            return
        training = _start(jobs, place, fields, values)
        asked.add(training.job, [preset, *values])
        yield from last.watch(training.job, lambda: watched(training))

    def answer(*values: Any) -> Iterator[tuple[Any, ...]]:
        if asked.running():
            yield error_html(asked.running()), gr.update()
            return
        job = _estimate(jobs, place, fields, values)
        yield from last_estimate.watch(job, lambda: estimated(job))

    noted = {
        "fn": place.note, "inputs": fields.noted, "outputs": [tab.essentials.note], "queue": False,
        "show_progress": False,
    }  # fmt: skip
    _show_again(tab, place, asked, last, reopened.in_sight)
    tab.start.click(fn=run, inputs=form, outputs=shown, show_progress=False).then(**noted)  # its time is known now
    goes_on = fields.settings["resume_from_checkpoint"]
    tab.resume.click(
        fn=lambda: True, inputs=[], outputs=[goes_on], queue=False, show_progress=False
    ).then(fn=run, inputs=form, outputs=shown, show_progress=False).then(
        fn=lambda: False, inputs=[], outputs=[goes_on], queue=False, show_progress=False
    ).then(**noted)  # fmt: skip
    tab.ask.click(fn=answer, inputs=fields.inputs, outputs=[tab.told, tab.progress], show_progress=False).then(**noted)
    clear_first(tab.ask.click, tab.told)
    tab.stop.click(fn=jobs.interrupt, inputs=[], outputs=[], queue=False)
    send(tab.use, tab.prompt)
    return fields


def _lay_out(place: _Place) -> _Tab:
    presets = {**TOY_RECIPES, **RECIPES} if place.models.small else {**RECIPES, **TOY_RECIPES}
    with gr.Row(equal_height=False, elem_id="cd_training"):
        with gr.Column(elem_id="cd_form"):
            face = Face(gr.Row, _word, _initializer, _template, presets, place.note, place.keep)
            essentials = essential_fields(face)
            essentials.strip.unrender()
            with gr.Row():
                start = gr.Button("Train", variant="primary", elem_id="cd_start")
                ask = gr.Button("How long?", elem_id="cd_ask")
                stop = gr.Button("Interrupt and save", elem_id="cd_stop")
            told = gr.HTML(elem_id="cd_estimate")
        with gr.Column(elem_id="cd_side"):
            progress = gr.HTML(elem_id="cd_progress")
            prompt = gr.Textbox(label="Prompt to try", visible=False, interactive=True, elem_id="cd_try_prompt")
            with gr.Row():
                use = gr.Button("Send to Generate", visible=False, variant="primary", elem_id="cd_send")
                resume = gr.Button("Resume", visible=False, elem_id="cd_resume_now")
            picture = gr.Image(label="Last preview", visible=False, interactive=False, elem_id="cd_preview")
            outcome = gr.HTML(_EMPTY, elem_id="cd_outcome")
            essentials.strip.render()  # where there is room to see what is cropped away
        with gr.Column(elem_id="cd_rest"):
            fields = advanced_fields(face, essentials, told, _vectors)
    return _Tab(essentials, start, ask, stop, told, progress, prompt, use, resume, picture, outcome, fields)


def _show_again(tab: _Tab, place: _Place, asked: Asked, last: LastJob, in_sight: gr.Button) -> None:
    """A page that is opened, or comes back into sight, shows what is known by now."""
    form = [tab.fields.preset, *tab.fields.inputs]

    def opened() -> list[Any]:
        """A page that is opened during a training has the form as it was filled in, as has one opened after one that
        can go on; any, what is known by now."""
        entered = next((values for job, values in asked.last() if not is_done(job)), [gr.update() for _ in form])
        return [*entered, place.note(tab.fields.preset.value, "")]

    def seen_again(told: str) -> Iterator[tuple[Any, ...]]:
        """A page that comes back into sight shows the last training, if it does not do so yet."""
        yield tuple(gr.update() for _ in tab.shown)
        for job, _ in asked.last():
            if not job.finished or shown_outcome(job) not in (None, told):
                yield from last.again()

    in_sight.click(fn=seen_again, inputs=[tab.outcome], outputs=tab.shown, show_progress=False)
    outputs = [*form, tab.essentials.note]
    Context.root_block.load(fn=opened, inputs=[], outputs=outputs, queue=False, show_progress=False)


def _word(number: int) -> dict[str, Any]:
    """The word of a concept, made up here."""
    label = label_of_concept("modifier_token", number)
    return {"modifier_token": gr.Textbox(label=label, value=f"<new{number}>", max_lines=1, elem_id=f"cd_word_{number}")}


def _initializer(number: int) -> dict[str, Any]:
    """What the word of a concept starts from."""
    return {
        "initializer_token": gr.Textbox(
            label=label_of_concept("initializer_token", number), value=_INITIALIZERS[number - 1],
            info="What the word starts from: a rare word, or one close to your concept",
            max_lines=1, elem_id=f"cd_initializer_{number}",
        )
    }  # fmt: skip


def _vectors() -> dict[str, Any]:
    with group("Word"):
        vectors = gr.Slider(
            label=LABELS["vectors_per_token"], minimum=1, maximum=16, step=1, value=1, elem_id="cd_vectors",
            info="More vectors hold more detail but take more room in prompts; 1 is usual",
        )  # fmt: skip
    return {"vectors_per_token": vectors}


def _template() -> gr.Dropdown:
    names = list(bundled_templates())
    return gr.Dropdown(
        label=LABELS["template"], choices=names, value=names[0], info="Used when captions come from a template",
        elem_id="cd_template",
    )  # fmt: skip


def _start(jobs: Jobs, place: _Place, fields: FormFields, values: Sequence[Any]) -> Training:
    """Train what was entered, as soon as it is its turn."""
    screens: list[JobScreen] = []

    def work(job: Job[Outcome]) -> Outcome:
        screens.append(JobScreen(job))
        return train(place, _entered(fields, values), screens[0])

    return Training(jobs.start(f"training {fields.what(values)}", work), screens)


def _estimate(jobs: Jobs, place: _Place, fields: FormFields, values: Sequence[Any]) -> Job[str]:
    """Find out how long the training that was entered takes, as soon as it is its turn."""

    def work(job: Job[str]) -> str:
        plan = _entered(fields, values)
        check_settings(plan, PAGE, stands_alone)
        host = Host(place.models.get(), Path())
        return estimate(_in_its_precision(plan, host), host, JobScreen(job), place.timings)

    return jobs.start("measuring how long a training takes", work)


def _entered(fields: FormFields, values: Sequence[Any]) -> TrainingPlan:
    """The plan that the page's fields are. Raises UserError for what is none."""
    concepts, settings = fields.entered(values)
    for concept in concepts:
        split_tokens(concept["modifier_token"] or "<new1>")  # an empty one is named by its number, there
    if not (concepts[0]["instance_data_dir"] or "").strip():
        raise UserError(f"{LABELS['instance_data_dir']} is empty; drag your pictures in, or give the folder with them")
    return entered_plan(concepts, settings, bundled_templates().get)


def train(place: _Place, plan: TrainingPlan, screen: JobScreen) -> Outcome:
    """Train as the plan says. Raises UserError for whatever a person can mend."""
    check_settings(plan, PAGE, stands_alone)
    folder = dated_folder(place.logs, plan, PAGE)
    target = place.deltas_dir / f"{plan.result_name}{SUFFIX}"
    save = check_place(plan, PAGE, folder, target)
    if save is not None:
        known = identity_of(plan.clipped(), folder)
        settings = {name: value for name, value in known.settings.items() if name != "mixed_precision"}  # the model's
        refuse_other(plan, PAGE, save, replace(known, settings=settings))
    host = Host(place.models.get(), folder, target, copies=True)
    report = run_on_page(_in_its_precision(plan, host), host, PageFace(screen, name=plan.result_name), place.timings)
    return outcome_of(report, report.result.files[1:], resumable=report.interrupted)


def _in_its_precision(plan: TrainingPlan, host: Host) -> TrainingPlan:
    """In that in which the model was loaded."""
    dtype = next(host.backend.unet.parameters()).dtype
    return replace(plan, mixed_precision=next((name for name, each in PRECISIONS.items() if each == dtype), "no"))
