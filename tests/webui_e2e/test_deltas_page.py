"""Cards, messages and infotext as a person meets them: in a browser."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from conftest import PROMPT, Page, WebUI, difference, fingerprint
from lib_custom_diffusion.delta import Delta


@pytest.fixture(autouse=True)
def thing_is_there(thing: Path) -> None:
    """Every test here needs it."""


def open_cards(page: Page) -> None:
    page.tab("Deltas", "#txt2img_extra_tabs")
    page.page.locator("#txt2img_deltas_cards .card[data-name=thing]").wait_for()


def test_cards_are_there_when_gradio_has_dropped_what_the_page_asked_for_as_it_was_opened(
    webui: WebUI, browser: Any
) -> None:
    page = Page(browser.new_page(viewport={"width": 1400, "height": 1100}))
    page.page.add_init_script(
        "WebSocket = function() { return {close() {}, send() {}, addEventListener() {}}; }"  # what gradio's queue needs
    )
    page.page.goto(webui.url)
    page.page.locator("#txt2img_prompt textarea").wait_for()
    open_cards(page)
    page.page.close()


def test_what_cannot_be_used_is_said_under_the_picture_which_is_made_without_it(
    webui: WebUI, page: Page, untouched: str
) -> None:
    webui.delta("unreadable").write_bytes(b"nothing of the kind")
    foreign = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    Delta({foreign: torch.ones(320, 768)}).save(webui.delta("foreign"))
    try:
        page.paste(webui.picture(PROMPT)[1])
        page.fill("txt2img_prompt", f"{PROMPT} <delta:nobody:1> <delta:foreign:1> <delta:unreadable:1>")
        drawn = page.draw(webui.data)
        said = page.wait_for("html_log_txt2img", "was left out")
        page.look("left-out")
    finally:
        webui.delta("unreadable").unlink()
        webui.delta("foreign").unlink()
    assert "there is no delta 'nobody'" in said
    assert "<delta:foreign:1> was left out: the delta does not fit this model" in said
    assert "unreadable.delta.safetensors: it " in said
    assert fingerprint(drawn) == untouched


def test_a_word_without_its_delta_is_told_under_the_picture(webui: WebUI, page: Page, thing: Path) -> None:
    taught = Delta.load(thing)
    taught.embeddings = {"<rac>": taught.embeddings["thing"]}
    taught.save(webui.delta("rac"))
    try:
        webui.post("/sdapi/v1/refresh-deltas")
        page.paste(webui.picture(PROMPT)[1])
        page.fill("txt2img_prompt", "a <rac>, <b>red</b>, __wild__ and a <new7>")
        page.draw(webui.data)
        said = page.wait_for("html_log_txt2img", "only means something")
        page.look("word-without-delta")
    finally:
        webui.delta("rac").unlink()
    [line] = [line for line in said.splitlines() if "Custom Diffusion" in line]
    assert line.endswith("<rac> only means something with its delta: add <delta:rac:1> to the prompt.")


def test_pasted_infotext_names_the_delta_as_it_is_called_here(webui: WebUI, page: Page) -> None:
    picture, infotext = webui.picture(f"{PROMPT} <delta:thing:0.8>")
    page.paste(infotext.replace("delta:thing", "delta:as they call it").replace('"thing: ', '"as they call it: '))
    assert page.value("txt2img_prompt") == f"{PROMPT} <delta:thing:0.8>"
    assert fingerprint(page.draw(webui.data)) == picture


def test_a_card_is_found_by_its_word_and_by_its_folder(webui: WebUI, page: Page) -> None:
    inner = webui.data / "models/deltas/animals/inner.delta.safetensors"
    inner.parent.mkdir()
    Delta.load(webui.delta("thing")).save(inner)
    try:
        open_cards(page)
        page.press("txt2img_deltas_extra_refresh")
        page.page.locator("#txt2img_deltas_cards .card[data-name=inner]").wait_for()
        page.page.locator("#txt2img_deltas_extra_search").first.fill("no such thing")
        page.page.wait_for_function("() => !document.querySelector('#txt2img_deltas_cards .card:not(.hidden)')")
        page.page.locator("#txt2img_deltas_extra_search").first.fill("animals")
        page.page.locator("#txt2img_deltas_cards .card[data-name=thing]").wait_for(state="hidden")
        assert page.cards().evaluate_all("all => all.map(card => card.dataset.name)") == ["inner"]
    finally:
        shutil.rmtree(inner.parent)


def test_notes_and_preview_of_a_card(webui: WebUI, page: Page) -> None:
    infotext = webui.picture("a thing house <delta:thing:1>")[1]
    page.paste(infotext)
    drawn = page.draw(webui.data)
    open_cards(page)
    card = page.page.locator("#txt2img_deltas_cards .card[data-name=thing]")
    card.hover()
    card.locator(".edit-button").click()
    editor = page.page.locator("#txt2img_deltas_edit_user_metadata")
    editor.get_by_label("Description").fill("a purple wedge")
    editor.get_by_label("Activation text").fill("the thing")
    editor.get_by_label("Notes").fill("drawn by hand")
    weight = editor.get_by_role("spinbutton")
    weight.fill("0.7")
    weight.press("Tab")
    page.look("card-editor")
    editor.get_by_role("button", name="Replace preview").click()
    editor.locator("img.preview").wait_for()
    editor.get_by_role("button", name="Save").click()
    editor.wait_for(state="hidden")
    card.locator(".description", has_text="a purple wedge").wait_for()
    card.locator("img.preview").wait_for()
    page.look("card-with-preview")
    notes = json.loads((webui.data / "models/deltas/thing.delta.json").read_text())
    assert notes["activation text"] == "the thing" and notes["preferred weight"] == 0.7
    assert (notes["description"], notes["notes"]) == ("a purple wedge", "drawn by hand")
    assert fingerprint(Image.open(webui.data / "models/deltas/thing.delta.png")) == fingerprint(drawn)
    page.fill("txt2img_prompt", "")
    card.click()
    assert page.value("txt2img_prompt").strip() == "<delta:thing:0.7> the thing"


def test_everything_is_there_after_reload_ui(webui: WebUI, page: Page) -> None:
    with_delta = webui.picture(f"{PROMPT} <delta:thing:1>")[0]
    page.tab("Settings")
    page.press("settings_restart_gradio")
    page.page.get_by_text("Reloading...").wait_for()
    page.page.locator("#txt2img_prompt textarea").wait_for(timeout=600_000)
    webui.wait_until_ready(starts=2)
    page.page.reload()
    page.page.locator("#txt2img_prompt textarea").wait_for(timeout=600_000)
    page.page.wait_for_timeout(2000)
    open_cards(page)
    page.tab("Train")
    page.tab("Custom Diffusion", "#train_tabs")
    page.page.locator("#cd_start").wait_for()
    assert webui.picture(f"{PROMPT} <delta:thing:1>")[0] == with_delta
    assert "thing" in {each["name"] for each in webui.get("/sdapi/v1/deltas")}


def test_converted_to_a_lora_the_delta_makes_the_same_picture(webui: WebUI, page: Page, thing: Path) -> None:
    """Up to rounding: the WebUI writes a LoRA into the weights, where a delta acts beside them."""
    page.tab("Custom Diffusion Utils")
    page.tab("Convert", "#cd_utils_tabs")
    page.press("cd_convert_refresh")
    page.page.wait_for_timeout(1500)
    page.choose("cd_convert_names", thing.name)
    page.fill("cd_convert_rank", 128)
    page.press("cd_convert")
    page.wait_for("cd_utils_outcome", "Converted", 300)
    page.look("converted")
    # Other tests may have trained the word on, and the WebUI takes the embedding's file before the LoRA's.
    shutil.copy(webui.data / "models/deltas/thing-words/thing.pt", webui.data / "embeddings/thing.pt")
    webui.post("/sdapi/v1/refresh-embeddings")
    prompt = "a thing house on a red background"
    bare, delta = webui.images(prompt)[0][0], webui.images(f"{prompt} <delta:thing:1>")[0][0]
    largest, mean = difference(webui.images(f"{prompt} <lora:thing:1>")[0][0], delta)
    print(f"\nLoRA against delta: at most {largest} of 255, on average {mean:.4f}")
    assert largest <= 4 and mean <= 0.1
    assert difference(bare, delta)[1] > 20 * mean
