"""From an empty install to a picture of the cat, by mouse and keyboard alone, on a screen of 1280 × 800.

SCREENSHOTS=docs takes the pictures of docs/webui.md that are of this way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pytest

from conftest import TOY, Page, WebUI

MOST_CLICKS = 8
SCREEN = {"width": 1280, "height": 800}
PICTURES = TOY / "concepts" / "two-faced-cat"


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    """A WebUI without a checkpoint, an embedding or a delta."""
    running = WebUI(tmp_path_factory.mktemp("empty"), empty=True)
    running.start()
    yield running
    running.stop()


class Newcomer(Page):
    """Clicks what is in sight, and types where the page waits for it."""

    clicks = 0
    places: Mapping[str, str] = {}
    """What the pictures for the docs have in the place of this machine's paths."""

    def look(self, name: str) -> None:
        self._write(self.places.items())
        super().look(name)
        self._write((there, here) for here, there in self.places.items())

    def _write(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Have the page show one text for another, without telling it."""
        self.page.evaluate(
            """pairs => {
                const written = text => pairs.reduce((text, [old, other]) => text.replaceAll(old, other), text);
                const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
                for (let node; (node = texts.nextNode()); ) {
                    if (written(node.data) !== node.data) node.data = written(node.data);
                }
                for (const field of document.querySelectorAll('input, textarea')) {
                    if (written(field.value) !== field.value) field.value = written(field.value);
                }
            }""", list(pairs),
        )  # fmt: skip

    def click(self, part: Any) -> None:
        """One click; fails for what is not on the screen as it stands."""
        box = self.in_sight(part)
        self.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        self.clicks += 1

    def in_sight(self, part: Any) -> dict[str, float]:
        """Where it is; fails unless all of it is on the screen as it stands."""
        part.wait_for()
        box = part.bounding_box()
        inside = all(0 <= box[at] <= SCREEN[size] - box[size] for at, size in (("x", "width"), ("y", "height")))
        assert inside, f"{part} is out of sight: {box}"
        return box

    def click_tab(self, name: str, within: str) -> None:
        self.click(self.page.locator(f"{within} > .tab-nav > button", has_text=name).first)

    def type(self, text: str) -> None:
        """In the place of what is there."""
        self.page.keyboard.press("Control+a")
        self.page.keyboard.type(text)

    def paste_text(self, text: str) -> None:
        self.page.keyboard.press("Control+a")
        self.page.keyboard.insert_text(text)

    def wait_for_focus(self, part: str) -> None:
        self.page.wait_for_function(f"() => document.activeElement.closest('#{part}')")

    def wait_for_thumbnails(self, count: int) -> None:
        self.page.wait_for_function(f"() => document.querySelectorAll('#cd_strip img').length === {count}")

    def wait_for_checkpoint(self, name: str) -> None:
        chosen = "document.querySelector('#setting_sd_model_checkpoint input').value"
        self.page.wait_for_function(f"name => {chosen}.startsWith(name)", arg=name)

    def fields(self) -> dict[str, str]:
        """What is in the form."""
        parts = {"word": "#cd_embedding_1", "preset": "#cd_preset"}
        values = {name: self.page.locator(f"{part} input").first.input_value() for name, part in parts.items()}
        return values | {name: self.value(f"cd_{name}_1") for name in ("class", "pictures")}


@pytest.fixture
def newcomer(empty: WebUI, browser: Any) -> Iterator[Newcomer]:
    opened = Newcomer(browser.new_page(viewport=SCREEN))
    opened.page.set_default_timeout(120_000)
    opened.places = {str(PICTURES): "/home/me/pictures/rocky", str(empty.data): "/home/me/stable-diffusion-webui"}
    opened.page.goto(empty.url)
    opened.page.locator("#txt2img_prompt textarea").wait_for()
    opened.page.wait_for_timeout(3000)  # the host's own parts are filled in
    yield opened
    opened.page.close()


def test_without_a_checkpoint_the_page_says_what_is_missing(empty: WebUI, newcomer: Newcomer) -> None:
    page = newcomer
    page.tab("Deltas", "#txt2img_extra_tabs")
    page.page.wait_for_function(
        "() => getComputedStyle(document.getElementById('txt2img_deltas_cards'), '::before').content"
        ".startsWith('\"No deltas yet')"
    )
    page.open_training()
    page.fill("cd_new_name", "rocky")
    before = (empty.data / "log.txt").read_text()
    page.press("cd_new_create")
    page.wait_for("cd_new_told", "There is no checkpoint yet; install the toy model, or put one into", 60)
    assert "Traceback" not in (empty.data / "log.txt").read_text().removeprefix(before)
    page.unfold("cd_more")
    concepts = page.page.locator("#cd_count input[type=number]")
    concepts.fill("")
    concepts.press_sequentially("2")
    page.page.locator("#cd_pictures_2").wait_for()
    assert "Traceback" not in (empty.data / "log.txt").read_text().removeprefix(before)


def test_the_button_of_every_utility_is_on_the_screen_and_what_comes_of_it_stays_there(newcomer: Newcomer) -> None:
    page = newcomer
    page.tab("Custom Diffusion Utils")
    buttons = {"Pick": "cd_pick", "Compress": "cd_compress", "Blend": "cd_blend", "Merge": "cd_merge",
               "Rename": "cd_rename", "Convert": "cd_convert", "Draw": "cd_reg_draw"}  # fmt: skip
    for name, button in buttons.items():
        page.tab(name, "#cd_utils_tabs")
        page.in_sight(page.page.locator(f"button#{button}"))
    page.press("cd_reg_draw")
    page.wait_for("cd_utils_outcome", "Give a folder for the pictures", 60)
    page.page.set_viewport_size({"width": SCREEN["width"], "height": 500})
    page.page.locator("#cd_reg_draw").first.scroll_into_view_if_needed()
    assert page.page.locator("#cd_utils_outcome .error").bounding_box()["y"] >= 0


def test_an_empty_install_draws_a_new_word_in_eight_clicks(empty: WebUI, newcomer: Newcomer) -> None:
    page = newcomer
    page.click_tab("Train", "#tabs")
    page.click_tab("Custom Diffusion", "#train_tabs")
    page.click(page.page.locator("#cd_train_toy"))
    page.wait_for_focus("cd_new_name")
    page.wait_for_thumbnails(6)
    page.wait_for_checkpoint("custom-diffusion-toy")
    filled = page.fields()
    assert (filled["preset"], filled["class"], filled["pictures"]) == ("toy model: thing", "cat", str(PICTURES))
    page.type("rocky")
    page.click(page.page.locator("#cd_new_create"))
    page.wait_for("cd_new_told", "Created rocky", 120)
    page.click(page.page.locator("#cd_class_1 input"))  # as for pictures of one's own
    page.type("cat")
    page.page.keyboard.press("Tab")
    page.wait_for_focus("cd_pictures_1")
    page.paste_text("/")
    page.wait_for_thumbnails(0)
    page.paste_text(str(PICTURES))
    page.wait_for_thumbnails(6)
    page.page.wait_for_function("() => document.querySelector('#cd_embedding_1 input').value === 'rocky'")
    page.look("webui-train")
    page.click(page.page.locator("#cd_start"))
    page.page.locator("#ti_progress .cd-loss .smooth").wait_for(timeout=900_000)
    page.look("webui-training")
    told = page.wait_for("cd_outcome", "Finished after 300 steps")
    assert str(empty.delta("rocky")) in told and "6 pictures were used" in told
    page.page.locator("#cd_outcome img").wait_for()
    page.page.locator(".progressDiv").wait_for(state="detached")
    page.look("webui-finished")
    page.click(page.page.locator("#cd_send"))
    page.page.wait_for_function("() => document.querySelector('#txt2img_width input').value === '128'")
    page.click(page.page.locator("#txt2img_generate"))
    drawn = page.drawn(empty.data)
    assert page.clicks <= MOST_CLICKS
    assert drawn.size == (128, 128) and 'Delta hashes: "rocky: ' in drawn.info["parameters"]
    assert drawn.info["parameters"].startswith("photo of a rocky cat <delta:rocky:1>")
    page.in_sight(page.page.locator("#txt2img_gallery img").first)
    page.look("webui-txt2img")
    assert not page.errors()


def test_the_new_words_card_shows_it(newcomer: Newcomer) -> None:
    page = newcomer
    page.tab("Deltas", "#txt2img_extra_tabs")
    card = page.page.locator("#txt2img_deltas_cards .card[data-name=rocky]")
    card.locator("img.preview").wait_for()
    page.look("webui-cards")
    card.click()
    assert page.value("txt2img_prompt").strip() == "<delta:rocky:1> rocky cat"
    page.tab("Custom Diffusion Utils")
    page.tab("Inspect", "#cd_utils_tabs")
    page.choose("cd_inspect_name", "rocky")
    page.press("cd_inspect")
    page.wait_for("cd_utils_outcome", "Layers", 60)
    page.look("webui-utils")
    assert not page.errors()
