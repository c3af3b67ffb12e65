"""What the training form offers beyond the usual: pictures as they are, a small file, the time before, going on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from conftest import PROMPT, Page, WebUI


@pytest.fixture(autouse=True)
def host_is_as_it_was(webui: WebUI, thing: Path, untouched: str) -> Iterator[None]:
    yield
    assert webui.picture(PROMPT)[0] == untouched


@pytest.fixture
def shapes(pictures: Path, tmp_path: Path) -> Path:
    """A wide, an upright and a square picture."""
    drawing = Image.open(pictures / "0.png")
    for name, size in (("wide", (200, 100)), ("upright", (96, 160)), ("square", (128, 128))):
        drawing.resize(size).save(tmp_path / f"{name}.png")
    return tmp_path


def test_the_time_is_told_before(webui: WebUI, page: Page, pictures: Path) -> None:
    page.fill_form("thing", pictures, "timed", 300)
    page.press("cd_ask")
    told = page.wait_for("cd_estimate", "for 300 steps")
    assert re.search(r"About \d+", told) and "on this machine" in told  # `thing` was trained before
    page.look("train-estimate")
    assert not webui.delta("timed").exists()


def test_there_is_one_error_at_a_time(webui: WebUI, page: Page) -> None:
    def only(text: str, part: str) -> None:
        page.page.wait_for_timeout(4000)  # longer than what came before is watched
        [told] = page.errors()
        assert text in told and f"({part})" in told

    def enter(folder: str) -> None:
        field = page.page.locator("#cd_pictures_1 textarea, #cd_pictures_1 input").first
        field.fill(folder)
        page.page.locator("#cd_class_1 textarea, #cd_class_1 input").first.click()  # Tab would open the presets

    page.open_training()
    enter("/nowhere")
    only("There is no folder /nowhere", "cd_estimate")
    page.press("cd_start")
    only("Word is empty", "cd_outcome")
    page.press("cd_ask")
    only("Word is empty", "cd_estimate")
    page.press("cd_start")
    only("Word is empty", "cd_outcome")  # the same again
    enter("/nowhere/else")
    only("There is no folder /nowhere/else", "cd_estimate")
    page.tab("Custom Diffusion Utils")
    page.tab("Compress", "#cd_utils_tabs")
    page.press("cd_compress")
    only("Choose a delta", "cd_utils_outcome")
    page.tab("Inspect", "#cd_utils_tabs")
    page.page.wait_for_timeout(1000)
    assert page.errors() == []


def test_pictures_as_they_are_make_a_small_file(webui: WebUI, page: Page, shapes: Path) -> None:
    page.fill_form("thing", shapes, "shapes", 8)
    page.choose("cd_shape", "as they are")
    page.unfold("cd_more")
    page.fill("cd_max_megabytes", 0.02)
    page.press("cd_start")
    told = page.wait_for("cd_outcome", "Finished after 8 steps")
    page.look("train-compressed")
    assert re.search(r"Compressed to 0\.\d\d MB from \d\.\d\d; what it does to prompts differs by", told)
    assert any(name.endswith(".US") for name in load_file(webui.delta("shapes")))
    prompt = "a thing house <delta:shapes:1>"
    assert webui.picture(prompt)[0] != webui.picture("a thing house")[0]


def test_an_interrupted_training_goes_on_from_the_page(webui: WebUI, page: Page, pictures: Path) -> None:
    webui.post("/sdapi/v1/options", save_optimizer_state=True)
    try:
        page.fill_form("thing", pictures, "continued", 5000)
        page.press("cd_start")
        page.wait_for("ti_progress", "of 5000", 300)
        page.press("cd_stop")
        told = page.wait_for("cd_outcome", "Interrupted and saved", 300)
        assert "Resume from the last save" in told
        steps = int(re.search(r"after (\d+) steps", told).group(1))
        page.page.reload()
        page.wait_until_loaded()
        page.open_training()
        page.wait_for("cd_outcome", "Interrupted and saved", 60)
        page.page.wait_for_function(
            "() => document.querySelector('#cd_name :is(textarea, input)').value === 'continued'"
        )
        assert [page.value(part) for part in ("cd_embedding_1", "cd_class_1", "cd_steps")] == ["thing", "house", "5000"]
        page.unfold("cd_more")
        page.fill("cd_steps", steps + 3)
        page.press("cd_resume_now")
        page.wait_for("cd_outcome", f"Finished after {steps + 3} steps")
    finally:
        webui.post("/sdapi/v1/options", save_optimizer_state=False)
    [continued] = [each for each in webui.get("/sdapi/v1/deltas") if each["name"] == "continued"]
    assert continued["steps"] == steps + 3
