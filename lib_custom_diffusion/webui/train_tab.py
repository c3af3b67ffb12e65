"""The tab "Custom Diffusion" inside the WebUI's Train tab."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr
import torch
from gradio.context import Context
from modules import script_callbacks, sd_hijack, sd_models, sd_samplers, shared
from modules.call_queue import wrap_gradio_gpu_call
from modules.textual_inversion import textual_inversion
from modules.ui_common import create_refresh_button
from modules.ui_components import FormRow

from ..attention import architecture
from ..backend import Sampling, usual_sampling
from ..errors import UserError
from ..training.plan import TrainingPlan
from ..training.recipes import RECIPES, TOY_RECIPES
from ..ui.answers import forget_errors
from ..ui.preset_note import Loaded, amended, preset_note
from ..ui.settings_fields import group
from ..ui.training_fields import Essentials, Face, FormFields, advanced_fields, essential_fields
from ..ui.training_form import LABELS, entered_plan, label_of_concept
from ..ui.training_page import OUT_OF_MEMORY, error_html
from .compare import grid_infotext
from .delta_library import LOG_DIRECTORY, library
from .host_backend import model_resolution
from .new_word_box import embedding_names, new_word_box
from .reopened_page import JOB, Shown, add_fetching, failed, last, refused, succeeded
from .toy_model import example, no_checkpoint, toy_buttons, toy_chosen
from .training_job import estimate, logs_in, template_file, timings_file, train
from .turns import admit, if_admitted

_PREVIEW_FIELDS = ("prompt", "negative_prompt", "steps", "sampler_name", "cfg_scale", "seed", "width", "height")
"""What the host hands over of the txt2img tab, in its order."""
_SENT = ("prompt", "steps", "sampler_name", "cfg_scale", "width", "height")
"""What of these is sent there with a prompt to try."""


@dataclass(frozen=True)
class _Outcome:
    """What is shown of a training that is over: what came of it, and what can be done with that."""

    told: gr.HTML
    prompt: gr.Textbox
    send: gr.Button
    card: gr.Button
    compare: gr.Button
    resume: gr.Button
    delta: gr.Textbox

    @property
    def shown(self) -> list[Any]:
        """In the order of `reopened_page.Shown`."""
        return [self.prompt, self.send, self.card, self.compare, self.resume, self.delta, self.told]


@dataclass(frozen=True)
class _Tab:
    """What events are bound to. offer: of a toy, where there is no checkpoint. told: of what was entered."""

    offer: gr.Group
    task: gr.Textbox
    new_word: gr.Accordion
    essentials: Essentials
    start: gr.Button
    ask: gr.Button
    stop: gr.Button
    told: gr.HTML
    fields: FormFields
    log_directory: gr.Textbox
    from_txt2img: gr.Checkbox
    resumable: gr.HTML
    outcome: _Outcome
    reopened: gr.Button
    toy_preset: gr.Button

    @property
    def words(self) -> list[gr.Dropdown]:
        """Where the word of each concept is chosen."""
        return [concept["modifier_token"] for concept in self.fields.concepts]

    @property
    def filled(self) -> list[gr.components.IOComponent]:
        """What a preset is, and what it fills in."""
        return [self.fields.preset, *self.fields.filled.values()]


def build(params: script_callbacks.UiTrainTabParams) -> None:
    """Make the tab; the host calls this while it makes its Train tab."""
    with gr.Tab(label="Custom Diffusion", id="train_custom_diffusion", elem_id="cd_train") as block:
        tab = _lay_out()
    _remembered_apart(block)
    _fill_when_opened(tab)
    _train_when_asked(tab, params.txt2img_preview_params)
    _estimate_when_asked(tab)
    forget_errors([*tab.fields.inputs, tab.fields.preset], tab.outcome.told)
    _fill_for_a_toy(tab)
    _use_outcome(tab.outcome, dict(zip(_PREVIEW_FIELDS, params.txt2img_preview_params, strict=True)))


def _lay_out() -> _Tab:
    with gr.Group(visible=no_checkpoint(), elem_id="cd_no_checkpoint") as offer:
        installed = toy_buttons("cd_train_toy", "Next: give your word a name under <i>New word</i>.")
    installed.render()  # it stays when the offer goes
    task = gr.Textbox(visible=False, elem_id="cd_train_task")
    new_word, create = new_word_box()
    face = Face(FormRow, _word, lambda _number: {}, _template, {**RECIPES, **TOY_RECIPES}, _note)
    essentials = essential_fields(face)
    with gr.Row(elem_id="cd_buttons"):
        start = gr.Button("Train", variant="primary", elem_id="cd_start")
        ask = gr.Button("How long?", elem_id="cd_ask")
        stop = gr.Button("Interrupt and save", elem_id="cd_stop")
    told = gr.HTML(elem_id="cd_estimate")
    fields = advanced_fields(face, essentials, told, _log_fields)
    log_directory, from_txt2img = (fields.settings.pop(name) for name in ("log_directory", "from_txt2img"))
    resumable = gr.HTML(resumable_html(), elem_id="cd_resumable")
    tab = _Tab(
        offer, task, new_word, essentials, start, ask, stop, told, fields, log_directory, from_txt2img, resumable,
        _outcome_box(), gr.Button(visible=False, elem_id="cd_reopened"),
        gr.Button(visible=False, elem_id="cd_toy_preset"),
    )  # fmt: skip
    create(fields.count, tab.words)
    return tab


def _outcome_box() -> _Outcome:
    with gr.Column(elem_id="cd_outcome_box"):  # the page puts it where the progress is
        told = gr.HTML(elem_id="cd_outcome")
        prompt = gr.Textbox(label="Prompt to try", visible=False, elem_id="cd_try_prompt", interactive=True)
        with gr.Row():
            send = gr.Button("Send to txt2img", visible=False, variant="primary", elem_id="cd_send")
            card = gr.Button("Show card", visible=False, elem_id="cd_card")
            compare = gr.Button("Compare checkpoints", visible=False, elem_id="cd_compare")
            resume = gr.Button("Resume", visible=False, elem_id="cd_resume_now")
        delta = gr.Textbox(visible=False, elem_id="cd_delta")
    return _Outcome(told, prompt, send, card, compare, resume, delta)


def _fill_when_opened(tab: _Tab) -> None:
    """The page is made once, when the host starts; checkpoints and words come and go while it runs."""

    def opened() -> list[Any]:
        library.look_into(logs_in(tab.log_directory.value or ""))  # as it was kept under Settings → Defaults
        there = embedding_names()
        names = [gr.update(choices=there) for _ in tab.words]
        preset, *others = _suiting_preset(tab.fields)
        note = _note(preset if isinstance(preset, str) else tab.fields.preset.value, "")
        offered = gr.update(visible=no_checkpoint())
        return [offered, resumable_html(), *names, preset, *others, note, gr.update(open=not there)]

    Context.root_block.load(
        fn=opened, inputs=[],
        outputs=[tab.offer, tab.resumable, *tab.words, *tab.filled, tab.essentials.note, tab.new_word], queue=False,
        show_progress=False,
    )  # fmt: skip

    def changed(*entered: Any) -> list[Any]:
        """Another checkpoint has other words, and takes another time."""
        noted, chosen = entered[: len(tab.fields.noted)], entered[len(tab.fields.noted) :]
        there = embedding_names()
        words = [gr.update(choices=there, value=word if word in there else None) for word in chosen]
        return [resumable_html(), _note(*noted), *words]

    gr.Button(visible=False, elem_id="cd_settings_changed").click(  # pressed by the page
        fn=changed, inputs=[*tab.fields.noted, *tab.words], outputs=[tab.resumable, tab.essentials.note, *tab.words],
        queue=False, show_progress=False,
    )  # fmt: skip


def _train_when_asked(tab: _Tab, txt2img_fields: Sequence[Any]) -> None:
    fields, shown = tab.fields, tab.outcome.shown
    form = [fields.preset, *fields.inputs]
    asked: dict[str, Sequence[Any]] = {}  # what was entered, by task: of what runs, and of the last that can go on

    def run(task: str, from_txt2img: bool, log_directory: str, preset: str, *values: Any) -> Shown:
        entered, preview = values[: len(fields.inputs)], values[len(fields.inputs) :]
        for over in set(asked) - {last.task}:
            del asked[over]
        asked[task] = [preset, *entered]
        txt2img = dict(zip(_PREVIEW_FIELDS, preview, strict=True)) if from_txt2img else None
        came, done = _train(fields, entered, log_directory, txt2img)
        if done:
            del asked[task]
        last.end(task, came)
        return came if last.task == task else refused(came)

    begin = {
        "fn": if_admitted(wrap_gradio_gpu_call(run, extra_outputs=[gr.update() for _ in shown[:-1]]), shown),
        "_js": "startCustomDiffusionTraining",
        "inputs": [tab.task, tab.from_txt2img, tab.log_directory, *form, *txt2img_fields],
        "outputs": shown,
        "show_progress": False,
    }
    noted = _noted(tab)
    goes_on = fields.settings["resume_from_checkpoint"]

    def admitted(button: gr.Button) -> Callable[..., Any]:
        return admit(button, JOB, tab.task, tab.told, lambda *values: f"Training {fields.what(values)}", fields.inputs)

    admitted(tab.outcome.resume)(
        fn=lambda: True, inputs=[], outputs=[goes_on], queue=False, show_progress=False
    ).then(**begin).then(
        fn=lambda: False, inputs=[], outputs=[goes_on], queue=False, show_progress=False
    ).then(**noted)  # fmt: skip
    admitted(tab.start)(**begin).then(**noted)
    # Pressed by the page, if a training runs while it is opened, or was the last.
    tab.reopened.click(
        fn=lambda task: asked.get(task) or [gr.update() for _ in form],
        _js="runningCustomDiffusionTraining", inputs=[tab.task], outputs=form, queue=False, show_progress=False,
    ).then(fn=None, _js="watchReopenedCustomDiffusionTraining", inputs=[], outputs=[])  # fmt: skip
    add_fetching("cd_outcome", tab.task, shown, failed("")[:-1])
    tab.stop.click(fn=lambda: shared.state.interrupt(), inputs=[], outputs=[], queue=False)


def _noted(tab: _Tab) -> dict[str, Any]:
    """What brings what is said of the preset up to date: what such a training takes here is known after one."""
    return {
        "fn": _note, "inputs": tab.fields.noted, "outputs": [tab.essentials.note], "queue": False,
        "show_progress": False,
    }  # fmt: skip


def _estimate_when_asked(tab: _Tab) -> None:
    estimate = wrap_gradio_gpu_call(lambda _task, *values: (_estimate(tab.fields, values),), extra_outputs=[])
    admit(tab.ask, "estimate", tab.task, tab.told, lambda: "")(
        fn=if_admitted(estimate, [tab.told]),
        _js="startCustomDiffusionEstimate",
        inputs=[tab.task, *tab.fields.inputs],
        outputs=[tab.told],
        show_progress=False,
    ).then(**_noted(tab))
    add_fetching("cd_estimate", tab.task, [tab.told], [])


def _fill_for_a_toy(tab: _Tab) -> None:
    """The page presses the button when a toy was installed."""
    folder, kind = (tab.fields.concepts[0][name] for name in ("instance_data_dir", "class_prompt"))
    tab.toy_preset.click(
        fn=lambda *entered: [gr.update(visible=False), *_toy_form(tab.fields, *entered)],
        inputs=[folder, kind], outputs=[tab.offer, folder, kind, *tab.filled], queue=False, show_progress=False,
    ).then(fn=None, _js="customDiffusionAsksForWord", inputs=[], outputs=[])  # fmt: skip


def _use_outcome(outcome: _Outcome, txt2img: Mapping[str, Any]) -> None:
    """What the buttons under an outcome do. txt2img: the fields of that tab."""
    outcome.send.click(
        fn=_to_txt2img,
        inputs=[outcome.prompt],
        outputs=[txt2img[name] for name in _SENT],
        queue=False,
        show_progress=False,
    ).then(fn=None, _js="customDiffusionToTxt2img", inputs=[], outputs=[])
    outcome.compare.click(
        fn=_to_plot, inputs=[outcome.prompt, outcome.delta], outputs=[txt2img["prompt"]], queue=False,
        show_progress=False,
    ).then(fn=None, _js="customDiffusionToPlot", inputs=[], outputs=[])  # fmt: skip
    outcome.card.click(fn=None, _js="customDiffusionShowCard", inputs=[outcome.delta])


def _toy_form(fields: FormFields, folder: str, kind: str) -> list[Any]:
    """The form for a toy: pictures and their kind, unless a person has entered some, and the preset."""
    return [*((folder, kind) if folder or kind else example()), *_toy_preset(fields)]


def _toy_preset(fields: FormFields) -> list[Any]:
    preset = next(iter(TOY_RECIPES))
    return [preset, *fields.filled_by(preset)]


def _suiting_preset(fields: FormFields) -> list[Any]:
    """What a page that is opened fills in: the toys' preset while one is chosen, else what there is."""
    return _toy_preset(fields) if toy_chosen() else [gr.update() for _ in (fields.preset, *fields.filled)]


