"""A real WebUI and a real browser: WEBUI_DIR=… pytest tests/webui_e2e

WEBUI_DIR       a WebUI v1.10.1 with what it needs, or reForge for test_reforge.py; nothing is written into it.
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
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops, ImageDraw, ImageStat
from safetensors.torch import load_file, save_file

import attack_page
from lib_custom_diffusion.tokens import embedding_sdxl

ROOT = Path(__file__).resolve().parents[2]
TOY = ROOT / "lib_custom_diffusion" / "standalone" / "toy"
HERE = Path(__file__).resolve().parent
FLAGS = ["--use-cpu", "all", "--no-half", "--skip-torch-cuda-test", "--skip-prepare-environment", "--skip-install",
         "--api", "--no-download-sd-model", "--disable-console-progressbars"]  # fmt: skip
OF_REFORGE = ["--always-cpu", "--all-in-fp32"]
START_SECONDS = 1800
PROMPT = "a cat on a red background"
TABLES_OF_XL = (
    "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight",
    "conditioner.embedders.1.model.token_embedding.weight",
)


def is_reforge() -> bool:
    return Path(os.environ.get("WEBUI_DIR", ""), "modules_forge").is_dir()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "WEBUI_DIR" not in os.environ:
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="WEBUI_DIR is not set"))


class WebUI:
    """A running WebUI with the extension and the toy, all its data in a folder of the test's own.

    There is an extension more, `failing`, which fails on request (see `fail`). empty: without the toy, as installed.
    """

    def __init__(self, data: Path, *flags: str, empty: bool = False) -> None:
        self.data, self.flags, self.empty = data, flags, empty
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        home = Path(os.environ["WEBUI_DIR"])
        checkpoints = self.data / "models" / "Stable-diffusion"
        for folder in (checkpoints, self.data / "models" / "hypernetworks", self.data / "models" / "Lora"):
            folder.mkdir(parents=True)
        (self.data / "embeddings").mkdir()
        (self.data / "extensions").mkdir()
        (self.data / "extensions" / "custom-diffusion").symlink_to(ROOT)
        flags, extra = [*FLAGS, *self.flags], "failing"
        if is_reforge():
            flags, extra = [*flags, *OF_REFORGE], "toy_in_reforge"
            (self.data / "config.json").write_text('{"show_progress_type": "Approx cheap"}')  # others are downloaded
        shutil.copytree(HERE / extra, self.data / "extensions" / extra)
        if not self.empty:
            shutil.copy(TOY / "toy.safetensors", checkpoints / "toy.safetensors")
            config = (TOY / "toy.yaml").read_text().replace("config/tokenizer", str(TOY / "config" / "tokenizer"))
            (checkpoints / "toy.yaml").write_text(config)
        python = os.environ.get("WEBUI_PYTHON", str(home / "venv" / "bin" / "python"))
        self.log = (self.data / "log.txt").open("w")
        self.process = subprocess.Popen(
            [python, "launch.py", *flags, "--data-dir", str(self.data), "--port", str(self.port)],
            cwd=home, stdout=self.log, stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        self.wait_until_ready()

    def wait_until_ready(self, starts: int = 1) -> None:
        """Return when it has started so many times. Raises RuntimeError if it does not start.

        Its log tells: a request that comes while it starts can make it fail.
        """
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            log = (self.data / "log.txt").read_text(errors="replace")
            if log.count("Startup time:") >= starts:
                return
            time.sleep(0.5)
        raise RuntimeError(f"the WebUI did not start:\n{log[-4000:]}")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        self.log.close()

    def load_toy_xl(self) -> None:
        """Put the toy in SDXL's layout among the checkpoints, and choose it."""
        folder = self.data / "models" / "Stable-diffusion"
        shutil.copy(TOY / "toy-xl.safetensors", folder)
        text = (TOY / "toy-xl.yaml").read_text()
        text = text.replace("config-xl/tokenizer", str(TOY / "config-xl" / "tokenizer"))
        (folder / "toy-xl.yaml").write_text(text)
        self.post("/sdapi/v1/refresh-checkpoints")
        # The host's own way of showing a picture on the way would download a model for SDXL.
        self.post("/sdapi/v1/options", show_progress_type="Approx cheap", sd_model_checkpoint="toy-xl.safetensors")

    def make_word_of_toy_xl(self, word: str, like: str) -> Path:
        """Write a word's file that has a known word's vectors in both text encoders, and have it read."""
        tables = load_file(TOY / "toy-xl.safetensors")
        numbers = json.loads((TOY / "config-xl" / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
        row = slice(numbers[f"{like}</w>"], numbers[f"{like}</w>"] + 1)
        file = self.data / "embeddings" / f"{word}.safetensors"
        file.write_bytes(embedding_sdxl([tables[name][row].float() for name in TABLES_OF_XL], 0))
        os.utime(file.parent)
        self.post("/sdapi/v1/refresh-embeddings")
        return file

    def get(self, path: str) -> Any:
        return self._ask(urllib.request.Request(self.url + path))

    def post(self, path: str, **body: Any) -> Any:
        """The answer; raises urllib.error.HTTPError for a number of 400 and more."""
        content, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        return self._ask(urllib.request.Request(self.url + path, content, headers))

    def _ask(self, request: urllib.request.Request) -> Any:
        with urllib.request.urlopen(request, timeout=1800) as answer:
            return json.loads(answer.read())

    def images(self, prompt: str, route: str = "txt2img", **settings: Any) -> tuple[list[Image.Image], str]:
        """Pictures of 4 steps, without their grid, and the infotext of the first."""
        asked = {"steps": 4, "width": 128, "height": 128, "seed": 7, "cfg_scale": 4, "sampler_name": "Euler"}
        answer = self.post(f"/sdapi/v1/{route}", prompt=prompt, **{**asked, **settings})
        info = json.loads(answer["info"])
        pictures = [Image.open(io.BytesIO(base64.b64decode(each))) for each in answer["images"]]
        return pictures[info["index_of_first_image"] :], info["infotexts"][info["index_of_first_image"]]

    def picture(self, prompt: str, **settings: Any) -> tuple[str, str]:
        """A fingerprint of the pixels of a picture, and its infotext."""
        pictures, infotext = self.images(prompt, **settings)
        return fingerprint(pictures[0]), infotext

    def train(self, name: str, pictures: Path, **settings: Any) -> Any:
        """Train the word `thing` through the API, a few steps; the answer."""
        asked = {"max_train_steps": 3, "train_batch_size": 1, "overwrite": True, "name": name, **settings}
        return self.ask_to_train("thing", pictures, **asked)

    def ask_to_train(self, word: str, pictures: Path, **settings: Any) -> Any:
        """Train a word through the API; the answer."""
        concept = {"instance_data_dir": str(pictures), "instance_prompt": "photo of a [name]", "class_prompt": "house"}
        asked = {"modifier_token": [word], "concepts": [concept], **settings}
        return self.post("/sdapi/v1/train/custom-diffusion", **asked)

    def delta(self, name: str) -> Path:
        return self.data / "models" / "deltas" / f"{name}.delta.safetensors"

    def fail(self, how: str) -> None:
        """Have the model fail once, at its third step from now: "error" or "out of memory"."""
        (self.data / "fail.txt").write_text(how)


def fingerprint(picture: Image.Image) -> str:
    return hashlib.sha256(picture.convert("RGB").tobytes()).hexdigest()


def difference(one: Image.Image, other: Image.Image) -> tuple[int, float]:
    """The largest and the mean difference of two pictures' pixels, in levels of 255."""
    apart = ImageChops.difference(one.convert("RGB"), other.convert("RGB"))
    return max(high for _, high in apart.getextrema()), sum(ImageStat.Stat(apart).mean) / 3


@pytest.fixture(scope="session")
def webui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    if not (TOY / "toy.safetensors").is_file():
        pytest.skip(f"the toy model is not in {TOY}")
    running = WebUI(tmp_path_factory.mktemp("webui"))
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five drawings of one thing that the toy has never seen."""
    folder = tmp_path_factory.mktemp("pictures")
    for index, color in enumerate(("red", "blue", "green", "yellow", "white")):
        drawing = Image.new("RGB", (128, 128), color)
        ImageDraw.Draw(drawing).polygon([(64, 12), (112, 100), (16, 100)], fill="purple", outline="black", width=4)
        drawing.save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def untouched(webui: WebUI) -> str:
    """The picture that the model makes before anything was done with it."""
    return webui.picture(PROMPT)[0]


@pytest.fixture(scope="session")
def thing(webui: WebUI, pictures: Path, untouched: str) -> Path:
    """The delta `thing`, trained through the API for a word of the host's own making."""
    word = {"name": "thing", "num_vectors_per_token": 1, "overwrite_old": True, "init_text": "house"}
    webui.post("/sdapi/v1/create/embedding", **word)
    rates = {"learning_rate": "1e-3", "embedding_learning_rate": "1e-2"}
    webui.train("thing", pictures, max_train_steps=10, train_batch_size=2, **rates)
    return webui.delta("thing")


@pytest.fixture(scope="session")
def other_checkpoint(webui: WebUI) -> str:
    """The name of a second checkpoint, which differs a little from the toy."""
    folder = webui.data / "models" / "Stable-diffusion"
    generator = torch.Generator().manual_seed(1)
    tensors = load_file(folder / "toy.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("attn2.to_k.weight"):
            tensors[name] = tensor + 0.3 * tensor.std() * torch.randn(tensor.shape, generator=generator)
    save_file(tensors, folder / "other.safetensors")
    shutil.copy(folder / "toy.yaml", folder / "other.yaml")
    webui.post("/sdapi/v1/refresh-checkpoints")
    return "other.safetensors"


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
        whole = re.compile(rf"(^|\s){re.escape(option)}\s*$")  # "cup", and not "cup-small"
        self.page.locator(f"#{part} ul.options li", has_text=whole).first.click()
        self.page.locator(f"#{part} input").first.press("Tab")  # a list of several stays open, over what is below

    def press(self, part: str) -> None:
        self.page.locator(f"#{part}").first.click()

    def unfold(self, part: str) -> None:
        if not self.page.locator(f"#{part} .label-wrap.open").count():
            self.page.locator(f"#{part} .label-wrap").first.click()

    def wait_until_loaded(self) -> None:
        self.page.locator("#txt2img_prompt textarea").wait_for()
        self.page.locator("#txt2img_checkpoints_cards .card").first.wait_for(state="attached", timeout=120_000)

    def open_training(self) -> None:
        self.tab("Train")
        self.tab("Custom Diffusion", "#train_tabs")

    def fill_form(self, word: str, pictures: Path, name: str, steps: int) -> None:
        """Fill in the training form, previews every 20 steps."""
        self.open_training()
        self.choose("cd_embedding_1", word)
        self.fill("cd_class_1", "house")
        self.fill("cd_pictures_1", pictures)
        self.unfold("cd_more")
        self.page.locator("#cd_overwrite input").check()  # the word may have been trained before
        self.fill("cd_name", name)
        self.fill("cd_steps", steps)
        self.fill("cd_preview_every", 20)

    def value(self, part: str) -> str:
        return self.page.locator(f"#{part} textarea, #{part} input").first.input_value()

    def wait_for(self, part: str, text: str, seconds: int = 900) -> str:
        """What the part says once it has the text."""
        self.page.wait_for_function(
            "([id, text]) => document.getElementById(id)?.innerText.includes(text)", arg=[part, text],
            timeout=1000 * seconds,
        )  # fmt: skip
        return self.page.locator(f"#{part}").first.inner_text()

    def cards(self) -> Any:
        """The cards of the page "Deltas" in txt2img that are not filtered out."""
        return self.page.locator("#txt2img_deltas_cards .card:not(.hidden)")

    def paste(self, infotext: str) -> None:
        """Read generation parameters from the prompt, as a person does with an old picture's."""
        self.fill("txt2img_prompt", infotext)
        self.page.locator("#txt2img_tools #paste").click()
        self.page.wait_for_function(
            "() => !document.querySelector('#txt2img_prompt textarea').value.includes('Steps: ')"
        )

    def draw(self, data: Path) -> Image.Image:
        """Press Generate; the picture that the WebUI has saved."""
        before = set(data.glob("outputs/txt2img-images/*/*.png"))
        self.press("txt2img_generate")
        return self.drawn(data, before)

    def drawn(self, data: Path, before: Collection[Path] = ()) -> Image.Image:
        """The picture that the WebUI saves besides those that were there, once it is on the page."""
        while not (saved := set(data.glob("outputs/txt2img-images/*/*.png")).difference(before)):
            self.page.wait_for_timeout(200)
        self.page.locator("#txt2img_interrupt").wait_for(state="hidden")
        return Image.open(saved.pop())

    def errors(self) -> list[str]:
        """What stands on the page of errors: sentences, toasts, and "Error" over a part, with the part's id.

        The server gives a page 5 seconds to answer; on a busy machine one may miss them ("Connection errored out").
        """
        return self.page.evaluate(
            "() => [...document.querySelectorAll('.error, .toast-body')].filter((each) => each.offsetParent)"
            ".map((each) => `${each.innerText.trim()} (${each.closest('[id]')?.id})`)"
        )

    def look(self, name: str) -> None:
        folder = os.environ.get("SCREENSHOTS")
        if folder:
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    flags = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        *attack_page.FLAGS,
    ]
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=flags)
        yield started
        started.close()


@pytest.fixture
def page(webui: WebUI, browser: Any) -> Iterator[Page]:
    from playwright.sync_api import TimeoutError

    opened = Page(browser.new_page(viewport={"width": 1400, "height": 1100}))
    opened.page.set_default_timeout(120_000)
    for _ in range(5):
        opened.page.goto(webui.url)
        try:
            opened.wait_until_loaded()
            break
        except TimeoutError:  # on a busy machine the page may miss the 5 seconds that its server gives it
            continue
    yield opened
    opened.page.close()
