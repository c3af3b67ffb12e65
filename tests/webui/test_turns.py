"""Another job of ours is refused at once, with what runs, and not begun when that is over."""

from __future__ import annotations

import gradio as gr
import pytest
from modules import progress, shared

from lib_custom_diffusion.webui.reopened_page import JOB
from lib_custom_diffusion.webui.turns import UTILITY, admit, if_admitted
from page import Part, parts


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, Part]:
    """A page with a field, and buttons for a training and a utility; nothing runs."""
    monkeypatch.setattr(progress, "current_task", None)
    monkeypatch.setattr(progress, "pending_tasks", {})
    with gr.Blocks() as blocks:
        task, told = gr.Textbox(visible=False), gr.HTML()
        name = gr.Textbox()
        for job, what in ((JOB, "Training {}".format), (UTILITY, "Drawing {}".format)):
            admit(gr.Button(elem_id=job), job, task, told, what, [name])(fn=None)
    return parts(blocks)


def asked(made: dict[str, Part], job: str, task: str, name: str = "cat") -> tuple[str, str]:
    """The task that goes on, and what is said."""
    clear, ask, _begin = made[job].events
    assert clear.js == "() => ''" and f"'{job}'" in ask.js
    admitted, told = ask.fn(task, name)
    return admitted, told if isinstance(told, str) else ""


@pytest.mark.parametrize("job", [JOB, UTILITY])
def test_what_runs_is_said_with_how_far_it_is(made, monkeypatch, job):
    training = f"task({JOB}-1)"
    assert asked(made, JOB, training, "<b>") == (training, "")
    progress.current_task = training
    monkeypatch.setattr(shared.state, "job_no", 12)
    monkeypatch.setattr(shared.state, "job_count", 400)
    task, told = asked(made, job, f"task({job}-2)")
    assert task == "" and told.startswith("<div class='error'>")
    assert "Training &lt;b&gt; (12 of 400) has not ended yet; wait for it, or interrupt it<" in told
    progress.current_task = None
    assert asked(made, job, f"task({job}-3)") == (f"task({job}-3)", "")


def test_one_that_waits_for_its_turn_counts_and_a_picture_does_not(made):
    drawing = f"task({UTILITY}-1)"
    asked(made, UTILITY, drawing)
    progress.current_task, progress.pending_tasks = "task(picture)", {"task(other)": 1.0}
    assert asked(made, JOB, f"task({JOB}-1)") == (f"task({JOB}-1)", "")
    progress.pending_tasks = {"task(other)": 1.0, drawing: 2.0}
    assert "Drawing cat has not ended yet" in asked(made, JOB, f"task({JOB}-1)")[1]
    progress.pending_tasks = {f"task({JOB}-of-the-api)": 1.0}
    assert "A training has not ended yet" in asked(made, UTILITY, drawing)[1]


def test_a_task_that_was_refused_does_nothing():
    run = if_admitted(lambda task, value: [task, value], [gr.HTML(), gr.HTML()])
    assert run("task(1)", 5) == ["task(1)", 5]
    assert run("", 5) == [gr.update(), gr.update()]
