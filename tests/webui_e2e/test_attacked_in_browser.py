"""The real WebUI in a browser in which another site is open, with files beside a delta that do harm if they can."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from attack_page import STRANGER, another_site, answered
from conftest import Page, WebUI

READS = ["/sdapi/v1/deltas", "/internal/custom-diffusion-training"]
ONLY_OPAQUE = (
    "GET /sdapi/v1/deltas as ",
    "GET /internal/custom-diffusion-training as ",
    "POST /sdapi/v1/refresh-deltas",
)
"""What a page of another site may ask for, without being told the answer; it changes nothing."""


@pytest.mark.parametrize(("name", "path"), [("localhost", "/"), ("127.0.0.1", "/"), (STRANGER, "/sandboxed")])
def test_another_site_starts_no_training_and_reads_nothing(
    webui: WebUI, browser: Any, pictures: Path, thing: Path, name: str, path: str
) -> None:
    concept = {"instance_data_dir": str(pictures), "instance_prompt": "photo of a [name]", "class_prompt": "house"}
    settings = {"modifier_token": ["thing"], "concepts": [concept], "max_train_steps": 1, "train_batch_size": 1}
    settings |= {"name": "stolen", "overwrite": True}
    posts = [("/sdapi/v1/train/custom-diffusion", json.dumps(settings)), ("/sdapi/v1/refresh-deltas", "{}")]
    with another_site() as port:
        got = answered(browser, f"http://{name}:{port}{path}", webui.url, READS, posts, queue=False)
    assert [each for each in got if not each.startswith(ONLY_OPAQUE)] == []
    assert not webui.delta("stolen").exists()


def test_notes_and_metadata_beside_a_delta_run_nothing(webui: WebUI, page: Page, thing: Path) -> None:
    harm = "<img src=x onerror='window.harmed = 1'>"
    field = f"\"'); window.harmed = 1; //{harm}"
    notes = {name: field for name in ("description", "notes", "activation text", "sd version")}
    notes["preferred weight"] = "(window.harmed = 1)"
    beside = webui.data / "models" / "deltas" / "thing.delta.json"
    beside.write_text(json.dumps(notes))
    try:
        page.tab("Deltas", "#txt2img_extra_tabs")
        page.press("txt2img_deltas_extra_refresh")
        card = page.page.locator("#txt2img_deltas_cards .card[data-name=thing]")
        card.locator(".description", has_text="window.harmed").wait_for()
        page.fill("txt2img_prompt", "")
        card.click()
        page.page.wait_for_function(
            "document.querySelector('#txt2img_prompt textarea').value.includes('<delta:thing:')"
        )
        card.hover()
        card.locator(".edit-button").click()
        editor = page.page.locator("#txt2img_deltas_edit_user_metadata")
        editor.get_by_label("Notes").wait_for()
        page.page.wait_for_timeout(1000)  # in which a picture that is not there would have failed
        page.look("harm")
        assert page.page.evaluate("window.harmed") is None
        assert not page.page.locator("img[src=x]").count()
    finally:
        beside.unlink()


@pytest.mark.parametrize(
    ("weight", "words", "written"),
    [
        (-0.7, "a (thing", "<delta:thing:-0.7> a (thing"),
        (1e-7, "[a|b] *.?+^$ {2,1}", "<delta:thing:1e-7> [a|b] *.?+^$ {2,1}"),
        ("0.25", 'it\'s "a" \\d \\ thing', '<delta:thing:0.25> it\'s "a" \\d \\ thing'),
        (2, "a\r\nthing\n\n red", "<delta:thing:2> a thing red"),
        (-1, "<lora:x:0.5> $1 $& `${a}`", "<delta:thing:-1> <lora:x:0.5> $1 $& `${a}`"),
        (0.5, " \n", "<delta:thing:0.5> thing house"),
    ],
)
def test_a_click_on_a_card_writes_whatever_its_notes_say_and_a_second_takes_it_out(
    webui: WebUI, page: Page, thing: Path, weight: object, words: str, written: str
) -> None:
    beside = webui.data / "models" / "deltas" / "thing.delta.json"
    beside.write_text(json.dumps({"preferred weight": weight, "activation text": words}))
    try:
        page.tab("Deltas", "#txt2img_extra_tabs")
        page.press("txt2img_deltas_extra_refresh")
        card = page.page.locator("#txt2img_deltas_cards .card[data-name=thing]")
        said = json.dumps(written.partition(">")[2])[1:-1]
        page.page.wait_for_function(
            "said => document.querySelector('#txt2img_deltas_cards .card[data-name=thing]')"
            "?.getAttribute('onclick').includes(said)",
            arg=said,
        )
        page.fill("txt2img_prompt", "a (red:1.1) <delta:things:-1> house")
        card.click()
        assert page.value("txt2img_prompt") == f"a (red:1.1) <delta:things:-1> house {written}"
        card.click()
        assert page.value("txt2img_prompt") == "a (red:1.1) <delta:things:-1> house"
    finally:
        beside.unlink()


def test_names_and_previews_of_files_run_nothing(webui: WebUI, page: Page, thing: Path) -> None:
    harm = "<img src=x onerror='window.harmed = 1'>"
    names = ["it's (a+)+ {0}", "\u202ecat\u202c 🐱", "&lt;img src=x onerror=window.harmed=1&gt;", "x" * 200]
    folder = thing.parent
    files = [folder / f"{name}.delta.safetensors" for name in names]
    beside = [folder / f"{names[0]}.delta.{suffix}" for suffix in ("png", "txt")]
    for file in files:
        shutil.copy(thing, file)
    for file in beside:  # a preview and a description
        file.write_text(f"<!doctype html>{harm}<script>window.harmed = 1</script>")
    try:
        page.tab("Deltas", "#txt2img_extra_tabs")
        page.press("txt2img_deltas_extra_refresh")
        card = page.page.locator("#txt2img_deltas_cards .card", has_text="it's")
        card.locator(".description", has_text="window.harmed").wait_for()
        for name in names:
            page.fill("txt2img_prompt", "")
            page.page.locator("#txt2img_deltas_cards .card .name", has_text=name).click()
            assert f"<delta:{name}:1> thing" in page.value("txt2img_prompt")
            page.page.locator("#txt2img_deltas_cards .card .name", has_text=name).click()
            assert page.value("txt2img_prompt") == ""
        page.look("names")
        card.hover()
        card.locator(".edit-button").click()
        page.page.locator("#txt2img_deltas_edit_user_metadata").get_by_label("Notes").wait_for()
        page.page.wait_for_timeout(1000)  # in which a picture that is not there would have failed
        assert page.page.evaluate("window.harmed") is None
        preview = card.locator("img.preview").get_attribute("src")
        visit = page.page.goto(f"{webui.url}/{preview}")
        assert visit.headers["content-type"] == "image/png" and page.page.evaluate("window.harmed") is None
    finally:
        for file in [*files, *beside]:
            file.unlink()