def _remembered_apart(block: Any) -> None:
    """Have the host remember our fields' values beside its own of the same labels, not in their place."""
    block.custom_script_source = "custom_diffusion"
    for child in getattr(block, "children", ()):
        _remembered_apart(child)


def _note(preset: str, folder: str, *entered: Any) -> str:
    """What is said of a preset; the model is not loaded for it. entered: of the form, see `amended`."""
    model = sd_models.model_data.sd_model
    loaded = Loaded(architecture(model.model.diffusion_model), model_resolution(model)) if model is not None else None
    return preset_note(preset, amended({**RECIPES, **TOY_RECIPES}[preset], *entered), folder, loaded, timings_file())


def _log_fields() -> dict[str, Any]:
    """Where the training's log goes, and whether previews are as in txt2img."""
    with group("Log"), FormRow():
        log_directory = gr.Textbox(
            label="Log directory", value=LOG_DIRECTORY, info="Each training gets a folder in it, by date and name",
            max_lines=1, elem_id="cd_log_directory",
        )  # fmt: skip
    with FormRow():
        from_txt2img = gr.Checkbox(
            label="Read parameters (prompt, etc...) from txt2img tab when making previews", value=False,
            info="As they are when the training starts", elem_id="cd_preview_from_txt2img",
        )  # fmt: skip
    return {"log_directory": log_directory, "from_txt2img": from_txt2img}


