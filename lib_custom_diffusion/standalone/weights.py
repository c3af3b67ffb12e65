"""Files of weights, read so that nothing in them is executed, and named for what they are when they are none.

A checkpoint is gigabytes: its tensors are mapped from the file, not copied, until they are moved or converted.
"""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import UserError
from ..reading.kinds import START, check_start
from ..reading.pictures import SIGNATURE
from ..storage import is_utf8

_AGAIN = "download it again"
_WRAPPED = re.compile(r"^(?:module\.|state_dict\.)+|(?<![^.])_orig_mod\.")
"""What a model that was wrapped while it was saved has in its names: for several GPUs, or by torch.compile."""
_NESTED = ("state_dict", "model", "module")


class _Inert:
    """Stands for whatever a file wants built beside its tensors, and is nothing: no code of the file's choice runs."""

    def __new__(cls, *_arguments: Any, **_named: Any) -> _Inert:
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


def _inert(path: str) -> tuple[type, str]:
    return type(path.rpartition(".")[2], (_Inert,), {}), path


_HARMLESS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    _inert("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
    *(_inert(f"numpy.{core}.multiarray.{name}") for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    _inert("numpy.dtype"),
    _inert("numpy.ndarray"),
    _inert("_codecs.encode"),
    _inert("__builtin__.set"),
    (torch.nn.ParameterDict, "torch.nn.modules.container.ParameterDict"),
]
"""What modules/safe.py of AUTOMATIC1111's WebUI lets pass beside tensors, and torch by itself does not."""


@dataclass(frozen=True)
class Weights:
    """The tensors of a file by name, those of a nested `state_dict` or `model` if it has one; and what else it says.

    entries:  names of the outermost level; of all levels where none of its tensors has a name there.
    metadata: of a safetensors file.
    """

    path: Path
    tensors: dict[str, Tensor]
    entries: frozenset[str] = frozenset()
    metadata: dict[str, str] = field(default_factory=dict)


def read_weights(path: Path) -> Weights:
    """Read a safetensors file or a torch archive, whichever it is by content, on the CPU.

    Raises UserError, which says what the file is instead, when it is neither, torn, or would have to execute something.
    """
    try:
        start = _checked_start(path)
        return _safetensors(path, start) if start[8:9] == b"{" else _archive(path, start)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error


def refuse_torn(path: Path) -> None:
    """Raise UserError if a file of weights is torn or another kind of file; reads no more than its beginning."""
    start = _checked_start(path)
    if start[8:9] == b"{":
        _check_length(path, start)


def _checked_start(path: Path) -> bytes:
    """The first bytes of a file. Raises UserError, which says what it is, if they are of no file of weights."""
    if not is_utf8(str(path)):
        raise UserError(f"{str(path)!a} cannot be read, as its name is not in UTF-8; rename it")
    with path.open("rb") as file:
        start = file.read(START)
    try:
        check_start(start, path.stat().st_size)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if start.startswith(SIGNATURE):
        raise UserError(f"{path} is a picture, not a model")
    return start


def _safetensors(path: Path, start: bytes) -> Weights:
    _check_length(path, start)
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {_plain(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            return Weights(path, tensors, frozenset(tensors), file.metadata() or {})
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise UserError(f"{path} is damaged ({_line(error)}): {_AGAIN}") from error


def _check_length(path: Path, start: bytes) -> None:
    """A torn safetensors file is shorter than its header, or than the header says that its tensors reach."""
    size = path.stat().st_size
    header = int.from_bytes(start[:8], "little")
    if header > size - 8:
        raise UserError(f"{path} is torn: it ends within its first {8 + header:,} bytes, at {size:,}; {_AGAIN}")
    try:
        with safe_open(str(path), framework="pt"):
            return
    except SafetensorError as error:
        what = f"damaged ({_line(error)})"
        if "file not fully covered" in str(error) or "MetadataIncompleteBuffer" in str(error):
            more = size > 8 + header + _end_of_tensors(path, header)
            what = "damaged: it goes on after its last tensor" if more else "torn: it ends before its last tensor does"
        raise UserError(f"{path} is {what}; {_AGAIN}") from error


def _end_of_tensors(path: Path, header: int) -> int:
    """Where the last tensor of a safetensors file ends, from the end of its header, which is valid but for that."""
    with path.open("rb") as file:
        file.seek(8)
        described = json.loads(file.read(header))
    return max(each["data_offsets"][1] for name, each in described.items() if name != "__metadata__")


def _archive(path: Path, start: bytes) -> Weights:
    zipped = zipfile.is_zipfile(path)
    if start.startswith(b"PK"):
        if not zipped:
            raise UserError(f"{path} is torn: the end of the archive is missing; {_AGAIN}")
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
        names = [each.filename for each in records]
        if any(name.endswith("/constants.pkl") for name in names):
            raise UserError(f"{path} is a TorchScript program, not a model's weights")
        if not any(name.endswith("data.pkl") for name in names):
            inside = f", which holds {names[0]}" if names else ""
            raise UserError(f"{path} is a ZIP archive{inside}; unpack it and give what is in it")
        packed = any(each.compress_type != zipfile.ZIP_STORED for each in records)
        if packed or sum(each.file_size for each in records) > path.stat().st_size:
            raise UserError(
                f"{path} is no archive as torch writes it: what is in it is compressed, or there twice; {_AGAIN}"
            )
    elif not start.startswith(b"\x80"):
        raise UserError(f"{path} is neither a safetensors file nor a torch archive")
    try:
        with torch.serialization.safe_globals(_HARMLESS), path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch has to say of other programs' files
            # Only a path can be mapped, and torch goes by its suffix.
            mapped = zipped and path.suffix.lower() != ".safetensors"
            source: Any = str(path) if mapped else file
            content = torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError:
        raise
    except Exception as error:  # what an unpickler raises on damaged bytes has no end
        raise _refused(path, error, zipped) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not named weights")
    nested = next((content[name] for name in _NESTED if isinstance(content.get(name), dict)), content)
    tensors = {_plain(name): tensor for name, tensor in _tensors(path, nested)}
    return Weights(path, tensors, frozenset(map(str, content) if tensors else _names(content)))


def _plain(name: str) -> str:
    """A tensor's name without what a wrapper around the model put into it."""
    return _WRAPPED.sub("", name)


def _names(content: Any, prefix: str = "", depth: int = 4) -> Iterator[str]:
    """The names in dicts and lists within each other, with dots between them, that `kinds` tells a file by."""
    inside = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for name, value in inside:
        yield f"{prefix}{name}"
        if depth:
            yield from _names(value, f"{prefix}{name}.", depth - 1)


def _tensors(path: Path, content: dict[Any, Any]) -> Iterator[tuple[str, Tensor]]:
    for name, value in content.items():
        if isinstance(name, str) and isinstance(value, Tensor):
            if value.layout != torch.strided or value.is_quantized or value.is_meta:
                raise UserError(f"{path} is of a kind that is not read: {name} in it is no plain tensor")
            yield name, value.detach()


def _refused(path: Path, error: Exception, zipped: bool) -> UserError:
    """What to say of an archive that was not read: which code it wanted to run, if that was why."""
    wanted = re.findall(r"(?:Unsupported global:|unsupported) GLOBAL (\w[\w.]*\w)", str(error))
    if zipped:
        with suppress(Exception), torch.serialization.safe_globals(_HARMLESS):
            wanted = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path))) or wanted
    if not wanted:
        what = "damaged or torn" if zipped else "damaged, torn, or not a file of torch's"
        return UserError(f"{path} is {what}: {_AGAIN}")
    named = ", ".join(wanted[:3])
    return UserError(
        f"{path} contains more than weights ({named}), and loading it would run code, so it is not loaded; give a"
        " .safetensors instead"
    )


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
