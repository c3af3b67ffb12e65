"""The app in a real browser, on the toy: what the buttons say they do is afterwards in files and on the page.

CHROMIUM names the browser if it is not found by itself; SCREENSHOTS a folder for pictures of the page, if wanted.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import torch
from PIL import Image

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no browser to test with")

from lib_custom_diffusion.attention import projections  # noqa: E402 - only where there is a page to test
from lib_custom_diffusion.delta import Delta, Provenance  # noqa: E402
from lib_custom_diffusion.standalone.models import load_model  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
RACCOON = ROOT / "lib_custom_diffusion" / "standalone" / "toy" / "concepts" / "raccoon"
SECONDS = 120  # of patience with a busy machine


@pytest.fixture(scope="module")
def deltas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the delta "mug", which changes the toy a lot, and its word <new1>."""
    folder = tmp_path_factory.mktemp("app") / "deltas"
    backend, generator = load_model("toy"), torch.Generator().manual_seed(1)
    entries = {
        key: 0.1 * torch.randn(layer.shape, generator=generator) for key, layer in projections(backend.unet).items()
    }
    origin = Provenance(backend.architecture, backend.checkpoint_hash, {"<new1>": "mug"}, 250)
    Delta(entries, {"<new1>": backend.token_vectors("mug")}, origin).save(folder / "mug.delta.safetensors")
    return folder


@pytest.fixture(scope="module")
def address(deltas: Path) -> Iterator[str]:
    """The running app."""
    app = subprocess.Popen(
        [sys.executable, "-m", "lib_custom_diffusion", "ui", "--port", "0", "--deltas_dir", str(deltas)],
        cwd=deltas.parent, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert app.stdout is not None
    assert app.stdout.readline() == "Loading toy …\n"  # which takes its time
    told = app.stdout.readline()
    assert told.startswith("Custom Diffusion is at http://127.0.0.1:"), told
    yield told.split()[4]
    app.terminate()
    app.wait(SECONDS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from browser_with()


def browser_with(*flags: str) -> Iterator[Any]:
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(
            f"there is no browser: install Chromium, or name one by CHROMIUM (looked for {', '.join(BROWSERS)})"
        )
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=program, args=[*FLAGS, *flags], timeout=1000 * SECONDS)
        yield started
        started.close()


class Page:
    """The app in a browser, by the ids of its parts; it remembers whatever was asked for elsewhere."""

    def __init__(self, page: Any, address: str) -> None:
        self.page, self.elsewhere = page, []
        page.set_default_timeout(1000 * SECONDS)
        own = urlsplit(address).netloc
        page.on("request", lambda asked: self._note(asked.url, own))
        page.on("websocket", lambda opened: self._note(opened.url, own))
        page.goto(address)
        page.wait_for_selector("#cd_gen_prompt textarea")

    def _note(self, url: str, own: str) -> None:
        if urlsplit(url).scheme not in ("data", "blob") and urlsplit(url).netloc != own:
            self.elsewhere.append(url)

    def tab(self, name: str, within: str = "#tabs") -> None:
        self.page.locator(f"{within} > .tab-nav > button", has_text=name).first.click()

    def fill(self, part: str, text: Any) -> None:
        box = self.page.locator(f"#{part} textarea, #{part} input[type=text], #{part} input[type=number]").first
        box.fill(str(text))
        box.press("Tab")

    def choose(self, part: str, option: str) -> None:
        self.page.locator(f"#{part} input").first.click()
        self.page.locator(f"#{part} ul.options li", has_text=option).first.click()

    def press(self, part: str) -> None:
        self.page.locator(f"#{part}").click()

    def value(self, part: str) -> str:
        return self.page.locator(f"#{part} textarea, #{part} input").first.input_value()

    def click_in_sight(self, part: Any) -> None:
        """Fails for what is not on the screen as it stands."""
        part.wait_for()
        box, screen = part.bounding_box(), self.page.viewport_size
        inside = all(0 <= box[at] <= screen[size] - box[size] for at, size in (("x", "width"), ("y", "height")))
        assert inside, f"{part} is out of sight: {box}"
        self.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)

    def drop(self, part: str, pictures: list[Path]) -> None:
        """Let pictures fall from elsewhere onto the part."""
        content = [[path.name, base64.b64encode(path.read_bytes()).decode()] for path in pictures]
        dragged = self.page.evaluate_handle(
            """all => {
                const dragged = new DataTransfer();
                for (const [name, content] of all) {
                    const bytes = Uint8Array.from(atob(content), each => each.charCodeAt(0));
                    dragged.items.add(new File([bytes], name, {type: 'image/png'}));
                }
                return dragged;
            }""", content,
        )  # fmt: skip
        self.page.locator(f"#{part} input[type=file]").first.dispatch_event("drop", {"dataTransfer": dragged})

    def wait_for(self, part: str, text: str) -> str:
        """What the part says once it has the text."""
        self.page.wait_for_function(
            "([id, text]) => document.getElementById(id)?.innerText.includes(text)", arg=[part, text]
        )
        return self.page.locator(f"#{part}").first.inner_text()

    def pictures(self, part: str) -> list[Image.Image]:
        """The pictures of a gallery, from the files that the page shows."""
        sources = self.page.eval_on_selector_all(f"#{part} .grid-container img", "all => all.map(each => each.src)")
        return [Image.open(unquote(source.partition("file=")[2])).convert("RGB") for source in sources]

    def look(self, name: str) -> None:
        folder = os.environ.get("SCREENSHOTS")
        if folder:
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Page]:
    opened = browser.new_page(viewport={"width": 1300, "height": 900})
    yield Page(opened, address)
    opened.close()


