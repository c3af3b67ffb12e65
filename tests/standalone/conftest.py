"""A small model on the disk and small pictures, for the commands."""

from pathlib import Path

import pytest
from PIL import Image

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
