"""A file's content, read so that nothing in it is executed, and nothing is believed that the file's size rules out."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import UserError

_DEPTH = 4  # of dicts in dicts; no format here has more than three


@dataclass(frozen=True)
class Document:
    """What a file holds: tensors by name, or dicts of them for a pickle; and the metadata of a safetensors file.

    name: the file's name without its suffix.
    """

    name: str
    content: dict[str, Any]
    metadata: dict[str, str] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the outermost level."""
        return {str(name): value for name, value in self.content.items() if isinstance(value, Tensor)}


def read_document(path: Path) -> Document:
    """Read a safetensors file or a torch archive, whichever it is by content, on the CPU.

    Raises UserError when it is missing, neither, damaged, or would have to execute something; and for tensors that
    are not plain, have more numbers than the file could hold, or numbers that are not finite.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        with path.open("rb") as file:
            start = file.read(9)
        document = _safetensors(path) if start[8:] == b"{" else _archive(path, start)
        for name, tensor in _tensors(document.content, _DEPTH):
            _check(name, tensor)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    return document


def archive(content: Mapping[str, Any]) -> bytes:
    """A torch archive of dicts of tensors."""
    written = io.BytesIO()
    torch.save(dict(content), written)
    return written.getvalue()


def _safetensors(path: Path) -> Document:
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            return Document(path.stem, tensors, file.metadata() or {})
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise UserError(f"damaged, or no safetensors file ({_line(error)})") from error


def _archive(path: Path, start: bytes) -> Document:
    if not start.startswith(b"PK"):
        raise UserError("neither a safetensors file nor a torch archive (a bare pickle is not read: it can run code)")
    try:
        with zipfile.ZipFile(path) as records:
            unpacked = sum(record.file_size for record in records.infolist())
        if unpacked > 2 * path.stat().st_size + (1 << 20):
            raise UserError("claims to unpack to much more than it holds")
        with path.open("rb") as file:  # given a path, torch goes by its suffix
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (UserError, OSError):
        raise
    except Exception as error:  # what an unpickler raises on damaged bytes has no end
        raise UserError(f"damaged, or needs more than weights to load, which is not safe ({_line(error)})") from error
    if not isinstance(content, dict):
        raise UserError(f"holds a {type(content).__name__}, not named tensors")
    return Document(path.stem, content)


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _tensors(content: Any, depth: int, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, dict):
        if depth == 0:
            raise UserError(f"holds dicts in dicts in dicts at {name!r}; none of the known formats does")
        for key, value in content.items():
            if not isinstance(key, (str, int)):
                raise UserError(f"has a {type(key).__name__} for a name")
            yield from _tensors(value, depth - 1, str(key))


def _check(name: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise UserError(f"{name} is not a plain tensor")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise UserError(f"{name} claims to be {tuple(tensor.shape)}, more than the file holds")
    if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
        raise UserError(f"{name} holds values that are not finite")


def matrix(name: str, value: Any) -> Tensor:
    """A value as a matrix of real numbers, float32; a convolution of one pixel counts as one.

    Raises UserError if it is none.
    """
    if isinstance(value, Tensor) and value.ndim == 4 and value.shape[2:] == (1, 1):
        value = value[:, :, 0, 0]
    if not isinstance(value, Tensor) or value.ndim != 2 or not value.is_floating_point() or value.numel() == 0:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise UserError(f"{name} should be a matrix of real numbers, not {shape}")
    return value.detach().float()


def vectors(name: str, value: Any) -> Tensor:
    """The vectors (n, width) of a token, float32. Raises UserError if the value is neither that nor one vector."""
    if isinstance(value, Tensor) and value.ndim == 1:
        value = value[None]
    return matrix(name, value)