def resumable_html() -> str:
    """Whether a training that begins now can be resumed, and by which setting."""
    if shared.opts.save_optimizer_state:
        return "<p class='cd-note'>A training started now can be resumed.</p>"
    return (
        "<p class='cd-note'>A training started now can be resumed only after a crash, from its last copy. To resume one"
        " after an interruption, or to add steps, first tick <i>Saves Optimizer state…</i> in Settings → Training.</p>"
    )


def _train(
    fields: FormFields, values: Sequence[Any], log_directory: str, txt2img: dict[str, Any] | None
) -> tuple[Shown, bool]:
    """Train, and say what to show, and whether it came to its end, neither interrupted nor broken off."""
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
        return failed(error_html(error)), False
    except torch.cuda.OutOfMemoryError:
        return failed(error_html(OUT_OF_MEMORY)), False
    return succeeded(done), not done.interrupted


def _to_txt2img(prompt: str) -> list[Any]:
    """The fields of `_SENT` as the previews had them: as suits the model that is loaded."""
    model = sd_models.model_data.sd_model
    side, usual = model_resolution(model), usual_sampling(architecture(model.model.diffusion_model) if model else "")
    return [prompt, usual.steps, sd_samplers.visible_sampler_names()[0], usual.guidance_scale, side, side]


def _to_plot(prompt: str, name: str) -> str:
    """What txt2img reads a plot of the saves from."""
    _, steps, sampler, scale, width, height = _to_txt2img(prompt)
    settings = {"Steps": steps, "Sampler": sampler, "CFG scale": scale, "Size": f"{width}x{height}"}
    return grid_infotext(prompt, name, settings, library)


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


def _word(number: int) -> dict[str, Any]:
    """The embedding of a concept, with the host's button that reads them again."""
    embedding = gr.Dropdown(
        label=f"{label_of_concept('modifier_token', number)} (embedding)", choices=embedding_names(),
        elem_id=f"cd_embedding_{number}",
    )  # fmt: skip
    create_refresh_button(
        embedding,
        sd_hijack.model_hijack.embedding_db.load_textual_inversion_embeddings,
        lambda: {"choices": embedding_names()},
        f"cd_refresh_embedding_{number}",
    )
    return {"modifier_token": embedding}


def _template() -> Any:
    return gr.Dropdown(
        label=LABELS["template"], choices=sorted(textual_inversion.textual_inversion_templates),
        value="subject_filewords.txt", info="Used when captions come from a template", elem_id="cd_template",
    )  # fmt: skip
