"""Torch archives, read by an unpickler that can make dicts and tensors and nothing else.

No class that a file names is ever looked up: names that torch itself writes stand for what is made here, and any other
ends the reading. Both containers of `torch.save` are read, the zip of torch 1.6 and later and the stream before it.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import torch
from torch import Tensor

from ..errors import UserError

_SPARE = 1 << 20  # bytes that headers may take beyond what the file holds
_DIMENSIONS = 8
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
_DICTS = {("collections", "OrderedDict"), ("collections", "defaultdict"), ("builtins", "dict"), ("__builtin__", "dict")}
_PARAMETERS = ("torch.nn.modules.container", "ParameterDict")
# What else programs put beside their tensors. It is passed over, never made.
_PASSED_OVER = {
    ("_codecs", "encode"), ("builtins", "set"), ("__builtin__", "set"), ("torch", "Size"), ("torch", "device"),
    ("numpy", "dtype"), ("numpy", "ndarray"), ("numpy.core.multiarray", "scalar"),
    ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"), ("torch.nn.parameter", "Parameter"), ("torch", "Tensor"),
}  # fmt: skip
_ODD = {
    "_get_layout": "sparse",
    "_rebuild_sparse_tensor": "sparse",
    "_rebuild_sparse_csr_tensor": "sparse",
    "_rebuild_qtensor": "quantized",
    "_rebuild_meta_tensor_no_storage": "without numbers",
    "_rebuild_nested_tensor": "nested",
}
_ODD |= {f"Q{kind}Storage": "quantized" for kind in ("Int8", "Int32", "UInt8", "UInt4x2", "UInt2x4")}
_NOT_READ = {"_rebuild_tensor_v3", "UntypedStorage", "ComplexFloatStorage", "ComplexDoubleStorage"}
_CODES_READ = (
    pickle.PROTO + pickle.FRAME + pickle.STOP + pickle.MARK + pickle.POP + pickle.POP_MARK + pickle.DUP  # stack
    + pickle.PUT + pickle.BINPUT + pickle.LONG_BINPUT + pickle.MEMOIZE + pickle.GET + pickle.BINGET + pickle.LONG_BINGET
    + pickle.NONE + pickle.NEWTRUE + pickle.NEWFALSE + pickle.INT + pickle.BININT + pickle.BININT1 + pickle.BININT2
    + pickle.LONG + pickle.LONG1 + pickle.LONG4 + pickle.FLOAT + pickle.BINFLOAT
    + pickle.STRING + pickle.BINSTRING + pickle.SHORT_BINSTRING + pickle.UNICODE + pickle.BINUNICODE
    + pickle.SHORT_BINUNICODE + pickle.BINUNICODE8 + pickle.BINBYTES + pickle.SHORT_BINBYTES + pickle.BINBYTES8
    + pickle.EMPTY_TUPLE + pickle.TUPLE + pickle.TUPLE1 + pickle.TUPLE2 + pickle.TUPLE3
    + pickle.EMPTY_LIST + pickle.APPEND + pickle.APPENDS + pickle.LIST + pickle.EMPTY_DICT
    + pickle.GLOBAL + pickle.STACK_GLOBAL + pickle.BINPERSID
)  # fmt: skip


def read_archive(path: Path, size: int) -> Any:
    """What was given to `torch.save`: dicts, lists, numbers, text and tensors on the CPU.

    Raises UserError for what is damaged, claims to hold more than its `size` in bytes allows, or names anything that
    would have to run.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"PK"
            file.seek(0)
            return _zipped(file, size) if zipped else _stream(file, size)
    except (UserError, OSError):
        raise
    except zipfile.BadZipFile as error:
        raise UserError("its end is missing or damaged, as after an interrupted download; download it again") from error
    except Exception as error:  # what damaged bytes raise on the way has no end
        raise UserError(f"it is damaged ({type(error).__name__} while reading it); download it again") from error


def holds_text(path: Path, texts: tuple[bytes, ...]) -> bool:
    """Whether the part of a zipped archive that names its tensors holds one of the texts."""
    try:
        with zipfile.ZipFile(path) as records:
            name = next((name for name in records.namelist() if name.endswith("data.pkl")), None)
            if name is None or records.getinfo(name).file_size > 2 * path.stat().st_size + _SPARE:
                return False
            named = records.read(name)
    except Exception:
        return False
    return any(text in named for text in texts)


