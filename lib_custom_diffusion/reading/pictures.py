"""Embedding pictures: the WebUI's textual inversion puts an embedding into a PNG, in its text or in its pixels.

The text chunk `sd-ti-embedding` holds JSON in base64, in which a tensor is {"TORCHTENSOR": rows}. In pixels the JSON is
deflated; of each byte the lower four bits are in a block of columns on the left and the upper four in one on the right,
each parted from the picture by a black column. A block has four bits a channel, scrambled by a fixed sequence; what is
in the upper four of a channel is decoration.
"""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from ..errors import UserError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_LONGEST = 8_000_000  # bytes of JSON; 30 vectors of SDXL take two million
_LARGEST = 8_000_000  # pixels
_FACTOR, _SUMMAND = 1664525, 1013904223
_TEXT = "sd-ti-embedding"


def read_picture(path: Path) -> tuple[str, dict[str, Any]]:
    """The embedding's name and its content, as its `.pt` would have it. Raises UserError for a picture without one."""
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            if picture.width * picture.height > _LARGEST:
                raise UserError("it is a picture too large to hold an embedding")
            told = picture.info.get(_TEXT)
            written = base64.b64decode(told) if told else _in_pixels(np.asarray(picture.convert("RGB")))
    except (UserError, OSError):
        raise
    except Exception as error:
        raise UserError("it is a picture that is damaged, or holds no embedding") from error
    return _content(written, path.stem)


def _content(written: bytes | None, name: str) -> tuple[str, dict[str, Any]]:
    if written is None:
        raise UserError("it is a picture that has no embedding in it")
    try:
        if len(written) > _LONGEST:
            raise ValueError("too long")
        content = json.loads(written, object_hook=_with_tensors)
        if not isinstance(content, dict):
            raise ValueError("no dict")
        named = content.get("name", name)
        json.dumps(list(content), ensure_ascii=False).encode()
        return (named if isinstance(named, str) and named.isprintable() and named.strip() else name), content
    except (ValueError, TypeError, RecursionError, RuntimeError, OverflowError) as error:
        raise UserError("it is an embedding picture whose embedding is damaged") from error


def _with_tensors(held: dict[str, Any]) -> Any:
    rows = held.get("TORCHTENSOR")
    return held if rows is None else torch.from_numpy(np.array(rows, dtype=np.float32))


def _in_pixels(pixels: npt.NDArray[np.uint8]) -> bytes | None:
    """The JSON in an RGB picture (height, width, 3); None if there is none."""
    seen = (pixels > 0).all(axis=2)
    if not seen.any():
        return None
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    low = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] & 0x0F
    black = np.flatnonzero(low.sum(axis=(0, 2)) == 0)
    if len(black) < 2:
        return None
    left, right = low[:, : black[0]], low[:, black[-1] + 1 :]
    if left.shape != right.shape or left.size == 0:
        return None
    packed = (_unscrambled(right) << 4 | _unscrambled(left)).tobytes()
    try:
        return zlib.decompressobj().decompress(packed, _LONGEST + 1)
    except zlib.error:
        return None


def _unscrambled(block: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Exclusive or with the numbers of the generator x ← a x + c mod 2³² from 0, mod 255; see `_FACTOR`."""
    states = np.array([_SUMMAND], np.uint32)
    factor, summand = np.uint32(_FACTOR), np.uint32(_SUMMAND)  # of as many steps as there are states, in one
    with np.errstate(over="ignore"):
        while len(states) < block.size:
            states = np.concatenate([states, states * factor + summand])
            factor, summand = factor * factor, factor * summand + summand
    scrambled = (states[: block.size] % 255).astype(np.uint8) & 0x0F
    return np.bitwise_xor(block, scrambled.reshape(block.shape))
