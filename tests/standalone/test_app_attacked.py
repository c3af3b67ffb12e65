"""The app in a browser in which pages of other sites are open as well: they get nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no browser to test with")

from attack_page import FLAGS, STRANGER, another_site, answered, handle_of_a_window  # noqa: E402
from test_ui_browser import address, browser_with, deltas  # noqa: E402, F401 - fixtures

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
