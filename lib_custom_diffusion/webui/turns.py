"""One job of ours at a time: what a page is told that asks for another meanwhile.

The host would let it wait without saying for what, and begin it hours later.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
from modules import progress, shared

from ..ui.answers import clear_first
from .reopened_page import JOB as TRAINING
from .reopened_page import running

UTILITY = "custom-diffusion-utility"
_KEPT = 16
_named: dict[str, str] = {}


def admit(
    button: gr.Button, job: str, task: gr.Textbox, told: gr.HTML, what: Callable[..., str], inputs: Sequence[Any] = ()
) -> Callable[..., Any]:
    """Have a click on the button give the task a new id, or "" while a job of ours runs or waits, which `told` says.

    job: what the id begins with. what: calls the job by its name, from the inputs. Returns what binds the job itself.
    """

    def asked(task: str, *values: Any) -> tuple[str, Any]:
        runs = running(TRAINING, UTILITY)
        if runs:
            return "", f"<div class='error'><span class='cd-refused'>{html.escape(_refusal(runs))}</span></div>"
        for old in list(_named)[:-_KEPT]:
            del _named[old]
        _named[task] = what(*values)
        return task, gr.update()

    clear_first(button.click, told)
    return button.click(
        fn=asked, _js=f"(...all) => newCustomDiffusionTask('{job}', all)", inputs=[task, *inputs],
        outputs=[task, told], queue=False, show_progress=False,
    ).success  # fmt: skip


def if_admitted(run: Callable[..., Sequence[Any]], outputs: Sequence[Any]) -> Callable[..., Sequence[Any]]:
    """What does a job, and nothing for a task that was not admitted."""
    return lambda task, *values: run(task, *values) if task else [gr.update() for _ in outputs]


def _refusal(task: str) -> str:
    done, total = shared.state.job_no, shared.state.job_count
    count = f" ({done} of {total})" if task == progress.current_task and 0 < done <= total else ""
    return f"{_named.get(task, 'A training')}{count} has not ended yet; wait for it, or interrupt it"