@dataclass(frozen=True)
class _Name:
    """A class or function that a file names. Nothing stands behind it."""

    module: str
    name: str


class _PassedOver:
    """In the place of what is of no interest."""


class _ParameterDict(dict[Any, Any]):
    """In the place of torch's own, whose parameters are part of its state."""


_PurePython: Any = pickle._Unpickler  # in C, a number in the file would be memory at once


class _Unpickler(_PurePython):
    """storage_of: the numbers of a storage by its key, dtype and count."""

    dispatch: ClassVar[dict[int, Any]] = {code: _PurePython.dispatch[code] for code in _CODES_READ}

    def __init__(self, file: BinaryIO, storage_of: Callable[[str, torch.dtype, int], Tensor]) -> None:
        super().__init__(file, encoding="utf-8")
        self._storage_of = storage_of
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> _Name:
        if name in _ODD:
            raise UserError(f"it holds a tensor that is {_ODD[name]}; convert it to an ordinary one first")
        known = (module, name) in _DICTS | _PASSED_OVER | {_PARAMETERS} or (
            module in ("torch._utils", "torch._tensor", "torch.storage", "torch")
            and (name in {*_REBUILT, *_STORAGES, *_NOT_READ} or isinstance(getattr(torch, name, None), torch.dtype))
        )
        if not known:
            raise UserError(
                f"it needs {module}.{name} to load, which could run anything and is not safe; get it as a safetensors"
                " file, or from someone you trust as tensors alone"
            )
        return _Name(module, name)

    def persistent_load(self, pid: Any) -> Tensor | _Name:
        if pid[0] == "module" and isinstance(pid[1], _Name):  # before torch 1.6 its source came along
            return pid[1]
        kind, storage, key, _location, count, *view = pid
        if kind != "storage" or not isinstance(storage, _Name) or not isinstance(key, str) or any(view):
            raise ValueError("no storage")
        if storage.name == "UntypedStorage":  # whose tensors are rebuilt with a kind of number beside them
            raise UserError("it uses a number format that cannot be read, such as float8; convert it to float16 first")
        if storage.name not in _STORAGES:
            raise UserError(f"it holds numbers of the kind {storage.name}, which are not read")
        if key not in self._storages:
            self._storages[key] = self._storage_of(key, _STORAGES[storage.name], int(count))
        return self._storages[key]

    def _made(self, what: Any, given: Any) -> Any:
        if not isinstance(what, _Name):
            raise ValueError("nothing that can be made")
        if (what.module, what.name) in _DICTS:
            return {}
        if (what.module, what.name) == _PARAMETERS:
            return _ParameterDict()
        if what.name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return _tensor(*given[:4])
        if what.name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            return given[0]
        if what.name == "_rebuild_from_type_v2":
            return self._made(given[0], given[2])
        return _PassedOver()

    def load_reduce(self) -> None:
        given = self.stack.pop()
        self.stack[-1] = self._made(self.stack[-1], given)

    def load_build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], _ParameterDict):
            self.stack[-1].update(_of_text(state["_parameters"]))

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _into(self.stack[-1], [key, value])

    def load_setitems(self) -> None:
        items = self.pop_mark()
        _into(self.stack[-1], items)

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        _into(self.stack[-1], items)

    dispatch[pickle.REDUCE[0]] = dispatch[pickle.NEWOBJ[0]] = load_reduce
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.SETITEM[0]], dispatch[pickle.SETITEMS[0]] = load_setitem, load_setitems
    dispatch[pickle.DICT[0]] = load_dict


_REBUILT = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_parameter_with_state",
            "_rebuild_from_type_v2")  # fmt: skip


def _into(held: Any, items: list[Any]) -> None:
    if isinstance(held, _PassedOver):
        return
    if not isinstance(held, dict):
        raise ValueError("items of what is no dict")
    held.update(_of_text(dict(_pairs(items))))


