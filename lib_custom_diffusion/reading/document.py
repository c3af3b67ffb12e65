"""A file's content as named tensors, read so that nothing in it is executed."""

from __future__ import annotations

import io
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import NO_TEXT, UserError, did_you_mean
from ..storage import is_utf8
from . import kinds, pickles, pictures

_DIMENSIONS = 8
_MOST_TENSORS = 20_000  # each takes time to read; a LoRA of SDXL's text encoders and UNet has some 2,500
_DEPTH = 4  # of dicts in dicts; no format here has more than three
_SPARE = 1 << 20  # bytes that tensors may take beyond the file's size, for those that share their numbers
WIDEST = 8192  # of a layer: a few bytes of factors must not stand for gigabytes. SDXL's cross-attention has 2048
_LARGEST = 1e6  # of a number; those of deltas, factors and words are below a thousand
_NO_NAME = re.compile(f"{NO_TEXT.pattern}|[\t-\r]")  # a name is one line
_TORN = ("incompletebuffer", "incompletemetadata", "invalidheaderlength")  # what versions of safetensors say of it
_NUMBERS = (
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool,
)  # fmt: skip


@dataclass(frozen=True)
class Document:
    """What a file holds: tensors by name, or dicts of them for a pickle; and the metadata of a safetensors file.

    name: the file's name without its suffix, or the name that an embedding picture says.
    """

    name: str
    content: dict[str, Any]
    metadata: dict[str, str] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the outermost level."""
        return {str(name): value for name, value in self.content.items() if isinstance(value, Tensor)}

    def kind(self) -> str:
        """What it is, for people: "a LoRA", "a checkpoint"."""
        return kinds.kind_of(self.content, self.metadata)


@dataclass(frozen=True)
class Header:
    """The names of a safetensors file's tensors, and its metadata."""

    names: list[str]
    metadata: dict[str, str]


def read_document(path: Path) -> Document:
    """Read a safetensors file, a torch archive or an embedding picture, whichever it is by content, on the CPU.

    Raises UserError when it is missing or none of them (saying what it is), damaged, or would have to execute
    something; and for tensors that are not plain, have more numbers than the file could hold, or numbers that are not
    finite.
    """
    with _named(path):
        size = _size(path)
        with path.open("rb") as file:
            start = file.read(kinds.START)
        kinds.check_start(start, size)
        if start[8:9] == b"{":
            document = _safetensors(path, size)
        elif start.startswith(pictures.SIGNATURE):
            document = Document(*pictures.read_picture(path))
        else:
            document = _archive(path, size)
        _check_all(document.content, size)
        return document


def read_header(path: Path) -> Header:
    """What a safetensors file says before its numbers, whatever its size. Raises UserError as `read_document`."""
    with _named(path):
        size = _size(path)
        with path.open("rb") as file:
            kinds.check_start(file.read(kinds.START), size)
        with _opened(path, size) as file:
            return Header(list(file.keys()), file.metadata() or {})


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Within the block, what goes wrong with a file is a UserError that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}{did_you_mean(path.name, _beside(path))}") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({_line(error)})") from error


def _beside(path: Path) -> list[str]:
    """The names of the files that may have been meant."""
    try:
        return sorted(each.name for each in path.parent.iterdir() if each.is_file())
    except OSError:
        return []


def archive(content: Mapping[str, Any]) -> bytes:
    """A torch archive of dicts of tensors."""
    written = io.BytesIO()
    torch.save(dict(content), written)
    return written.getvalue()


