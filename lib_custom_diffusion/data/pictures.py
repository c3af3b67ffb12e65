"""Pictures of a folder: found, decoded, and drawn onto the canvas that the model sees."""

from __future__ import annotations

import errno
import importlib
import logging
import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError, features
from torch import Tensor
from torch.nn import functional as F

from ..backend import LATENT_CELL, Sizes
from ..errors import UserError
from ..storage import is_special, printable

logger = logging.getLogger(__name__)

_MOST_REPEATS = 100
"""Of a picture in one of several folders with repeats."""
_READ_BY_PILLOW = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".tga",
    ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".psd",
)  # fmt: skip
_PLUG_INS = {
    ".heic": "pillow-heif", ".heif": "pillow-heif", ".hif": "pillow-heif", ".avif": "pillow-avif-plugin",
    ".jxl": "pillow-jxl-plugin",
}  # fmt: skip
"""Kinds of pictures that Pillow reads with a plug-in, and what has it."""
_NOT_READ = (
    ".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".svg", ".exr", ".hdr", ".xcf", ".kra", ".ico",
    ".pcx", ".eps", ".ai", ".pdf", ".dds", ".mp4", ".mov", ".webm",
)  # fmt: skip
"""Kinds of pictures, of cameras' raw data and of films that are not read here."""
_MODULES = {"pillow-heif": "pillow_heif", "pillow-avif-plugin": "pillow_avif", "pillow-jxl-plugin": "pillow_jxl"}
_OF_SEVERAL = ("GIF", "WEBP", "PNG", "AVIF", "TIFF")
"""Pillow's words for kinds of files that may hold several pictures; it counts the layers of others, and thumbnails."""
_NAMED = 3  # files, before the rest is counted
_REPEATED = re.compile(r"(\d+)_.")


_ORIENTATION, _LYING = 0x0112, (5, 6, 7, 8)
"""EXIF's tag, and its values for pictures that lie on their side."""


class UnusablePicture(Exception):
    """A picture that nothing can be learned from; the message says why, in one line."""


@dataclass(frozen=True)
class Picture:
    """A decoded picture, upright: its colors (RGB), and its alpha (L) where that is to weigh the loss."""

    colors: Image.Image
    weight: Image.Image | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.colors.size


@dataclass(frozen=True)
class Placement:
    """Where a picture goes: its box `source` fills the canvas's box `target`, each left, top, right, bottom in pixels.

    flip: whether the whole canvas is then mirrored.
    """

    source: tuple[float, float, float, float]
    target: tuple[int, int, int, int]
    flip: bool = False


@cache
def suffixes() -> tuple[str, ...]:
    """How the names of pictures end that can be read here, plug-ins included that are installed."""
    for name in _MODULES.values():
        with suppress(ImportError):
            plug_in = importlib.import_module(name)
            if hasattr(plug_in, "register_heif_opener"):
                plug_in.register_heif_opener()
    Image.init()
    known = Image.registered_extensions()
    avif = ".avif" in known and (features.check("avif") or "pillow_avif" in sys.modules)
    return (*_READ_BY_PILLOW, *(each for each in _PLUG_INS if each in known and (each != ".avif" or avif)))


def is_picture(path: Path) -> bool:
    """Whether a file is a picture by its name, and neither a hidden one nor a pipe, which would be waited for."""
    return path.suffix.lower() in suffixes() and not path.name.startswith(".") and not is_special(path)


