"""Embedding pictures in both of the WebUI's encodings, written here from their description."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from lib_custom_diffusion import formats
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.reading import read_document

VECTORS = torch.tensor([[0.5, -0.25, 1.0], [2.0, 0.0, -1.5]])
WRITTEN = json.dumps({"string_to_param": {"*": {"TORCHTENSOR": VECTORS.tolist()}}, "name": "cat"})


def in_text(path: Path, written: str = WRITTEN) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("sd-ti-embedding", base64.b64encode(written.encode()).decode())
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)


def in_pixels(path: Path, packed: bytes, height: int = 16) -> None:
    """Four bits of each byte left of the picture and four right of it, scrambled, under decoration."""

    def block(halves: np.ndarray) -> np.ndarray:
        filled = np.resize(halves, -(-len(halves) // (3 * height)) * 3 * height)
        state, scrambled = 0, []
        for number in filled:
            state = (state * 1664525 + 1013904223) % 2**32
            scrambled.append(int(number) ^ (state % 255 & 15) | 0xA0)
        return np.array(scrambled, np.uint8).reshape(height, -1, 3)

    held = np.frombuffer(packed, np.uint8)
    black, middle = np.zeros((height, 1, 3), np.uint8), np.full((height, 20, 3), 77, np.uint8)
    Image.fromarray(np.concatenate([block(held & 15), black, middle, black, block(held >> 4)], 1)).save(path)


def test_an_embedding_in_the_text_is_read_under_its_own_name(tmp_path: Path) -> None:
    in_text(tmp_path / "x.png")
    words = formats.read_words(tmp_path / "x.png")
    assert list(words) == ["<cat>"] and torch.equal(words["<cat>"], VECTORS)


def test_an_embedding_in_the_pixels_is_read(tmp_path: Path) -> None:
    in_pixels(tmp_path / "x.png", zlib.compress(WRITTEN.encode()))
    assert torch.equal(formats.read_words(tmp_path / "x.png")["<cat>"], VECTORS)


@pytest.mark.parametrize(
    "written",
    ["5", "{", '{"a": {"TORCHTENSOR": "x"}}', "[" * 100_000, '{"a": {"TORCHTENSOR": [[1], [1, 2]]}}', '{"\\ud800": 1}'],
)
def test_a_picture_whose_embedding_is_damaged_is_refused(tmp_path: Path, written: str) -> None:
    in_text(tmp_path / "x.png", written)
    with pytest.raises(UserError, match="picture"):
        read_document(tmp_path / "x.png")


def test_pixels_that_unpack_to_much_more_are_refused(tmp_path: Path) -> None:
    in_pixels(tmp_path / "x.png", zlib.compress(b" " * 100_000_000))
    with pytest.raises(UserError, match="damaged"):
        read_document(tmp_path / "x.png")


def test_an_ordinary_picture_holds_no_embedding(tmp_path: Path) -> None:
    for number, color in enumerate((0, 90)):
        Image.new("RGB", (64, 64), (color, color, color)).save(tmp_path / f"{number}.png")
        with pytest.raises(UserError, match="a picture that has no embedding in it"):
            read_document(tmp_path / f"{number}.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "1.png").read_bytes()[:60])
    with pytest.raises(UserError, match="picture"):
        read_document(tmp_path / "torn.png")
