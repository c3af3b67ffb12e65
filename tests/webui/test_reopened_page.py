"""A page that is opened while a training runs finds it, and is told how it ends."""

from __future__ import annotations

import threading
from pathlib import Path

import gradio as gr
import pytest
from modules import progress, shared

from lib_custom_diffusion.ui.training_page import Outcome
from lib_custom_diffusion.webui import reopened_page

TASK, WAITING = "task(train-custom-diffusion-1)", "task(train-custom-diffusion-2)"


@pytest.fixture(autouse=True)
def queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing runs, nothing waits."""
    monkeypatch.setattr(progress, "current_task", None)
    monkeypatch.setattr(progress, "pending_tasks", {})
    monkeypatch.setattr(progress, "recorded_results", [])


@pytest.mark.parametrize(
    ("running", "waiting", "found"),
    [
        (None, [], ""),
        ("task(of a picture)", [], ""),
        (TASK, [WAITING], TASK),
        ("task(of a picture)", ["task(of another)", WAITING], WAITING),
    ],
)
def test_the_training_that_runs_or_waits_is_found(running, waiting, found):
    progress.current_task, progress.pending_tasks = running, dict.fromkeys(waiting, 0.0)
    assert reopened_page.training_task() == found


def test_its_end_is_waited_for_and_told():
    progress.record_results("task(of a picture)", ("", "", "a picture"))
    progress.current_task, progress.pending_tasks = "task(of a picture)", {TASK: 0.0}
    told: list[reopened_page.Shown] = []
    asking = threading.Thread(target=lambda: told.append(reopened_page.end_of(TASK)))
    asking.start()
    asking.join(0.5)
    assert not told
    progress.current_task, progress.pending_tasks = TASK, {}
    asking.join(0.5)
    assert not told
    done = Outcome(7, False, Path("cat.delta.safetensors"), [], Path("logs"), "photo of a cat")
    progress.record_results(TASK, reopened_page.succeeded(done))
    progress.current_task = None
    asking.join(10)
    [(prompt, send, card, compare, name, outcome)] = told
    assert (prompt["value"], send["visible"], card["visible"], name) == ("photo of a cat", True, True, "cat")
    assert "Finished after 7 steps" in outcome and not compare["visible"]  # there is one save alone


def test_of_one_that_broke_off_this_is_told():
    *same, outcome = reopened_page.end_of(TASK)
    assert same == [gr.update(visible=False)] * 4 + [""] and "stopped with an error" in outcome


@pytest.mark.parametrize("api", [True, False])
def test_the_page_can_ask_whether_the_api_is_on_or_not(api, monkeypatch):
    fastapi = pytest.importorskip("fastapi")
    monkeypatch.setattr(shared.cmd_opts, "api", api)
    app = fastapi.FastAPI()
    reopened_page.register(None, app)
    [route] = [route for route in app.routes if route.path == "/internal/custom-diffusion-training"]
    progress.current_task = TASK
    assert route.methods == {"GET"} and route.endpoint() == {"task": TASK}
