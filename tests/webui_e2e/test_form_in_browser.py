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


def tick(page: Page, part: str) -> None:
    page.page.locator(f"#{part} input").check()


def test_the_time_is_told_before(webui: WebUI, page: Page, pictures: Path) -> None:
    page.fill_form("thing", pictures, "timed", 300)
    page.press("cd_ask")
    told = page.wait_for("cd_estimate", "for 300 steps")
    assert re.search(r"About \d+", told) and "on this machine" in told  # `thing` was trained before
    page.look("train-estimate")
    assert not webui.delta("timed").exists()


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
        tick(page, "cd_resume")
        page.fill("cd_steps", steps + 3)
        page.press("cd_start")
        page.wait_for("cd_outcome", f"Finished after {steps + 3} steps")
    finally:
        webui.post("/sdapi/v1/options", save_optimizer_state=False)
    [continued] = [each for each in webui.get("/sdapi/v1/deltas") if each["name"] == "continued"]
    assert continued["steps"] == steps + 3
