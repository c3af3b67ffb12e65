"""The page of utilities, for gradio 3.41.2: sections with fields and a button, and beside them what came of it.

The sections that both faces have are in modules of their own; how a job is run, and where its progress is shown, the
face says: see `Host`.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import gradio as gr
from gradio.context import Context

from ..backend import Backend
from ..deltas_folder import find_delta, named_deltas
from ..errors import UserError
from ..storage import typed_path
from .answers import clear_first, forget_errors
from .training_page import error_html


class Show(Protocol):
    """Tells the page how far a job is."""

    def __call__(self, done: int, total: int, what: str = "") -> None:
        """`done` of `total` parts; `what` is being done, in a few words. Raises Interrupted if that was asked for."""
        ...


@dataclass(frozen=True)
class Answer:
    """What came of an action. report: HTML. pictures: to show. delta: the name of one in the folder, to be opened."""

    report: str
    pictures: Sequence[Path] = ()
    delta: str = ""


@dataclass(frozen=True)
class Action:
    """A button, what it does with the values of the fields, and the fields.

    run:     called with a Show and the values.
    at_once: whether it needs no turn among the jobs, as it only reads a file.
    """

    button: gr.Button
    run: Callable[..., Answer]
    inputs: list[Any]
    at_once: bool = False


@dataclass(frozen=True)
class Results:
    """Where an answer is shown. delta holds the name of a delta; `open` is seen when there is one."""

    report: gr.HTML
    progress: gr.HTML
    gallery: gr.Gallery
    delta: gr.Textbox
    open: gr.Button


@dataclass(frozen=True)
class Lists:
    """Choices that change while pages are served: asked for all at once when the page or a tab opens, or one by 🔄."""

    known: list[tuple[gr.Dropdown, Callable[[], list[str]]]] = field(default_factory=list)

    def add(self, choice: gr.Dropdown, names: Callable[[], list[str]], part: str) -> None:
        """Know a choice, and make its button where gradio is building a page."""
        self.known.append((choice, names))
        button = gr.Button("🔄", elem_id=part, elem_classes=["tool"])
        button.click(
            fn=lambda: gr.update(choices=names()), inputs=[], outputs=[choice], queue=False, show_progress=False
        )

    def ask_when_opened(self) -> None:
        """To be called once all are known."""
        self._ask(Context.root_block.load)

    def ask_when_selected(self, *tabs: gr.Tab) -> None:
        """The same for tabs: what a training has made since the page was opened is there."""
        for tab in tabs:
            self._ask(tab.select)

    def ask_when_pressed(self, button: gr.Button) -> None:
        """The same for what another page has made."""
        self._ask(button.click)

    def _ask(self, event: Callable[..., Any]) -> None:
        def ask() -> list[Any]:
            return [gr.update(choices=names()) for _, names in self.known]

        choices = [choice for choice, _ in self.known]
        event(fn=ask, inputs=[], outputs=choices, queue=False, show_progress=False)


@dataclass(frozen=True)
class Host:
    """What the sections need of the face they are on.

    deltas_dir: where deltas are, and where every result goes.
    backend:    the model that is loaded, drawing with a sampler of that name if there is a choice; raises UserError.
    samplers:   names of samplers; empty if there is no choice.
    templates:  the files of templates for captions, by name.
    bind:       has a click on an action's button run it as a job, and shows what comes of it.
    open_delta: has a click on the button open the delta that the text box names.
    interrupt:  asks the running job to stop.
    lists:      the choices of the page.
    loras_dir:  where a LoRA goes, so that `<lora:NAME:1>` finds it; with the deltas if there is no such place.
    """

    deltas_dir: Path
    backend: Callable[[str], Backend]
    samplers: Sequence[str]
    templates: Mapping[str, Path]
    bind: Callable[[Action, Results], None]
    open_delta: Callable[[gr.Button, gr.Textbox], None]
    interrupt: Callable[[], None]
    lists: Lists
    loras_dir: Path | None = None

    def loaded(self, use: bool = True) -> Callable[[], Backend] | None:
        """What gives the loaded model, for the algebra; None if it is not to be used."""
        return (lambda: self.backend("")) if use else None


DELTA = "<abbr title='The small file that a training makes: it holds your concept.'>delta</abbr>"
"""For the first mention in a part of a page that may be the first that is read (HTML)."""


@dataclass(frozen=True)
class Section:
    """A tab of the page: its label, its id, and what fills it."""

    label: str
    id: str
    add: Callable[[Host], list[Action]]


def add_utilities(host: Host, sections: Sequence[Section]) -> Results:
    """Make the page where gradio is building one: sections on the left, what comes of them on the right."""
    with gr.Row(equal_height=False, elem_id="cd_utils"):
        with gr.Column(scale=3), gr.Tabs(elem_id="cd_utils_tabs"):
            parts: list[tuple[gr.Tab, str, list[Action]]] = []
            for section in sections:
                with gr.Tab(label=section.label, id=section.id, elem_id=f"{section.id}_tab") as tab:
                    parts.append((tab, section.id, [_with_numbers(action) for action in section.add(host)]))
            host.lists.ask_when_selected(*(tab for tab, _, _ in parts))
        with gr.Column(scale=2, elem_id="cd_utils_results"):
            report = gr.HTML(elem_id="cd_utils_outcome")
            progress = gr.HTML(elem_id="cd_utils_progress")
            delta = gr.Textbox(visible=False, elem_id="cd_utils_delta")
            opens = gr.Button("Open the result", visible=False, elem_id="cd_utils_open")
            host.open_delta(opens, delta)
            gallery = gr.Gallery(label="Pictures", columns=4, elem_id="cd_utils_gallery")
    results = Results(report, progress, gallery, delta, opens)
    for tab, name, actions in parts:
        for action in actions:
            (_answer_at_once if action.at_once else host.bind)(action, results)
            action.button.click(fn=None, _js=_results_are_of(name), inputs=[], outputs=[])
            forget_errors(action.inputs, report)
        tab.select(fn=None, _js=_WITHOUT_OTHERS % name, inputs=[report], outputs=[report])
    return results


def _with_numbers(action: Action) -> Action:
    """The action, which refuses a slider whose number was emptied."""

    def run(show: Show, *values: Any) -> Answer:
        for part, value in zip(action.inputs, values, strict=True):
            if isinstance(part, gr.Slider) and value is None:
                raise UserError(f"{part.label} is empty; give a number")
        return action.run(show, *values)

    return replace(action, run=run)


def _answer_at_once(action: Action, results: Results) -> None:
    def run(*values: Any) -> tuple[Any, Any, Any, str]:
        try:
            return shown(action.run(lambda _done, _total, _what="": None, *values))
        except UserError as error:
            return gr.update(), "", gr.update(visible=False), error_html(error)

    outputs = [results.gallery, results.delta, results.open, results.report]
    action.button.click(fn=run, inputs=action.inputs, outputs=outputs, queue=False, show_progress=False)
    clear_first(action.button.click, results.report)


def _results_are_of(section: str) -> str:
    return f"""() => {{
        const all = document.getElementById('cd_utils').dataset;
        all.of = '{section}';
        delete all.elsewhere;
    }}"""


_WITHOUT_OTHERS = """(told) => {
    const all = document.getElementById('cd_utils').dataset;
    if (all.of && all.of != '%s') all.elsewhere = ''; else delete all.elsewhere;
    const running = document.querySelector('#cd_utils_outcome.cd-outdated');
    return !running && told?.startsWith("<div class='error'>") ? '' : told;
}"""
"""What came of a section is shown beside that one alone, and what was wrong there is of no interest afterwards."""


def shown(answer: Answer) -> tuple[Any, Any, Any, str]:
    """What an answer puts into the gallery, the delta's name, the button that opens it, and the report."""
    pictures = [str(path) for path in answer.pictures]
    opens = gr.update(visible=bool(answer.delta))
    return pictures, answer.delta, opens, answer.report


