"""The section in which a delta is looked into."""

from __future__ import annotations

import gradio as gr

from ..deltas_folder import find_delta
from ..errors import UserError
from .answers import clear_first
from .inspection import report_html
from .training_page import error_html
from .utilities import DELTA, Action, Host, Section, delta_field


def _inspect(host: Host) -> list[Action]:
    gr.HTML(f"<p>Shows what a {DELTA} was made for, its words, and how strongly it changes each layer.</p>")
    names = delta_field(host, "Delta", "cd_inspect")
    button = gr.Button("Inspect", variant="primary", elem_id="cd_inspect")
    report = gr.HTML(elem_id="cd_inspect_report")

    def show(name: str) -> str:
        try:
            return report_html(find_delta(host.deltas_dir, name or ""))
        except UserError as error:
            return error_html(error)

    button.click(fn=show, inputs=[names], outputs=[report], queue=False)
    clear_first(button.click, report)
    return []  # reading a file needs no turn among the jobs


SECTIONS = (Section("Inspect", "cd_inspect_section", _inspect),)