def _size(path: Path) -> int:
    """Of a file in bytes. Raises UserError for a folder or a device, OSError or ValueError if there is nothing."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise UserError("it is a folder; give a file in it" if path.is_dir() else "it is not a regular file")
    return found.st_size


def _opened(path: Path, size: int) -> Any:
    """The opened safetensors file. Raises UserError with the reason if it is none."""
    if not is_utf8(str(path)):
        raise UserError("its name, or its folder's, is not in UTF-8; rename it")
    try:
        return safe_open(str(path), framework="pt")
    except OSError:
        raise
    except Exception as error:
        line = _line(error)
        if any(said in line.lower().replace(" ", "") for said in _TORN):
            raise UserError(
                f"its end is missing or damaged, as after an interrupted download ({size} bytes are there);"
                " download it again"
            ) from None
        if "unknown variant" in line:
            raise UserError("it uses a number format that cannot be read, such as float4; convert it first") from error
        raise UserError(f"it is damaged, or no safetensors file ({line})") from error


def _safetensors(path: Path, size: int) -> Document:
    with _opened(path, size) as file:
        names, metadata = list(file.keys()), file.metadata() or {}
        if kinds.is_checkpoint(names):
            raise UserError(kinds.CHECKPOINT)
        if len(names) > _MOST_TENSORS:
            raise UserError(f"it has {len(names):,} tensors, more than any delta, LoRA or embedding")
        tensors = {}
        for name in names:
            try:
                if len(file.get_slice(name).get_shape()) > _DIMENSIONS:  # of a hundred thousand, torch would run on
                    raise UserError(f"{name} in it has more dimensions than any tensor; the file is damaged")
                tensors[name] = file.get_tensor(name)
            except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
                raise UserError(f"{name} in it uses a number format that cannot be read ({_line(error)})") from error
    return Document(path.stem, tensors, metadata)


def _archive(path: Path, size: int) -> Document:
    if pickles.holds_text(path, kinds.CHECKPOINT_PARTS):
        raise UserError(kinds.CHECKPOINT)
    content = pickles.read_archive(path, size)
    if not isinstance(content, dict):
        kind = "a bare tensor" if isinstance(content, Tensor) else f"a {type(content).__name__}"
        raise UserError(f"it holds {kind}, not named tensors")
    return Document(path.stem, content)


def _line(error: Exception) -> str:
    lines = str(getattr(error, "strerror", None) or error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _check_all(content: dict[str, Any], size: int) -> None:
    """Raise UserError for tensors that are not plain or finite, or together take more than the file holds."""
    held = 0
    for name, tensor in _tensors(content, _DEPTH, "", set()):
        if _NO_NAME.search(name):
            raise UserError(f"{name!r} in it is not a valid tensor name; the file is damaged")
        _check(name, tensor)
        held += tensor.numel() * tensor.element_size()
        if held > 2 * size + _SPARE:
            raise UserError("its tensors claim more data than the file holds; it is damaged")


def _tensors(content: Any, depth: int, name: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """All tensors; a dict that stands in several places counts once, or a few bytes would be walked without end."""
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, dict) and id(content) not in seen:
        seen.add(id(content))
        if depth == 0:
            raise UserError(f"it is nested too deeply at {name!r}; no known format does that")
        for key, value in content.items():
            yield from _tensors(value, depth - 1, str(key), seen)


def _check(name: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise UserError(f"{name} is not a plain tensor")
    if tensor.dtype not in _NUMBERS:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise UserError(f"{name} is stored as {kind}, which cannot be read; convert the file to float16 first")
    if tensor.is_floating_point() and tensor.numel():
        check_values(name, tensor)


def matrix(name: str, value: Any) -> Tensor:
    """A value as a matrix of real numbers, float32; a convolution of one pixel counts as one.

    Raises UserError if it is none, or larger than any layer.
    """
    if isinstance(value, Tensor) and value.ndim == 4 and value.shape[2:] == (1, 1):
        value = value[:, :, 0, 0]
    if not isinstance(value, Tensor) or value.ndim != 2 or not value.is_floating_point() or value.numel() == 0:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise UserError(f"{name} should be a matrix of real numbers, not {shape if value is not None else 'missing'}")
    check_width(name, value)
    return value.detach().float()


def check_values(name: str, value: Tensor) -> None:
    """Raise UserError for values that are not finite, or so large that what is computed of them would not be."""
    largest = value.abs().max()
    if not torch.isfinite(largest):
        raise UserError(f"{name} holds values that are not finite; the training that made it went wrong")
    if largest > _LARGEST:
        raise UserError(f"{name} holds values as large as {float(largest):.0e}; the file is damaged")


def check_width(name: str, value: Tensor) -> None:
    """Raise UserError for a matrix that is larger than a layer of any model."""
    if max(value.shape) > WIDEST:
        raise UserError(f"{name} is {tuple(value.shape)}, larger than a layer of any model; the file is damaged")


def vectors(name: str, value: Any) -> Tensor:
    """The vectors (n, width) of a token, float32. Raises UserError if the value is neither that nor one vector."""
    if isinstance(value, Tensor) and value.ndim == 1:
        value = value[None]
    return matrix(name, value)
