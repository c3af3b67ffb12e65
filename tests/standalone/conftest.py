"""A small model on the disk and small pictures, for the commands."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import huggingface_hub.constants
import pytest
from PIL import Image

from hub_stand_in import HubStandIn
from tiny_pipeline import stable_diffusion_2


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in diffusers' layout with the features of Stable Diffusion 2."""
    folder = tmp_path_factory.mktemp("model") / "tiny-v2"
    stable_diffusion_2().save_pretrained(folder)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three pictures of one colour each."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, colour in (("a", "red"), ("b", "green"), ("c", "blue")):
        Image.new("RGB", (80, 64), colour).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """Where results are put instead of the Hub."""
    with HubStandIn("hf_right") as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        huggingface_hub.utils.reset_sessions()  # one made before is offline for good
        monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", server.url, raising=False)
        yield server
    huggingface_hub.utils.reset_sessions()


@pytest.fixture
def benchmark_script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Loads a program of tests/benchmarks by its name, and what is beside it."""
    folder = Path(__file__).parents[1] / "benchmarks"

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    return load
