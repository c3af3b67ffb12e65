"""Answers of a page's buttons: one that says the same as the one before is seen to come, too."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import gradio as gr


def clear_first(event: Callable[..., Any], answer: gr.HTML) -> None:
    """Have an event, such as a click, clear the place of its answer; gradio draws nothing if it is told the same again.

    To be called besides binding what answers: the page clears by itself, before an answer can be there.
    """
    event(fn=None, _js="() => ''", inputs=[], outputs=[answer])


_WITHOUT_ERROR = r"""(told) => document.querySelector('.prose.cd-outdated') || !told ? told
    : told.replace(/^<div class='error'>[^]*?<\/div>(<div class='performance'>[^]*)?/, '')"""


def forget_errors(fields: Iterable[Any], answer: gr.HTML) -> None:
    """Have what was wrong with fields be gone as soon as a person changes one of them.

    While a job runs, the WebUI's page waits for that place to change; the error is hidden then anyway.
    """
    for field in fields:
        if hasattr(field, "input"):  # files have none
            field.input(fn=None, _js=_WITHOUT_ERROR, inputs=[answer], outputs=[answer])