def find_pictures(folder: Path) -> list[Path]:
    """The pictures directly in a folder, in the order of their names; hidden files are left out.

    A folder with none may have folders as kohya's scripts want them, 10_NAME with pictures to be repeated ten times as
    often as those of 1_NAME. Then it is theirs, each as often as is in proportion.

    Raises UserError when the folder is missing, cannot be read or has no pictures. Whether they decode shows later.
    """
    inside = _listed(folder)
    found = [path for path in inside if is_picture(path)]
    if found:
        return found
    folders = [path for path in inside if path.is_dir() and not path.name.startswith(".")]
    repeated = {each: int(match[1]) for each in folders if (match := _REPEATED.match(each.name)) and int(match[1])}
    repeated = {each: times for each, times in repeated.items() if any(map(is_picture, _listed(each)))}
    if repeated:
        fewest = math.gcd(*repeated.values())
        return [
            path
            for each, times in repeated.items()
            for path in _listed(each)
            if is_picture(path)
            for _ in range(min(times // fewest, _MOST_REPEATS))
        ]
    unread = unread_pictures(folder)
    if unread:
        path, reason = next(iter(unread.items()))
        raise UserError(f"{folder} has no pictures that can be read here: {path.name} is {reason}")
    elsewhere = next((each for each in folders if any(map(is_picture, _listed(each)))), None)
    if elsewhere is not None:
        raise UserError(f"{folder} has no pictures, but the folder {elsewhere} in it has; give that one")
    raise UserError(f"{folder} has no pictures; put some there (.png, .jpg, .webp and most others)")


def folders_passed_over(folder: Path) -> list[Path]:
    """The folders with pictures in a folder that has pictures itself, of which `find_pictures` takes those alone."""
    inside = _listed(folder)
    if not any(map(is_picture, inside)):
        return []
    folders = [path for path in inside if path.is_dir() and not path.name.startswith(".")]
    return [path for path in folders if any(map(is_picture, _listed(path)))]


def unread_pictures(folder: Path) -> dict[Path, str]:
    """The pictures in a folder that are not read here, or need a plug-in of Pillow, and what is to do."""
    found = {path: why_unread(path) for path in _listed(folder) if not path.name.startswith(".")}
    return {path: reason for path, reason in found.items() if reason}


def why_unread(path: Path) -> str:
    """Why a picture is not read here, by the name of its file; "" for one that is read, and for what is no picture."""
    kind = path.suffix.lower()
    if is_picture(path):
        return ""
    if kind in _PLUG_INS:
        return f"a picture that needs pip install {_PLUG_INS[kind]}, or to be saved as JPEG"
    return "in a format that cannot be read here; save it as JPEG" if kind in _NOT_READ else ""


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir(), key=lambda path: path.name)
    except FileNotFoundError as error:
        raise UserError(f"there is no folder {folder}") from error
    except NotADirectoryError as error:
        raise UserError(f"{folder} is a file; give the folder that it is in") from error
    except OSError as error:
        raise UserError(f"{folder} cannot be read as a folder of pictures: {error.strerror}") from error


def _opened(path: Path) -> Image.Image:
    """A picture of which the header is read. Raises OSError also for a pipe or a device, which a list may name."""
    if is_special(path):
        raise OSError(errno.EINVAL, "it is not a regular file")
    return Image.open(path)


def load_picture(path: Path, alpha_is_weight: bool = False) -> Picture:
    """A picture as it is meant to be seen: rotated as its EXIF says, transparent parts on white.

    With `alpha_is_weight` the alpha channel is the loss weight and nothing else: the colors under it stay as they are.
    Raises UnusablePicture.
    """
    try:
        with _opened(path) as opened:
            upright = ImageOps.exif_transpose(opened) or opened  # never None, which some versions' types allow
            if upright.mode == "F":
                raise ValueError("it is in floating point without a known white level; save it as PNG")
            if upright.mode.startswith("I"):  # 16-bit gray, which convert("RGB") would cut off at 255
                upright = Image.fromarray((np.asarray(upright, dtype=np.float64) / 257).clip(0, 255).astype(np.uint8))
            if "transparency" not in upright.info and not {"A", "a"} & set(upright.getbands()):
                return Picture(upright.convert("RGB"))
            colors = upright.convert("RGBA")
    except FileNotFoundError as error:
        raise UnusablePicture("there is no such file") from error
    except UnidentifiedImageError as error:
        raise UnusablePicture("it is not a picture that can be read") from error
    except Image.DecompressionBombError as error:
        raise UnusablePicture("it has too many pixels, as broken pictures have; save it smaller") from error
    except Exception as error:  # from damaged files Pillow raises nearly everything
        told = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UnusablePicture(f"it cannot be read: {told}") from error
    if not alpha_is_weight:
        return Picture(Image.alpha_composite(Image.new("RGBA", colors.size, "white"), colors).convert("RGB"))
    weight = colors.getchannel("A")
    if weight.getbbox() is None:
        raise UnusablePicture("it is completely transparent")
    return Picture(colors.convert("RGB"), weight)


def picture_size(path: Path) -> tuple[int, int] | None:
    """Width and height of an upright picture, from its header; None if it cannot be read."""
    try:
        with _opened(path) as opened:
            turned = opened.getexif().get(_ORIENTATION, 1) in _LYING
            return (opened.height, opened.width) if turned else opened.size
    except Exception:  # from damaged files Pillow raises nearly everything
        return None


def is_moving(path: Path) -> bool:
    """Whether a file holds several pictures, as animations and scanned pages do: the first of them is read."""
    try:
        with _opened(path) as opened:
            return opened.format in _OF_SEVERAL and getattr(opened, "n_frames", 1) > 1
    except Exception:  # from damaged files Pillow raises nearly everything
        return False


def moving_text(names: Sequence[str], when: str = "was") -> str:
    """What is said of the files of several pictures among those that are used, or "will be"; "" for none."""
    if not names:
        return ""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    has, named = "has" if len(names) == 1 else "have", ", ".join(map(printable, names[:_NAMED]))
    return f"{named}{more} {has} several pictures, as animations do; the first {when} used."


def load_pictures(
    paths: Iterable[Path], alpha_is_weight: bool = False, left_out: dict[Path, str] | None = None
) -> Iterator[tuple[int, Path, Picture]]:
    """The pictures among `paths` that can be used, each with its place there.

    Each of the others is named in the log in one line, and in `left_out` with the reason. Raises UserError at the end
    if none could be used.
    """
    usable, last = 0, None
    left_out = {} if left_out is None else left_out
    for index, path in enumerate(paths):
        try:
            picture = load_picture(path, alpha_is_weight)
        except UnusablePicture as error:
            leave_out(path, error, left_out)
            last = f"{path}: {error}"
            continue
        usable += 1
        yield index, path, picture
    if not usable:
        raise UserError(f"none of the pictures can be used; the last was {last}")


def check_usable(paths: Sequence[Path], alpha_is_weight: bool = False) -> None:
    """Raise UserError unless at least one of the pictures can be used."""
    reason = ""
    for path in paths:
        try:
            load_picture(path, alpha_is_weight)
            return
        except UnusablePicture as error:
            reason = f"{path}: {error}"
    raise UserError(f"none of the pictures can be used; the last was {reason}")


def leave_out(path: Path, reason: UnusablePicture, left_out: dict[Path, str]) -> None:
    """Name a picture that is left out in the log, once however often it is repeated, and keep the reason."""
    if path not in left_out:
        logger.warning("skipped %s: %s", path, str(reason).replace("\n", " "))
    left_out[path] = str(reason)


def place(
    window: tuple[float, float, float, float],
    corner: tuple[int, int],
    size: tuple[int, int],
    canvas: tuple[int, int],
    flip: bool = False,
) -> Placement:
    """Put the window (left, top, right, bottom) of a picture into a part of the canvas, centered, its shape kept.

    corner:     left and top of that part on the canvas.
    size:       its width and height; what lies outside the canvas is cut off.
    canvas:     width and height.
    """
    left, top, right, bottom = window
    scale = min(size[0] / (right - left), size[1] / (bottom - top))
    x = _axis(left, right, corner[0] + (size[0] - scale * (right - left)) / 2, scale, canvas[0])
    y = _axis(top, bottom, corner[1] + (size[1] - scale * (bottom - top)) / 2, scale, canvas[1])
    return Placement((x[0], y[0], x[1], y[1]), (x[2], y[2], x[3], y[3]), flip)


def _axis(low: float, high: float, start: float, scale: float, length: int) -> tuple[float, float, int, int]:
    """One axis of a placement: where the part of low..high that the canvas shows begins and ends, there and here."""
    end = start + scale * (high - low)
    first, last = max(start, 0.0), min(end, float(length))
    near = min(round(first), length - 1)
    return low + (first - start) / scale, high - (end - last) / scale, near, max(round(last), near + 1)


def sizes_of(size: tuple[int, int], placement: Placement, canvas: tuple[int, int]) -> Sizes:
    """What SDXL is told of a picture of that size (width, height), placed so on the canvas.

    A corner outside the picture, as of one that does not fill the canvas, counts as the picture's own.
    """
    corner = []
    for side in (0, 1):
        near, far = placement.source[side], placement.source[side + 2]
        first, last = placement.target[side], placement.target[side + 2]
        scale = (last - first) / (far - near)
        start = near * scale - first
        if placement.flip and side == 0:
            start = size[0] * scale - start - canvas[0]
        corner.append(max(0, round(start)))
    return Sizes(size, (corner[0], corner[1]), canvas)


def draw(picture: Picture, placement: Placement, canvas: tuple[int, int]) -> Tensor:
    """The canvas (width, height) as pixels (3, height, width) in -1..1, with the picture on neutral gray, 0."""
    left, top, right, bottom = placement.target
    part = picture.colors.resize(
        (right - left, bottom - top), Image.Resampling.LANCZOS, box=placement.source, reducing_gap=3.0
    )
    pixels = torch.zeros(3, canvas[1], canvas[0])
    pixels[:, top:bottom, left:right] = torch.from_numpy(np.array(part)).permute(2, 0, 1).float() / 127.5 - 1
    return pixels.flip(-1) if placement.flip else pixels


def weigh(picture: Picture, placement: Placement, canvas: tuple[int, int]) -> Tensor:
    """Loss weight (1, height / 8, width / 8) of a canvas: 1 on the placed picture, or its alpha if that weighs, else 0.

    Only cells wholly on the picture weigh, and of these not the ones next to a border with bare canvas, which the VAE
    mixes with it (the paper's code leaves out one cell as well, on every side). Where nothing would remain, fewer are
    left out.
    """
    left, top, right, bottom = placement.target
    columns, rows = canvas[0] // LATENT_CELL, canvas[1] // LATENT_CELL
    mask = torch.zeros(1, rows, columns)
    mask[:, _inside(top, bottom, rows), _inside(left, right, columns)] = 1.0
    if picture.weight is not None:
        part = picture.weight.resize((right - left, bottom - top), Image.Resampling.BOX, box=placement.source)
        alpha = torch.zeros(1, canvas[1], canvas[0])
        alpha[0, top:bottom, left:right] = torch.from_numpy(np.array(part)).float() / 255
        mask *= F.avg_pool2d(alpha, LATENT_CELL)
    return mask.flip(-1) if placement.flip else mask


def _inside(near: int, far: int, cells: int) -> slice:
    """The cells of one axis that weigh, for a picture from pixel `near` to pixel `far`."""
    first, last = math.ceil(near / LATENT_CELL), far // LATENT_CELL
    if last <= first:
        first = (near + far) // 2 // LATENT_CELL
        return slice(first, first + 1)
    inner_first, inner_last = first + (near > 0), last - (far < cells * LATENT_CELL)
    return slice(inner_first, inner_last) if inner_first < inner_last else slice(first, last)