def _pairs(items: list[Any]) -> list[tuple[Any, Any]]:
    for key in items[::2]:
        if not isinstance(key, (str, int)):  # the hash of a tuple in tuples without end would overflow the stack
            raise UserError(f"it has a {type(key).__name__} for a name")
    return list(zip(items[::2], items[1::2], strict=True))


def _of_text(held: Mapping[Any, Any]) -> dict[Any, Any]:
    for key in held:
        if isinstance(key, str):
            key.encode()  # half a surrogate pair can be neither shown nor written
    return dict(held)


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any) -> Tensor:
    if not isinstance(storage, Tensor) or len(shape) != len(stride) or len(shape) > _DIMENSIONS:
        raise ValueError("no tensor")
    if not all(type(number) is int and 0 <= number < 1 << 62 for number in (offset, *shape, *stride)):
        raise ValueError("no tensor")
    if prod(shape) == 0:
        return torch.empty(tuple(min(size, 1) for size in shape), dtype=storage.dtype)
    if prod(shape) > len(storage) or offset + sum((n - 1) * s for n, s in zip(shape, stride)) >= len(storage):
        raise UserError(f"a tensor in it claims to be {tuple(shape)}, more than the file holds; it is damaged")
    return storage.as_strided(tuple(shape), tuple(stride), offset)


def _zipped(file: BinaryIO, size: int) -> Any:
    with zipfile.ZipFile(file) as records:
        listed = records.infolist()
        if sum(record.file_size for record in listed) > 2 * size + _SPARE:
            raise UserError("it claims to unpack to much more than it holds")
        if any(record.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for record in listed):
            raise UserError("it is compressed in a way that torch never writes")
        names = {record.filename for record in listed}
        named = next((name for name in sorted(names) if name.endswith("/data.pkl")), None)
        if named is None:
            raise UserError("it is a zip archive and holds no tensors; unpack it and give what is inside")
        folder = named.removesuffix("data.pkl")
        if f"{folder}byteorder" in names and records.read(f"{folder}byteorder") == b"big":
            raise UserError("it was written on a machine of another byte order")

        def storage_of(key: str, dtype: torch.dtype, count: int) -> Tensor:
            content = bytearray(records.read(f"{folder}data/{key}"))
            if len(content) != count * torch.empty(0, dtype=dtype).element_size():
                raise UserError(f"it claims {count} numbers where {len(content)} bytes are; it is damaged")
            return torch.frombuffer(content, dtype=dtype) if count else torch.empty(0, dtype=dtype)

        return _Unpickler(io.BytesIO(records.read(named)), storage_of).load()


def _stream(file: BinaryIO, size: int) -> Any:
    """The container before torch 1.6: pickles in a row, then the storages, which are filled once they are reached."""
    content = io.BytesIO(file.read())
    storages: dict[str, Tensor] = {}

    def storage_of(key: str, dtype: torch.dtype, count: int) -> Tensor:
        taken = sum(each.numel() * each.element_size() for each in storages.values())
        if not count >= 0 or taken + count * torch.empty(0, dtype=dtype).element_size() > size:
            raise UserError("its end is missing or damaged, as after an interrupted download; download it again")
        storages[key] = torch.zeros(count, dtype=dtype)
        return storages[key]

    try:
        magic, protocol = (_Unpickler(content, storage_of).load() for _ in range(2))
    except UserError:
        raise
    except Exception as error:
        raise UserError("it is neither a safetensors file nor a torch archive") from error
    if (magic, protocol) != (_LEGACY_MAGIC, _LEGACY_PROTOCOL):
        raise UserError("it is a bare pickle, which is not read: it can run code")
    _Unpickler(content, storage_of).load()  # about the machine that wrote it
    held = _Unpickler(content, storage_of).load()
    for key in _Unpickler(content, storage_of).load():
        storage = storages[key]
        count = int.from_bytes(content.read(8), "little")
        numbers = bytearray(content.read(storage.numel() * storage.element_size()))
        if count != len(storage) or len(numbers) != storage.numel() * storage.element_size():
            raise UserError("its end is missing, as after an interrupted download; download it again")
        if count:
            storage.copy_(torch.frombuffer(numbers, dtype=storage.dtype))
    return held
