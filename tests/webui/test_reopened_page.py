"""A page finds the training that runs, and is told how one ended whose answer gradio did not bring."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gradio as gr
import pytest
from modules import progress, shared

from lib_custom_diffusion.ui.training_page import Outcome
from lib_custom_diffusion.webui import reopened_page
from page import parts

TASK, WAITING = "task(train-custom-diffusion-1)", "task(train-custom-diffusion-2)"


@pytest.fixture(autouse=True)
def queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing runs, nothing waits."""
    monkeypatch.setattr(progress, "current_task", None)
    monkeypatch.setattr(progress, "pending_tasks", {})
    monkeypatch.setattr(progress, "recorded_results", [])
    monkeypatch.setattr(progress, "finished_tasks", [])
    monkeypatch.setattr(reopened_page, "last", reopened_page.LastTraining())


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
    assert reopened_page.trainings() == {"running": found, "last": ""}


def fetched(task: str, outputs: int = 7) -> list[object]:
    """What the page gets that asks what came of a job."""
    with gr.Blocks() as page:
        asked, *shown = (gr.Textbox() for _ in range(1 + outputs))
        reopened_page.add_fetching("cd_outcome", asked, shown, reopened_page.failed("")[: outputs - 1])
    return list(parts(page)["cd_outcome_fetch"].events[0].fn(task))


def test_what_came_of_a_training_is_told_whenever_a_page_asks():
    progress.current_task = TASK
    reopened_page.last.begin()
    assert fetched(TASK) == [gr.update()] * 7  # while it runs
    done = Outcome(7, False, Path("cat.delta.safetensors"), [], Path("logs"), "photo of a cat")
    reopened_page.last.end(TASK, reopened_page.succeeded(done))
    progress.current_task = None
    assert reopened_page.trainings() == {"running": "", "last": TASK}
    progress.record_results("task(of a picture)", ("", "", "a picture"))
    prompt, send, card, compare, resume, name, outcome = fetched(TASK)
    assert (prompt["value"], send["visible"], card["visible"], name) == ("photo of a cat", True, True, "cat")
    assert "Finished after 7 steps" in outcome and not compare["visible"]  # there is one save alone
    assert not resume["visible"] and reopened_page.succeeded(replace(done, resumable=True))[4]["visible"]


def test_a_later_page_is_told_of_no_training_that_was_refused_nor_of_another_job():
    progress.current_task = "task(of a picture)"
    reopened_page.last.begin()
    reopened_page.last.end(TASK, reopened_page.failed("no word"))
    assert reopened_page.trainings()["last"] == ""
    progress.record_results(WAITING, reopened_page.failed("no word"))
    assert fetched(WAITING)[-1] == "no word"  # the page that asked for it is


def test_what_was_wrong_with_the_next_stands_above_what_came_of_the_last(monkeypatch):
    monkeypatch.setattr(reopened_page, "last", reopened_page.LastTraining())
    assert reopened_page.refused(reopened_page.failed("no word")) == reopened_page.failed("no word")
    done = Outcome(7, False, Path("cat.delta.safetensors"), [], Path("logs"), "photo of a cat")
    reopened_page.last.task, reopened_page.last.shown = TASK, reopened_page.succeeded(done)
    *same, outcome = reopened_page.refused(reopened_page.failed("<p>no word</p>"))
    assert same == [gr.update()] * 6 and outcome.startswith("<p>no word</p><p>Finished after 7 steps")


def test_of_one_that_broke_off_and_one_that_never_began_this_is_told():
    progress.finished_tasks.append(TASK)
    *same, outcome = fetched(TASK)
    assert same == [gr.update(visible=False)] * 5 + [""] and "stopped with an error" in outcome
    assert "was not started" in fetched(WAITING)[-1] and "was not started" in fetched(WAITING, outputs=1)[-1]


@pytest.mark.parametrize("api", [True, False])
def test_the_page_can_ask_whether_the_api_is_on_or_not(api, monkeypatch):
    fastapi = pytest.importorskip("fastapi")
    monkeypatch.setattr(shared.cmd_opts, "api", api)
    app = fastapi.FastAPI()
    reopened_page.register(None, app)
    [route] = [route for route in app.routes if route.path == "/internal/custom-diffusion-training"]
    progress.current_task = TASK
    assert route.methods == {"GET"} and route.endpoint() == {"running": TASK, "last": ""}
