"""The app in a browser in which pages of other sites are open as well: they get nothing."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no browser to test with")

import gradio as gr  # noqa: E402

from attack_page import FLAGS, STRANGER, another_site, answered, handle_of_a_window  # noqa: E402
from lib_custom_diffusion.delta import Delta, Provenance  # noqa: E402
from lib_custom_diffusion.standalone.app.jobs import Jobs  # noqa: E402
from lib_custom_diffusion.standalone.app.server import _server, application  # noqa: E402
from test_ui_browser import Page, address, browser_with, deltas  # noqa: E402, F401 - fixtures

READS = ["/", "/config", "/jobs", "/info", "/file=README.md", "/file=training/prompts.json", "/theme.css"]
DRAW = json.dumps({"fn_index": 0, "data": [], "session_hash": "attack"})
POSTS = [("/run/predict", DRAW), ("/api/predict", DRAW), ("/reset", DRAW), ("/upload", "{}"), ("/queue/push", DRAW)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from browser_with(*FLAGS)


@pytest.mark.parametrize(("name", "path"), [("localhost", "/"), ("127.0.0.1", "/"), (STRANGER, "/sandboxed")])
def test_a_page_of_another_site_gets_nothing(browser: Any, address: str, name: str, path: str) -> None:  # noqa: F811
    with another_site() as port:
        assert answered(browser, f"http://{name}:{port}{path}", address, READS, POSTS) == []


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
def test_a_window_that_another_site_opens_is_out_of_its_hands(browser: Any, address: str, name: str) -> None:  # noqa: F811
    with another_site() as port:
        assert handle_of_a_window(browser, f"http://{name}:{port}/", address) == "closed"


def test_a_name_that_was_turned_to_this_computer_is_not_answered(browser: Any, address: str) -> None:  # noqa: F811
    page = browser.new_page()
    for path in READS:
        visit = page.goto(f"http://{STRANGER}:{urlsplit(address).port}{path}")
        assert (visit.status, "Custom Diffusion" in visit.text()) == (403, False)
    page.close()


HARM = "<img src=x onerror='window.harmed = 1'>"


def test_names_and_metadata_of_files_run_nothing(browser: Any, address: str, deltas: Path) -> None:  # noqa: F811
    delta = Delta.load(deltas / "mug.delta.safetensors")
    delta.embeddings = {HARM: delta.embeddings["<new1>"]}
    delta.provenance = Provenance(HARM, HARM, {HARM: HARM}, 1)
    files = [deltas / f"{name}.delta.safetensors" for name in (HARM, f"it's \"{HARM}", "&lt;b&gt;\u202ecat", "x" * 200)]
    for file in files:
        delta.save(file)
    page = Page(browser.new_page(), address)
    try:
        page.choose("cd_delta", "it's")
        page.page.wait_for_function("document.querySelector('#cd_gen_prompt textarea').value.includes('<delta:it')")
        page.fill("cd_gen_prompt", f"{HARM} <delta:nobody{HARM}:1>")
        page.press("cd_generate")
        page.wait_for("cd_gen_outcome", "nobody")
        page.tab("Utilities")
        page.tab("Inspect", "#cd_utils_tabs")
        page.choose("cd_inspect_name", "it's")
        page.press("cd_inspect")
        assert HARM in page.wait_for("cd_utils_outcome", "Layers")
        page.tab("Compress", "#cd_utils_tabs")
        page.choose("cd_compress_name", "it's")
        page.fill("cd_compress_result", HARM)
        page.page.locator("#cd_compress_weighed input").uncheck()
        page.press("cd_compress")
        page.wait_for("cd_utils_outcome", "Words")
        page.tab("Train")
        page.fill("cd_pictures_1", HARM)
        page.fill("cd_word_1", HARM)
        page.press("cd_ask")
        page.page.wait_for_selector("#cd_estimate .error")
        page.page.wait_for_timeout(1000)  # in which a picture that is not there would have failed
        assert page.page.evaluate("window.harmed") is None and not page.page.locator("img[src=x]").count()
    finally:
        page.page.close()
        for file in files:
            file.unlink()


TOKEN = "secret"


@pytest.fixture
def shared() -> Iterator[tuple[str, list[str]]]:
    """A page for others on http://studio.example, and what is asked of it. Browsers tell it of no request's site."""
    asked: list[str] = []
    with gr.Blocks() as page:
        gr.Button("Draw").click(fn=lambda: asked.append("drawn"), inputs=[], outputs=[])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = _server(application(page, Jobs(threading.Lock()), "studio.example", TOKEN))
        running = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        running.start()
        yield f"http://studio.example:{listener.getsockname()[1]}", asked
        server.should_exit = True
        running.join(60)


@pytest.mark.parametrize(("name", "opaque"), [(STRANGER, []), ("studio.example", ["GET /config as "])])
def test_a_page_of_another_site_gets_nothing_of_a_page_for_others(
    browser: Any, shared: tuple[str, list[str]], name: str, opaque: list[str]
) -> None:
    """In the browser of somebody who has the token. A server at another port of the same computer, to which browsers
    give its cookies, may ask for what it is not told."""
    target, asked = shared
    with another_site() as port:
        got = answered(
            browser, f"http://{name}:{port}/", target, ["/config"], POSTS[:1], before=f"{target}/?token={TOKEN}"
        )
    assert [each for each in got if not each.startswith(tuple(opaque))] == []
    assert asked == []
