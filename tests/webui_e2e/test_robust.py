"""Whatever happens during a training, the host is as it was, and the next job runs."""

from __future__ import annotations

import json
import re
import time
import urllib.error
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from conftest import PROMPT, Page, WebUI

SECONDS = 900


@pytest.fixture(autouse=True)
def host_is_as_it_was(webui: WebUI, thing: Path, untouched: str) -> Iterator[None]:
    """The picture is the same to the bit, no file is half-written, and nothing lies outside the folders."""
    before = webui.picture("a thing house <delta:thing:1>")[0]
    yield
    webui.post("/sdapi/v1/interrupt")  # a test that failed may have left a long training
    assert webui.picture(PROMPT)[0] == untouched
    # A training goes on with the word's embedding; the delta has its own copy of it.
    assert webui.picture("a thing house <delta:thing:1>")[0] == before
    written = [path for path in webui.data.rglob("*.delta.safetensors") if "custom-diffusion" not in path.parts]
    folders = {path.relative_to(webui.data).parts[0] for path in written}
    assert folders <= {"models", "textual_inversion"}
    assert all(load_file(path) for path in written)


def wait_for(happens: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if found := happens():
            return found
        time.sleep(0.2)
    raise AssertionError(f"{what} did not happen")


def steps_done(webui: WebUI) -> int:
    return webui.get("/sdapi/v1/progress?skip_current_image=true")["state"]["job_no"]


def job(webui: WebUI) -> str:
    return webui.get("/sdapi/v1/progress?skip_current_image=true")["state"]["job"]


@pytest.mark.parametrize(("how", "status"), [("error", 500), ("out of memory", 422)])
def test_a_training_that_fails_leaves_no_trace_and_the_next_runs(
    webui: WebUI, pictures: Path, how: str, status: int
) -> None:
    name = f"after {how}"
    webui.fail(how)
    with pytest.raises(urllib.error.HTTPError) as refused:
        webui.train(name, pictures, max_train_steps=20)
    assert refused.value.code == status
    if status == 422:
        assert b"memory is too small" in refused.value.read()
    assert not webui.delta(name).exists()
    assert not job(webui)
    assert webui.train(name, pictures)["steps"] == 3
    assert webui.delta(name).is_file()


def test_the_page_says_what_failed_and_trains_again(webui: WebUI, page: Page, pictures: Path) -> None:
    page.fill_form("thing", pictures, "again", 6)
    webui.fail("out of memory")
    page.press("cd_start")
    page.wait_for("cd_outcome", "memory is too small")
    page.look("out-of-memory")
    page.press("cd_start")
    page.wait_for("cd_outcome", "Finished after 6 steps")
    assert webui.delta("again").is_file()


def test_another_checkpoint_chosen_during_training_waits_for_its_end(
    webui: WebUI, pictures: Path, other_checkpoint: str
) -> None:
    settings: dict[str, Any] = {"max_train_steps": 12, "validation_prompt": "a thing", "validation_steps": 2}
    other = {"override_settings": {"sd_model_checkpoint": other_checkpoint}}
    bare = webui.picture(PROMPT, **other)[0]
    word = (webui.data / "embeddings/thing.pt").read_bytes()
    webui.train("calm", pictures, **settings)
    (webui.data / "embeddings/thing.pt").write_bytes(word)
    webui.post("/sdapi/v1/refresh-embeddings")
    with ThreadPoolExecutor(2) as pool:
        training = pool.submit(webui.train, "switched", pictures, **settings)
        wait_for(lambda: steps_done(webui) >= 1 and job(webui) == "train-custom-diffusion", "the first step")
        switching = pool.submit(webui.post, "/sdapi/v1/options", sd_model_checkpoint=other_checkpoint)
        assert training.result(SECONDS)["steps"] == 12
        switching.result(SECONDS)
    try:
        assert webui.picture(PROMPT)[0] == bare
    finally:
        webui.post("/sdapi/v1/options", sd_model_checkpoint="toy.safetensors")
    calm, switched = load_file(webui.delta("calm")), load_file(webui.delta("switched"))
    assert calm.keys() == switched.keys()
    assert all(torch.equal(calm[name], switched[name]) for name in calm)


def test_the_chosen_checkpoint_is_trained_whatever_the_last_picture_left(
    webui: WebUI, pictures: Path, other_checkpoint: str
) -> None:
    webui.picture(PROMPT, override_settings={"sd_model_checkpoint": other_checkpoint})
    webui.train("chosen", pictures)
    checkpoints = {each["name"]: each["checkpoint"] for each in webui.get("/sdapi/v1/deltas")}
    assert checkpoints["chosen"] == checkpoints["thing"]


def test_a_second_training_waits_in_the_queue(webui: WebUI, pictures: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(webui.train, "first", pictures, max_train_steps=12)
        wait_for(lambda: job(webui) == "train-custom-diffusion", "the first training")
        second = pool.submit(webui.train, "second", pictures)
        waiting = wait_for(lambda: webui.get("/internal/pending-tasks")["tasks"], "waiting")
        assert [task.startswith("task(train-custom-diffusion") for task in waiting] == [True]
        assert not first.done()
        assert (first.result(SECONDS)["steps"], second.result(SECONDS)["steps"]) == (12, 3)
    assert webui.delta("first").stat().st_mtime <= webui.delta("second").stat().st_mtime


def test_a_training_goes_on_when_the_browser_is_closed(webui: WebUI, page: Page, pictures: Path) -> None:
    page.fill_form("thing", pictures, "closed", 12)
    page.press("cd_start")
    wait_for(lambda: steps_done(webui) >= 1 and job(webui) == "train-custom-diffusion", "the first step")
    page.page.close()
    wait_for(lambda: not job(webui) and webui.delta("closed").exists(), "the end")
    [closed] = [each for each in webui.get("/sdapi/v1/deltas") if each["name"] == "closed"]
    assert closed["steps"] == 12


def test_a_page_opened_meanwhile_shows_the_training_interrupts_it_and_is_told_the_end(
    webui: WebUI, page: Page, pictures: Path
) -> None:
    page.fill_form("thing", pictures, "reopened", 5000)
    page.fill("cd_preview_every", 0)
    page.press("cd_start")
    page.wait_for("ti_progress", "of 5000", 300)
    page.page.reload()
    page.wait_until_loaded()
    page.open_training()
    page.page.locator(".progressDiv").wait_for()
    page.wait_for("ti_progress", "of 5000", 300)
    page.page.locator("#ti_progress .cd-loss .smooth").wait_for()
    page.look("train-reopened")
    page.press("cd_stop")
    told = page.wait_for("cd_outcome", "Interrupted and saved", 300)
    assert str(webui.delta("reopened")) in told
    assert page.value("cd_try_prompt") == "photo of a thing house <delta:reopened:1>"
    page.page.locator(".progressDiv").wait_for(state="detached")
    webui.picture(PROMPT)  # the host keeps the results of its last two jobs
    page.page.reload()
    page.wait_until_loaded()
    page.open_training()
    assert str(webui.delta("reopened")) in page.wait_for("cd_outcome", "Interrupted and saved", 60)
    assert page.value("cd_try_prompt") == "photo of a thing house <delta:reopened:1>"
    assert not page.page.locator(".progressDiv").count()


def test_another_training_is_refused_at_once_and_the_one_that_runs_is_shown(
    webui: WebUI, page: Page, browser: Any, pictures: Path
) -> None:
    other = Page(browser.new_page(viewport={"width": 1280, "height": 800}))
    other.page.goto(webui.url)
    other.wait_until_loaded()
    page.fill_form("thing", pictures, "one", 5000)
    other.fill_form("thing", pictures, "two", 3)
    page.press("cd_start")
    page.wait_for("ti_progress", "of 5000", 300)
    other.press("cd_start")
    told = other.wait_for("cd_estimate", "has not ended yet", 60)
    assert re.search(r"Training one \(\d+ of 5000\) has not ended yet; wait for it, or interrupt it", told)
    other.wait_for("ti_progress", "of 5000", 60)
    assert re.fullmatch(r"\d*%?", other.page.locator(".progressDiv .progress").inner_text())  # the rest stands below
    other.look("refused-in-another-page")
    for here in (page, other):  # also where it runs, and for how long it would take
        here.press("cd_start" if here is page else "cd_ask")
        here.wait_for("cd_estimate", "Training one", 60)
        assert "of 5000" in here.page.locator("#ti_progress").inner_text()
    other.tab("Custom Diffusion Utils")
    other.tab("Compress", "#cd_utils_tabs")
    other.press("cd_compress")
    assert "Training one" in other.wait_for("cd_utils_outcome", "has not ended yet", 60)
    other.look("refused-utility")
    other.open_training()
    other.press("cd_stop")
    for here in (page, other):
        told = here.wait_for("cd_outcome", str(webui.delta("one")), 300)  # not what came of an earlier one
        assert "Interrupted and saved" in told
        here.page.locator("#cd_send").wait_for()
        here.page.locator("#cd_estimate .cd-refused").wait_for(state="hidden")
    assert webui.get("/internal/pending-tasks")["size"] == 0 and not webui.delta("two").exists()
    other.press("cd_start")
    other.wait_for("cd_outcome", "Finished after 3 steps")
    assert other.errors() == []
    other.page.close()


@pytest.mark.parametrize("how", ["the answer is dropped", "the page is told of an error"])
def test_an_answer_that_gradio_does_not_bring_is_fetched(webui: WebUI, page: Page, pictures: Path, how: str) -> None:
    page.page.add_init_script(
        "const Socket = WebSocket; const all = []; WebSocket = function(...given) {"
        " const opened = new Socket(...given); all.push(opened); return opened; };"
        " window.dropAll = how => all.forEach(each => {"
        " if (how == 'the answer is dropped') each.onmessage = () => {}; else each.onclose({wasClean: false});"
        " each.close(); });"
    )
    page.page.reload()
    page.wait_until_loaded()
    page.fill_form("thing", pictures, "dropped", 8)
    page.press("cd_start")
    page.wait_for("ti_progress", "of 8", 300)
    page.page.evaluate("how => dropAll(how)", how)
    assert str(webui.delta("dropped")) in page.wait_for("cd_outcome", "Finished after 8 steps", 300)
    assert page.value("cd_try_prompt") == "photo of a thing house <delta:dropped:1>"
    page.page.locator("#cd_send").wait_for()
    page.look("train-fetched")
    assert [each for each in page.errors() if "cd_" in each] == []


def test_a_training_of_the_api_is_shown_on_the_page_too(webui: WebUI, page: Page, pictures: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(webui.train, "by api", pictures, max_train_steps=5000)
        wait_for(lambda: steps_done(webui) >= 1 and job(webui) == "train-custom-diffusion", "the first step")
        page.page.reload()
        page.wait_until_loaded()
        page.open_training()
        page.wait_for("ti_progress", "of 5000", 300)
        page.press("cd_stop")
        page.wait_for("cd_outcome", "Interrupted and saved", 300)
        assert training.result(SECONDS)["interrupted"]


@pytest.mark.parametrize("name", ["../../out", "/tmp/out", "..\\out: 2", "....//x"])
def test_a_name_cannot_leave_the_folder(webui: WebUI, pictures: Path, name: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        webui.train(name, pictures)
    assert refused.value.code == 422 and b"characters that file names cannot" in refused.value.read()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": ".."}, "no letter or digit"),
        ({"concepts": []}, "1 concept or more"),
        ({"max_train_steps": 0}, "max_train_steps must be 1 or more"),
        ({"resolution": 100}, "multiple of 8"),
        ({"learning_rate": "fast"}, "fast"),
        ({"freeze_model": "everything"}, "everything"),
        ({"select": "crossattn"}, "there is no setting 'select'"),
        (
            {"concepts": [{"instance_data_dir": "/no/such", "instance_prompt": "a thing"}]},
            "there is no folder /no/such",
        ),
        ({"modifier_token": ["../thing"]}, "there is no embedding"),
        ({"name": "thing"}, "thing was trained already"),
    ],
)
def test_the_api_refuses_with_a_sentence(webui: WebUI, pictures: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        webui.ask_to_train("thing", pictures, **{"name": "never", "max_train_steps": 3, **changes})
    assert refused.value.code == 422
    assert said in json.loads(refused.value.read())["detail"]
    assert not webui.delta("never").exists()