def generate(page: Page) -> list[Image.Image]:
    """The pictures that come on pressing Generate, in the place of those that are shown."""
    source = "document.querySelector('#cd_gallery .grid-container img')?.src"
    before = page.page.evaluate(source)
    page.press("cd_generate")
    page.page.wait_for_function(f"before => {source} && {source} !== before", arg=before)
    page.wait_for("cd_gen_outcome", "Seed 7")
    return page.pictures("cd_gallery")


def test_of_fields_that_exclude_each_other_only_the_chosen_one_is_shown(page: Page) -> None:
    page.tab("Utilities")
    page.tab("Compress", "#cd_utils_tabs")
    shown = (
        "() => ['size', 'rank', 'energy'].filter("
        "each => document.getElementById(`cd_compress_${each}`).offsetParent).join()"
    )
    page.page.wait_for_function(f"({shown})() === 'size'")
    page.page.locator("#cd_compress_to label", has_text="rank").click()
    page.page.wait_for_function(f"({shown})() === 'rank'")


def test_a_delta_is_used_as_the_command_uses_it_and_nothing_is_fetched_from_elsewhere(
    page: Page, deltas: Path, tmp_path: Path
) -> None:
    prompt = "a cat on a red background"
    for part, value in {
        "cd_gen_prompt": prompt, "cd_gen_steps": 3, "cd_gen_count": 1, "cd_gen_seed": 7, "cd_gen_width": 64,
        "cd_gen_height": 64,
    }.items():  # fmt: skip
        page.fill(part, value)
    [without] = generate(page)
    page.choose("cd_delta", "mug")
    page.page.wait_for_function("document.querySelector('#cd_gen_prompt textarea').value.includes('<delta:mug:1>')")
    assert page.page.input_value("#cd_gen_prompt textarea") == f"{prompt} <new1> mug <delta:mug:1>"
    page.fill("cd_gen_prompt", f"{prompt} <delta:mug:0.8>")
    [drawn] = generate(page)
    page.look("app-generate")
    assert drawn.size == (64, 64) and drawn.tobytes() != without.tobytes()
    command = ["generate", "--prompt", f"{prompt} <delta:mug:0.8>", "--deltas_dir", str(deltas), "--seed", "7",
               "--num_images", "1", "--num_inference_steps", "3", "--resolution", "64",
               "--output", str(tmp_path)]  # fmt: skip
    subprocess.run(
        [sys.executable, "-m", "lib_custom_diffusion", *command],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert fingerprint(Image.open(tmp_path / "00007.png").convert("RGB")) == fingerprint(drawn)
    assert page.elsewhere == []


def fingerprint(picture: Image.Image) -> str:
    return hashlib.sha256(picture.tobytes()).hexdigest()


_ERRORS = """() => [...document.querySelectorAll('.error')].filter(each => each.offsetParent)
    .map(each => `${each.closest('[id]').id}: ${each.innerText}`)"""
"""What is seen of errors: which part of the page says what."""


def errors(page: Page) -> list[str]:
    return page.page.evaluate(_ERRORS)


def test_there_is_one_error_at_a_time_and_none_once_something_else_begins(page: Page, tmp_path: Path) -> None:
    page.tab("Train")
    for part, value in {"cd_class_1": "house", "cd_word_1": "<one1>", "cd_pictures_1": tmp_path / "nowhere"}.items():
        page.fill(part, value)
    [first] = one_error(page, "There is no folder")
    page.press("cd_ask")
    page.page.wait_for_timeout(1000)
    assert errors(page) == [first]
    page.press("cd_start")
    page.page.wait_for_timeout(1000)
    assert errors(page) == [first]
    page.look("app-error")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    page.fill("cd_pictures_1", tmp_path)
    page.page.wait_for_selector("#cd_strip img")
    assert errors(page) == []
    page.fill("cd_word_1", "cat")
    page.press("cd_start")
    one_error(page, "cat is a word")
    page.page.wait_for_timeout(2000)  # gradio tells the last state of an event once more when it ends
    page.drop("cd_upload", [Path(__file__)])  # alone, it is no picture
    one_error(page, "test_ui_browser.py: it is not a picture")
    assert page.value("cd_pictures_1") == str(tmp_path)
    page.tab("Utilities")
    page.tab("Compress", "#cd_utils_tabs")
    page.press("cd_compress")
    page.wait_for("cd_utils_outcome", "Choose a delta")
    page.tab("Inspect", "#cd_utils_tabs")
    page.page.wait_for_timeout(500)
    assert errors(page) == []


def test_an_answer_is_drawn_again_though_it_is_the_same(page: Page) -> None:
    """As a person sees by its fading in."""

    def told_anew(button: str, answer: str) -> None:
        page.press(button)
        page.page.wait_for_selector(f"#{answer} .error")
        page.page.wait_for_timeout(1500)  # gradio tells the last state of an event once more when it ends
        page.page.evaluate("id => { document.querySelector(`#${id} .error`).dataset.before = 'yes'; }", answer)
        page.press(button)
        page.page.wait_for_selector(f"#{answer} .error:not([data-before])", timeout=20_000)
        assert page.page.locator(f"#{answer} .error").count() == 1
        shown = page.page.locator(f"#{answer} .error").evaluate("each => getComputedStyle(each).animationName")
        assert shown == "cd-told"

    told_anew("cd_generate", "cd_gen_outcome")
    page.tab("Train")
    told_anew("cd_ask", "cd_estimate")
    told_anew("cd_start", "cd_estimate")
    page.tab("Utilities")
    page.tab("Compress", "#cd_utils_tabs")
    told_anew("cd_compress", "cd_utils_outcome")
    page.tab("Inspect", "#cd_utils_tabs")
    told_anew("cd_inspect", "cd_utils_outcome")


def one_error(page: Page, text: str) -> list[str]:
    """The errors that are seen once one with the text is seen alone; what is told again goes for a moment."""
    alone = f"text => {{ const seen = ({_ERRORS})(); return seen.length === 1 && seen[0].includes(text) && seen; }}"
    return page.page.wait_for_function(alone, arg=text).json_value()


@pytest.mark.parametrize("width", [400, 800])
def test_on_a_narrow_screen_nothing_overlaps_or_is_cut(browser: Any, address: str, width: int) -> None:
    page = Page(browser.new_page(viewport={"width": width, "height": 800}), address)
    for tab in ("Generate", "Train", "Utilities"):
        page.tab(tab)
        if tab == "Train":
            page.page.locator("#cd_more .label-wrap").first.click()
            page.fill("cd_pictures_1", RACCOON)
            page.page.wait_for_selector("#cd_strip img")
            page.page.locator("h1").click()  # and no list is open
        if tab == "Utilities":
            page.tab("Convert", "#cd_utils_tabs")
        page.page.wait_for_timeout(300)
        page.look(f"app-{tab}-{width}")
        assert page.page.evaluate(_OVERLAPPING) == [], tab
    page.tab("Train")
    page.fill("cd_pictures_1", "/nowhere")
    page.press("cd_start")
    one_error(page, "There is no folder")
    button, told = (page.page.locator(part).first.bounding_box() for part in ("#cd_start", "#cd_estimate .error"))
    assert 0 < told["y"] - button["y"] < 250  # told where it was pressed
    page.page.close()


_OVERLAPPING = """() => {
    const seen = [], shown = [...document.querySelectorAll('.gradio-container *')].filter(each => each.offsetParent);
    const width = document.documentElement.clientWidth;
    if (document.documentElement.scrollWidth > width) seen.push('the page scrolls sideways');
    const texts = [];
    for (const each of shown) {
        const range = document.createRange();
        for (const text of each.childNodes) {
            if (text.nodeType !== Node.TEXT_NODE || !text.textContent.trim()) continue;
            range.selectNodeContents(text);
            for (const box of range.getClientRects()) {
                if (box.right > width + 1 || box.left < -1) seen.push(`beyond the edge: ${text.textContent}`);
                texts.push([text.textContent.trim(), box]);
            }
        }
    }
    for (const [index, [text, box]] of texts.entries())
        for (const [other, its] of texts.slice(index + 1))
            if (Math.min(box.right, its.right) - Math.max(box.left, its.left) > 3
                && Math.min(box.bottom, its.bottom) - Math.max(box.top, its.top) > 6)
                seen.push(`${text} | ${other}`);
    for (const each of document.querySelectorAll('[id^=cd_] .secondary-wrap input'))
        if (each.offsetParent && each.scrollWidth > each.clientWidth + 1) seen.push(`cut: ${each.value}`);
    return [...new Set(seen)];
}"""
"""What lies over something else, goes beyond the screen, or is cut."""


def test_a_mistake_in_the_prompt_is_told_in_a_sentence(page: Page) -> None:
    page.fill("cd_gen_prompt", "a cat <delta:nobody:1>")
    page.press("cd_generate")
    assert "There is no delta 'nobody'" in page.wait_for("cd_gen_outcome", "nobody")


def test_a_delta_is_inspected_and_compressed(page: Page, deltas: Path) -> None:
    page.tab("Utilities")
    page.tab("Inspect", "#cd_utils_tabs")
    page.choose("cd_inspect_name", "mug")
    page.press("cd_inspect")
    assert "<new1> mug" in page.wait_for("cd_utils_outcome", "Layers")
    page.look("app-inspect")
    page.tab("Compress", "#cd_utils_tabs")
    page.choose("cd_compress_name", "mug")
    page.fill("cd_compress_size", "0.1")
    page.page.locator("#cd_compress_weighed input").uncheck()
    page.press("cd_compress")
    assert "in its numbers" in page.wait_for("cd_utils_outcome", "Differs from the original by")
    small = deltas / "mug-small.delta.safetensors"
    assert small.stat().st_size <= 100_000 and "<new1>" in Delta.load(small).embeddings
    page.press("cd_utils_open")
    assert "mug-small.delta.safetensors" in page.wait_for("cd_utils_opened", "Layers")
    page.look("app-compress")
    page.tab("Convert", "#cd_utils_tabs")
    page.choose("cd_convert_names", "mug-small.delta.safetensors")
    page.page.locator("h1").click()  # a list of several stays open
    page.press("cd_convert")
    told = page.wait_for("cd_utils_outcome", "In the WebUI's prompt")
    assert "<lora:mug-small:1> <new1>" in told and str(deltas / "mug-small.safetensors") in told


def test_a_page_opened_later_shows_what_came_of_the_last_utility_and_the_last_pictures(page: Page) -> None:
    for part, value in {"cd_gen_prompt": "a cat", "cd_gen_steps": 2, "cd_gen_count": 1, "cd_gen_seed": 7}.items():
        page.fill(part, value)
    page.press("cd_generate")
    page.page.wait_for_selector("#cd_gallery .grid-container img")
    page.page.wait_for_selector(".cd-job", state="detached")
    page.tab("Utilities")
    page.tab("Compress", "#cd_utils_tabs")
    page.choose("cd_compress_name", "mug")
    page.fill("cd_compress_result", "once")
    page.page.locator("#cd_compress_weighed input").uncheck()
    page.press("cd_compress")
    page.wait_for("cd_utils_outcome", "once.delta.safetensors")
    page.press("cd_compress")  # is refused, which only this page shows
    page.wait_for("cd_utils_outcome", "already")
    page.page.reload()
    page.page.wait_for_selector("#cd_gen_prompt textarea")
    page.wait_for("cd_gen_outcome", "Seed 7")
    assert len(page.pictures("cd_gallery")) == 1
    page.tab("Utilities")
    page.wait_for("cd_utils_outcome", "Size")
    page.press("cd_utils_open")
    page.wait_for("cd_utils_opened", "Layers")
    page.look("app-reopened")


def test_what_came_of_a_utility_stands_beside_it_alone_and_an_error_goes_when_a_field_is_mended(page: Page) -> None:
    def sees(text: str) -> bool:
        outcome = page.page.locator("#cd_utils_outcome").first
        return outcome.is_visible() and text in outcome.inner_text()

    page.tab("Utilities")
    page.tab("Inspect", "#cd_utils_tabs")
    page.press("cd_inspect")
    page.wait_for("cd_utils_outcome", "Choose a delta")
    page.choose("cd_inspect_name", "mug")
    page.page.wait_for_function("() => !document.querySelector('#cd_utils_outcome .error')")
    page.press("cd_inspect")
    page.wait_for("cd_utils_outcome", "Layers")
    page.look("app-inspect")
    page.tab("Rename", "#cd_utils_tabs")
    page.page.wait_for_timeout(500)
    assert not sees("Layers")
    page.choose("cd_rename_name", "mug")
    old = "document.querySelector('#cd_rename_old :is(input, textarea)').value"
    page.page.wait_for_function(f"() => {old} === '<new1>'")
    page.look("app-rename")
    page.tab("Inspect", "#cd_utils_tabs")
    page.page.wait_for_timeout(500)
    assert sees("Layers")
    page.tab("Compress", "#cd_utils_tabs")
    page.choose("cd_compress_name", "mug")
    page.page.wait_for_function("() => Number(document.querySelector('#cd_compress_size input').value) < 1")
    page.press("cd_compress")
    page.wait_for("cd_utils_outcome", "Before")
    page.look("app-compress")
    page.tab("Inspect", "#cd_utils_tabs")
    page.page.wait_for_timeout(500)
    assert not sees("Layers") and not sees("Before")
    page.tab("Generate")
    page.press("cd_generate")
    page.wait_for("cd_gen_outcome", "Nothing was drawn.")
    page.page.locator("#cd_gen_prompt textarea").press_sequentially("a")
    page.page.wait_for_function("() => !document.querySelector('#cd_gen_outcome .error')")
    page.fill("cd_gen_prompt", "a <new2> mug <delta:mug:5>")
    for part, value in {"cd_gen_steps": 2, "cd_gen_count": 1, "cd_gen_seed": 7}.items():
        page.fill(part, value)
    page.press("cd_generate")
    told = page.wait_for("cd_gen_outcome", "A weight of 5 is far from 1")
    assert "<new2> is plain text: no delta in the prompt has that word. Did you mean <new1>?" in told
    page.look("app-remarks")


def test_regularization_pictures_are_drawn_from_a_template(page: Page, tmp_path: Path) -> None:
    page.tab("Utilities")
    page.page.locator("#cd_reg_source label", has_text="a template").click()
    page.page.wait_for_selector("#cd_reg_template")
    for part, value in {
        "cd_reg_prompt": "house", "cd_reg_count": 2, "cd_reg_size": 64, "cd_reg_steps": 2,
        "cd_reg_folder": tmp_path / "houses",
    }.items():  # fmt: skip
        page.fill(part, value)
    page.press("cd_reg_draw")
    page.wait_for("cd_utils_outcome", "2 pictures drawn")
    page.look("app-regularization")
    drawn = sorted((tmp_path / "houses").glob("*.png"))
    assert [Image.open(path).size for path in drawn] == [(64, 64)] * 2
    lines = [path.with_suffix(".txt").read_text().strip() for path in drawn]
    assert all("house" in line and line != "house" for line in lines)


def start_training(page: Page, name: str, pictures: Path, steps: int) -> None:
    page.tab("Train")
    page.page.locator("#cd_more .label-wrap").first.click()
    for part, value in {
        "cd_word_1": f"<{name}1>", "cd_class_1": "house", "cd_pictures_1": pictures, "cd_name": name, "cd_steps": steps,
        "cd_batch_size": 1, "cd_resolution": 64, "cd_preview_every": 0,
    }.items():  # fmt: skip
        page.fill(part, value)
    page.press("cd_start")


def test_a_word_is_trained_and_sent_to_generate(page: Page, deltas: Path, tmp_path: Path) -> None:
    for index, color in enumerate(("red", "blue")):
        Image.new("RGB", (64, 64), color).save(tmp_path / f"{index}.png")
    start_training(page, "tile", tmp_path, steps=2)
    page.wait_for("cd_outcome", "Finished after 2 steps")
    page.look("app-train")
    learned = Delta.load(deltas / "tile.delta.safetensors")
    assert learned.provenance.steps == 2 and "<tile1>" in learned.embeddings
    page.press("cd_send")
    page.page.wait_for_function("document.querySelector('#cd_gen_prompt textarea').offsetParent !== null")
    assert "<delta:tile:1>" in page.page.input_value("#cd_gen_prompt textarea")
    page.tab("Utilities")  # which knows what was made since the page was opened
    page.tab("Inspect", "#cd_utils_tabs")
    page.page.wait_for_timeout(1000)
    page.choose("cd_inspect_name", "tile")


def test_dragged_pictures_become_pictures_of_the_word_in_five_clicks_and_nothing_leaves_the_machine(
    browser: Any, address: str, deltas: Path
) -> None:
    """With few steps; on a screen of 1280 × 800, without scrolling."""
    page = Page(browser.new_page(viewport={"width": 1280, "height": 800}), address)
    for part, value in {"cd_gen_steps": 2, "cd_gen_count": 1, "cd_gen_seed": 7}.items():
        page.fill(part, value)
    page.tab("Train")
    page.page.locator("#cd_more .label-wrap").first.click()
    for part, value in {"cd_steps": 2, "cd_batch_size": 1, "cd_resolution": 64}.items():
        page.fill(part, value)
    page.page.locator("#cd_more .label-wrap").first.click()
    page.tab("Generate")
    page.page.evaluate("scrollTo(0, 0)")
    own = page.page.locator
    page.click_in_sight(own("#tabs > .tab-nav > button", has_text="Train").first)
    page.drop("cd_upload", sorted(RACCOON.glob("*.png")))
    page.page.wait_for_function("document.querySelectorAll('#cd_strip img').length === 6")
    page.wait_for("cd_upload", "Drop File Here")  # for others; these are shown as they will be cropped
    page.click_in_sight(own("#cd_class_1 input"))
    page.page.keyboard.type("bear")
    page.look("app-dragged")
    page.click_in_sight(own("#cd_start"))
    page.wait_for("cd_outcome", "new1.delta.safetensors")  # not what came of an earlier training
    page.click_in_sight(own("#cd_send"))
    page.page.wait_for_function("document.querySelector('#cd_gen_prompt textarea').offsetParent !== null")
    page.click_in_sight(own("#cd_generate"))
    page.wait_for("cd_gen_outcome", "Seed 7")
    [drawn] = page.pictures("cd_gallery")
    assert drawn.size == (128, 128)
    assert page.page.input_value("#cd_gen_prompt textarea") == "photo of a <new1> bear <delta:new1:1>"
    [kept] = (deltas.parent / "training" / "pictures").iterdir()
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == {
        path.name: path.read_bytes() for path in RACCOON.glob("*.png")
    }
    assert page.elsewhere == []
    page.page.close()


def test_a_page_opened_meanwhile_shows_the_training_and_interrupts_it(page: Page, deltas: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    start_training(page, "long", tmp_path, steps=5000)
    page.wait_for("cd_progress", "of 5000")
    page.page.reload()
    page.page.wait_for_selector("#cd_gen_prompt textarea")
    page.tab("Train")
    assert "long" in page.wait_for("cd_progress", "of 5000")
    assert (page.value("cd_class_1"), page.value("cd_pictures_1")) == ("house", str(tmp_path))
    page.press("cd_stop")
    page.wait_for("cd_outcome", "Interrupted and saved")
    assert (deltas / "long.delta.safetensors").is_file()
    assert "<delta:long:1>" in page.page.input_value("#cd_try_prompt textarea")
    page.page.reload()
    page.page.wait_for_selector("#cd_gen_prompt textarea")
    page.tab("Train")
    assert str(deltas / "long.delta.safetensors") in page.wait_for("cd_outcome", "Interrupted and saved")
    assert "<delta:long:1>" in page.page.input_value("#cd_try_prompt textarea")


def test_a_page_that_has_lost_its_connection_shows_the_training_again(
    browser: Any, address: str, tmp_path: Path
) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    opened = browser.new_page()
    opened.add_init_script(
        "const Socket = WebSocket, all = []; WebSocket = function(...given) {"
        " const opened = new Socket(...given); all.push(opened); return opened; };"
        " window.lose = () => all.splice(0).forEach(each => { each.onclose({wasClean: false}); each.close(); });"
    )
    page = Page(opened, address)
    start_training(page, "lost", tmp_path, steps=5000)
    page.wait_for("cd_progress", "of 5000")
    opened.evaluate("lose()")
    opened.get_by_text("Connection errored out").first.wait_for()
    page.press("cd_stop")
    page.wait_for("cd_outcome", "Interrupted and saved")
    assert "<delta:lost:1>" in opened.input_value("#cd_try_prompt textarea")
    opened.close()


def test_an_answer_that_is_dropped_without_a_word_is_fetched(browser: Any, address: str, tmp_path: Path) -> None:
    opened = browser.new_page()
    opened.add_init_script(
        "const Socket = WebSocket, all = []; WebSocket = function(...given) {"
        " const opened = new Socket(...given); all.push(opened); return opened; };"
        " window.drop = () => all.splice(0).forEach(each => { each.onmessage = null; });"
    )
    page = Page(opened, address)
    start = {"cd_gen_prompt": "a dog", "cd_gen_steps": 60, "cd_gen_count": 1, "cd_gen_seed": 9}
    for part, value in start.items():
        page.fill(part, value)
    page.press("cd_generate")
    page.wait_for("cd_gen_outcome", "Drawing")
    opened.evaluate("drop()")
    page.wait_for("cd_gen_outcome", "Seed 9")
    assert len(page.pictures("cd_gallery")) == 1
    assert not opened.locator(".toast-body").count()
    opened.close()


def test_the_app_answers_its_own_page_alone(address: str) -> None:
    own = urlsplit(address).netloc
    with urllib.request.urlopen(address) as answer:
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert re.findall(rb'(?:src|href)="https?:[^"]*"', answer.read()) == []
    for headers in ({"Origin": "https://example.com"}, {"Host": "example.com"}, {"Origin": "http://127.0.0.1:1"}):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(f"{address}/config", headers=headers))
        assert refused.value.code == 403
    with urllib.request.urlopen(urllib.request.Request(f"{address}/config", headers={"Origin": address})) as answer:
        assert answer.status == 200
    assert shakes_hands(own, address) and not shakes_hands(own, "https://example.com")


def shakes_hands(own: str, origin: str) -> bool:
    """Whether a websocket, over which gradio runs the jobs, is opened for a page of that origin."""
    asked = {"Origin": origin, "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
             "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}  # fmt: skip
    connection = http.client.HTTPConnection(own, timeout=SECONDS)
    connection.request("GET", "/queue/join", headers=asked)
    status = connection.getresponse().status
    connection.close()
    return status == http.HTTPStatus.SWITCHING_PROTOCOLS
