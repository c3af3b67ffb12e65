"""Answers of a page's buttons: one that says the same as the one before is seen to come, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr


def clear_first(event: Callable[..., Any], answer: gr.HTML) -> None:
    """Have an event, such as a click, clear the place of its answer; gradio draws nothing if it is told the same again.

    To be called besides binding what answers: the page clears by itself, before an answer can be there.
    """
    event(fn=None, _js="() => ''", inputs=[], outputs=[answer])
