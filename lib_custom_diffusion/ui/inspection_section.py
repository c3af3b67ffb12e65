"""The section in which a delta is looked into."""

from __future__ import annotations

import gradio as gr

from ..deltas_folder import find_delta
from .inspection import report_html
from .utilities import DELTA, Action, Answer, Host, Section, Show, delta_field


def _inspect(host: Host) -> list[Action]:
    gr.HTML(f"<p>Shows what a {DELTA} was made for, its words, and how strongly it changes each layer.</p>")
    name = delta_field(host, "Delta", "cd_inspect")
    button = gr.Button("Inspect", variant="primary", elem_id="cd_inspect")

    def run(_show: Show, name: str) -> Answer:
        return Answer(report_html(find_delta(host.deltas_dir, name or "")))

    return [Action(button, run, [name], at_once=True)]


SECTIONS = (Section("Inspect", "cd_inspect_section", _inspect),)
