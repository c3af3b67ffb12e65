"""A real WebUI and a real browser: WEBUI_DIR=… pytest tests/webui_e2e

WEBUI_DIR       a WebUI v1.10.1 with what it needs; nothing is written into it.
WEBUI_PYTHON    the Python to run it with; otherwise WEBUI_DIR/venv/bin/python.
CHROMIUM        the browser; otherwise /usr/bin/chromium.
SCREENSHOTS     a folder for pictures of the page, if wanted.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
TOY = ROOT / "lib_custom_diffusion" / "standalone" / "toy"
FLAGS = ["--use-cpu", "all", "--no-half", "--skip-torch-cuda-test", "--skip-prepare-environment", "--skip-install",
         "--api", "--no-download-sd-model", "--disable-console-progressbars"]  # fmt: skip
START_SECONDS = 600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "WEBUI_DIR" not in os.environ:
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="WEBUI_DIR is not set"))


class WebUI:
    """A running WebUI with the extension and the toy, all its data in a folder of the test's own."""

    def __init__(self, data: Path) -> None:
        self.data = data
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        home = Path(os.environ["WEBUI_DIR"])
        checkpoints = self.data / "models" / "Stable-diffusion"
        checkpoints.mkdir(parents=True)
        (self.data / "extensions").mkdir()
        (self.data / "extensions" / "custom-diffusion").symlink_to(ROOT)
        shutil.copy(TOY / "toy.safetensors", checkpoints / "toy.safetensors")
        config = (TOY / "toy.yaml").read_text().replace("config/tokenizer", str(TOY / "config" / "tokenizer"))
        (checkpoints / "toy.yaml").write_text(config)
        python = os.environ.get("WEBUI_PYTHON", str(home / "venv" / "bin" / "python"))
        self.log = (self.data / "log.txt").open("w")
        self.process = subprocess.Popen(
            [python, "launch.py", *FLAGS, "--data-dir", str(self.data), "--port", str(self.port)],
            cwd=home, stdout=self.log, stderr=subprocess.STDOUT, env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                self.get("/sdapi/v1/sd-models")
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(1)
        raise RuntimeError(f"the WebUI did not start:\n{(self.data / 'log.txt').read_text()[-4000:]}")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        self.log.close()

    def get(self, path: str) -> Any:
        return self._ask(urllib.request.Request(self.url + path))

    def post(self, path: str, **body: Any) -> Any:
        """The answer; raises urllib.error.HTTPError for a number of 400 and more."""
        content, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        return self._ask(urllib.request.Request(self.url + path, content, headers))

    def _ask(self, request: urllib.request.Request) -> Any:
        with urllib.request.urlopen(request, timeout=1800) as answer:
            return json.loads(answer.read())

    def picture(self, prompt: str, **settings: Any) -> tuple[str, str]:
        """A fingerprint of the pixels of a picture of 4 steps, and its infotext."""
        asked = {
            "steps": 4,
            "width": 128,
            "height": 128,
            "seed": 7,
            "cfg_scale": 4,
            "sampler_name": "Euler",
            **settings,
        }
        answer = self.post("/sdapi/v1/txt2img", prompt=prompt, **asked)
        pixels = Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))).tobytes()
        return hashlib.sha256(pixels).hexdigest(), json.loads(answer["info"])["infotexts"][0]


@pytest.fixture(scope="session")
def webui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    if not (TOY / "toy.safetensors").is_file():
        pytest.skip(f"the toy model is not in {TOY}")
    running = WebUI(tmp_path_factory.mktemp("webui"))
    running.start()
    yield running
    running.stop()


class Page:
    """The WebUI in a browser, by the ids of its parts."""

    def __init__(self, page: Any) -> None:
        self.page = page

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

    def unfold(self, part: str) -> None:
        self.page.locator(f"#{part} .label-wrap").first.click()

    def value(self, part: str) -> str:
        return self.page.locator(f"#{part} textarea").first.input_value()

    def wait_for(self, part: str, text: str, seconds: int = 900) -> str:
        """What the part says once it has the text."""
        self.page.wait_for_function(
            "([id, text]) => document.getElementById(id)?.innerText.includes(text)", arg=[part, text],
            timeout=1000 * seconds,
        )  # fmt: skip
        return self.page.locator(f"#{part}").first.inner_text()

    def look(self, name: str) -> None:
        folder = os.environ.get("SCREENSHOTS")
        if folder:
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=flags)
        yield started
        started.close()


@pytest.fixture
def page(webui: WebUI, browser: Any) -> Iterator[Page]:
    opened = browser.new_page(viewport={"width": 1400, "height": 1100})
    opened.set_default_timeout(120_000)
    opened.goto(webui.url)
    opened.wait_for_selector("#txt2img_prompt textarea")
    yield Page(opened)
    opened.close()
