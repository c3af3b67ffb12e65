"""ComfyUI itself, started and asked for pictures by its API, with the node in a workflow. Needs COMFYUI_DIR."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops

from lib_custom_diffusion.delta import Delta

pytestmark = pytest.mark.skipif("COMFYUI_DIR" not in os.environ, reason="COMFYUI_DIR names no ComfyUI")

ROOT = Path(__file__).parents[2]
# The program knows models by their shapes, and the toy's are its own.
TOY_LOADER = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]

class ToyLoader:
    INPUT_TYPES = classmethod(lambda cls: {{"required": {{}}}})
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    FUNCTION = "load"

    def load(self):
        import toy_in_comfyui
        return toy_in_comfyui.load("")

NODE_CLASS_MAPPINGS = {{"ToyLoader": ToyLoader}}
"""


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Asks the running program for a path of its API, as JSON, and sends JSON if it is given."""
    home = tmp_path_factory.mktemp("comfyui")
    nodes = home / "custom_nodes"
    nodes.mkdir()
    (nodes / "custom_diffusion").symlink_to(ROOT)
    (nodes / "toy_loader.py").write_text(TOY_LOADER)
    deltas = home / "models" / "deltas"
    deltas.mkdir(parents=True)
    cat().save(deltas / "cat.delta.safetensors")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--cpu", "--port", str(port), "--base-directory", str(home), "--disable-auto-launch", "--force-fp32"]
    log = home / "log.txt"

    def asked(path: str, content: object = None) -> Any:
        data = None if content is None else json.dumps(content).encode()
        with urllib.request.urlopen(
            urllib.request.Request(f"http://127.0.0.1:{port}{path}", data), timeout=60
        ) as reply:
            found = reply.read()
        return json.loads(found) if reply.headers.get_content_type() == "application/json" else found

    with log.open("wb") as output:
        program = subprocess.Popen(
            [sys.executable, "main.py", *flags], cwd=os.environ["COMFYUI_DIR"], stdout=output, stderr=output
        )
    try:
        for _ in range(600):
            try:
                asked("/system_stats")
                break
            except (urllib.error.URLError, ConnectionError):
                assert program.poll() is None, log.read_text()
                time.sleep(0.2)
        yield asked
    finally:
        program.terminate()
        program.wait()


def cat() -> Delta:
    """A delta of the toy's shapes that visibly changes what it draws."""
    from lib_custom_diffusion.attention import projections
    from lib_custom_diffusion.standalone import toy

    torch.manual_seed(0)
    layers = projections(toy.load().unet)
    return Delta({key: torch.randn(layer.shape) / 10 for key, layer in layers.items()}, {"<new1>": torch.randn(1, 128)})


def drawn(ask: Callable[..., Any], prompt: str, strength: float | None) -> Image.Image:
    """A picture of a workflow with the node, or without it."""
    node = {"model": ["1", 0], "clip": ["1", 1], "delta_name": "cat.delta.safetensors", "strength": strength}
    source = "1" if strength is None else "2"

    def text(words: str) -> dict[str, object]:
        return {"class_type": "CLIPTextEncode", "inputs": {"clip": [source, 1], "text": words}}

    sampling = {
        "model": [source, 0], "positive": ["3", 0], "negative": ["4", 0], "latent_image": ["5", 0], "seed": 1,
        "steps": 3, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
    }  # fmt: skip
    workflow = {
        "1": {"class_type": "ToyLoader", "inputs": {}},
        "2": {"class_type": "CustomDiffusionDeltaLoader", "inputs": node},
        "3": text(prompt), "4": text(""),
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "6": {"class_type": "KSampler", "inputs": sampling},
        "7": {"class_type": "VAEDecode", "inputs": {"samples": ["6", 0], "vae": ["1", 2]}},
        "8": {"class_type": "SaveImage", "inputs": {"images": ["7", 0], "filename_prefix": "cat"}},
    }  # fmt: skip
    if strength is None:
        del workflow["2"]
    number = ask("/prompt", {"prompt": workflow})["prompt_id"]
    for _ in range(600):
        done = ask(f"/history/{number}").get(number)
        if done:
            assert done["status"]["status_str"] == "success", json.dumps(done["status"])
            [picture] = done["outputs"]["8"]["images"]
            return Image.open(io.BytesIO(ask(f"/view?filename={picture['filename']}&type=output"))).convert("RGB")
        time.sleep(0.2)
    raise TimeoutError(number)


def difference(one: Image.Image, other: Image.Image) -> int:
    return max(most for _, most in ImageChops.difference(one, other).getextrema())


def test_the_node_and_the_delta_are_offered(ask: Callable[..., Any]) -> None:
    node = ask("/object_info/CustomDiffusionDeltaLoader")["CustomDiffusionDeltaLoader"]
    assert node["input"]["required"]["delta_name"][0] == ["cat.delta.safetensors"]
    assert node["display_name"] == "Load Delta (Custom Diffusion)"


def test_the_node_acts_by_its_strength_and_leaves_nothing_behind(ask: Callable[..., Any]) -> None:
    prompt = "a cat on a red background"
    before, full, after = (drawn(ask, prompt, strength) for strength in (None, 1.0, None))
    assert difference(before, full) > 32 and difference(before, after) == 0
    assert difference(before, drawn(ask, prompt, 0.0)) == 0


def test_its_word_changes_the_picture(ask: Callable[..., Any]) -> None:
    with_word, as_letters = (drawn(ask, "a <new1> cat", strength) for strength in (0.0, None))
    assert difference(with_word, as_letters) > 8
    assert difference(with_word, drawn(ask, "a embedding:new1 cat", 0.0)) == 0