def delta_field(host: Host, label: str, part: str, several: bool = False) -> gr.Dropdown:
    """A choice of the folder's deltas, one or several, with a button that looks at the folder again.

    Their ids are PART_name or PART_names, and PART_refresh.
    """

    def names() -> list[str]:
        return list(named_deltas(host.deltas_dir))

    with gr.Row():
        part_name = f"{part}_names" if several else f"{part}_name"
        choice = gr.Dropdown(label=label, choices=names(), multiselect=several or None, elem_id=part_name)
        host.lists.add(choice, names, f"{part}_refresh")
    return choice


def chosen(host: Host, names: Sequence[str] | None) -> list[Path]:
    """The files of the chosen deltas, in their order. Raises UserError for none, or one that is not there."""
    if not names:
        raise UserError("choose one delta or several")
    return [find_delta(host.deltas_dir, name) for name in names]


def folder_of(text: str, what: str) -> Path:
    """The folder that a text box names. Raises UserError if it names none."""
    if not (text or "").strip():
        raise UserError(f"give {what}")
    return typed_path(text)


def table(rows: Mapping[str, str]) -> str:
    """Rows for people as HTML; those without a value are left out."""
    cells = (
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in rows.items() if value
    )
    return f'<div class="cd-inspection"><table>{"".join(cells)}</table></div>'
