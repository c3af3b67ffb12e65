"""Files that are wholly old or wholly new, and the same bytes for the same content."""

from __future__ import annotations

import codecs
import errno
import json
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO
from urllib.parse import urlsplit
from urllib.request import url2pathname

import safetensors.torch
from torch import Tensor

from .errors import NO_TEXT, NotSaved, UserError

_ASIDE = ".tmp"
_MOST_TEXT = 64 << 20
"""Bytes of a text file that a person names; lists of a million pictures have as many."""
_UNITS = {
    "": 1, "b": 1, "kb": 1_000, "mb": 1_000_000, "gb": 1_000_000_000, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30,
}  # fmt: skip


def size(text: str) -> int:
    """Bytes of "5MB", "800 kB" or "5000000". Raises UserError for anything else."""
    digits = text.strip().lower().rstrip("bikmg ")
    unit = text.strip().lower()[len(digits) :].strip()
    try:
        count = float(digits) * _UNITS[unit]
    except (ValueError, KeyError):
        raise UserError(f"{text!r} is not a size; write 5MB or 800kB") from None
    if not unit and 0 < count < 1000:
        raise UserError(f"{text.strip()} would be bytes; write {text.strip()}MB for megabytes")
    if not 0 < count < 1e15:
        raise UserError(f"{text!r} is not a possible file size; write 5MB or 800kB")
    return int(count)


def size_text(size: int) -> str:
    """1.25 MB; small files in kB."""
    return f"{size / 1e6:.2f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def check_writable(folder: Path) -> None:
    """Raise UserError unless files can be written into a folder, or into where it will be made; makes none."""
    there = folder.absolute()
    try:
        while not _is_there(there):
            there = there.parent
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "it is not a folder")
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; choose another folder") from error


def check_output(path: Path) -> None:
    """Raise UserError unless a file can be written there, and read: no folder, device or pipe is, all is in UTF-8."""
    reason = _no_file(path)
    if reason is not None:
        raise UserError(f"cannot write to {path}: {reason}; give another file")
    if not is_utf8(path.name):  # which a file's own title could not be
        raise UserError(f"{path.name!a} has bytes that are not text; give another file")
    if not is_utf8(str(path.parent)):  # safetensors opens no file there
        raise UserError(f"the folder {str(path.parent)!a} has bytes that are not text in its name; give another folder")
    check_writable(path.parent)


def _no_file(path: Path) -> str | None:
    """Why a file cannot take the place of what is there; None if it can. Whoever may do all could replace /dev/null."""
    if os.path.isdir(path):
        return "it is a folder"
    return "it is not a regular file" if is_special(path) else None


def is_special(path: Path) -> bool:
    """Whether a pipe, a socket or a device has that name: whoever reads one may wait for ever."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def read_text(path: Path, what: str = "") -> str:
    """The content of a text file in UTF-8, or in UTF-16 that is marked as such; its lines end in \\n.

    what: what a message calls the file, if not by its path alone.
    Raises UserError for a file that is not there, is no text or too large for one, and for a pipe or a device, which
    might be waited for without end.
    """
    try:
        return _text(path)
    except UnicodeError:
        reason = "it is not text in UTF-8"
    except FileNotFoundError:
        reason = "there is no such file"
    except OSError as error:
        reason = str(error.strerror)
    raise UserError(f"{what or path} cannot be read: {reason}; give a text file in UTF-8")


def _text(path: Path) -> str:
    """As `read_text`, which tells what is raised here."""
    if is_special(path):
        raise OSError(errno.EINVAL, "it is not a regular file")
    with path.open("rb") as file:
        content = file.read(_MOST_TEXT + 1)
    if len(content) > _MOST_TEXT:
        raise OSError(errno.EFBIG, f"it has more than {_MOST_TEXT >> 20} MB")
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = content.decode("utf-16" if marked else "utf-8-sig")
    if NO_TEXT.search(text):
        raise UnicodeError
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _is_there(path: Path) -> bool:
    """Whether there is something by that name, even a link to nowhere. Raises OSError for a name that none can have."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return path == path.parent
    return True


def named_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, for json.loads, which would pass over what is said twice. Raises ValueError for that."""
    refuse_twice([name for name, _ in pairs])
    return dict(pairs)


def refuse_twice(names: Sequence[str]) -> None:
    """Raise ValueError for a name that is there twice."""
    for name, times in Counter(names).items():
        if times > 1:
            raise ValueError(f"it says {name} twice")


def write_atomically(path: Path, content: bytes) -> None:
    """Put `content` at `path`: written aside, flushed to the disk, then renamed over whatever was there.

    What a process that was killed at this has left aside is removed when another first writes a file with the same
    suffix into the folder. Raises NotSaved where the disk is full or the folder cannot be written, or where a folder,
    a device or a pipe is; what was at `path` is then untouched.
    """
    if reason := _no_file(path):
        raise NotSaved(path, reason, "give another file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path.parent.absolute(), path.suffix)
        handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_ASIDE)
    except OSError as error:
        raise NotSaved(path, error.strerror, "choose another folder, or make room there") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, 0o666 & ~_umask())  # mkstemp makes it private; other programs read these files
        os.replace(aside, path)
    except FileNotFoundError:  # another process took it for a leftover, which it does once
        write_atomically(path, content)
    except OSError as error:
        Path(aside).unlink(missing_ok=True)
        raise NotSaved(path, error.strerror) from error
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


@cache
def _remove_leftovers(folder: Path, suffix: str) -> None:
    """Remove what was written aside for files with that suffix. Whoever is still writing one does so again."""
    name = re.compile(rf"\..+{re.escape(suffix)}\.[a-z0-9_]{{8}}{re.escape(_ASIDE)}")
    for aside in folder.iterdir():
        if name.fullmatch(aside.name):
            with suppress(OSError):  # open on Windows, gone, or not ours to remove
                aside.unlink()


def is_in_place(file: IO[Any], path: Path) -> bool:
    """Whether an open file is still what is at a path: another program may have removed or replaced it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except (FileNotFoundError, NotADirectoryError):
        return False


def put_back(file: IO[Any], path: Path) -> None:
    """Put an open file that another program has removed at its path again, with all that was written to it.

    file: opened for reading as well; it is flushed, and not what is at the path.
    """
    file.flush()
    file.seek(0)
    content = file.read()
    write_atomically(path, content if isinstance(content, bytes) else content.encode())


class FolderLock:
    """Within the block no other process gets the same folder. The system lets go of it when the process ends, however.

    Raises UserError on entering if another process has it. A folder that is not there is made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / ".lock"

    def __enter__(self) -> FolderLock:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
        except OSError as error:
            where = error.filename or self.folder
            raise UserError(f"cannot write to {where}: {error.strerror}; choose another folder") from error
        try:
            _lock(self._file)
        except OSError as error:
            self._file.close()
            raise UserError(
                f"another training is writing into {self.folder}; wait for it, or choose another folder"
            ) from error
        if not is_in_place(self._file, self.path):
            self._file.close()  # who had it before removed the file while it was being opened here
            return self.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Windows removes no open file, and one of a folder that was removed meanwhile may be another process's by now.
        if sys.platform != "win32" and is_in_place(self._file, self.path):
            with suppress(OSError):  # of a folder that cannot be written any more, which whoever wrote there tells
                self.path.unlink()
        self._file.close()


if sys.platform == "win32":
    import msvcrt

    def _lock(file: BinaryIO) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(file: BinaryIO) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors document whose bytes depend on its content alone.

    The library writes metadata in an order that changes from process to process; here the header's keys are sorted.
    """
    content = safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length]) | {"__metadata__": dict(metadata)}
    ordered = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    ordered += b" " * (-len(ordered) % 8)  # the format wants the tensors aligned to 8 bytes
    return len(ordered).to_bytes(8, "little") + ordered + content[8 + length :]


def given_path(text: str | Path) -> Path:
    """A path of a flag, a field or a file: ~ is the home folder even where no shell has said so, as after --flag=.

    Raises UserError for a text that no path can be.
    """
    try:
        possible = b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:  # half a character
        possible = False
    if not possible:
        raise UserError(f"{str(text)!r} is not a valid path; type it again")
    return Path(os.path.expanduser(text))  # which leaves ~somebody as it is; pathlib's raises


def typed_path(text: str) -> Path:
    """A path as people type it, or as systems copy it: within quotation marks, or as file:///…

    Raises UserError for a text that no path can be.
    """
    text = text.strip()
    if len(text) > 1 and ((text[0] == text[-1] and text[0] in "\"'") or text[0] + text[-1] == "“”"):
        text = text[1:-1].strip()
    if text.lower().startswith("file://"):
        text = url2pathname(urlsplit(text).path)
    path = given_path(text)
    try:
        os.lstat(path)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(f"{text[:20]!r}… is too long for a path; type it again") from error
    return path


def visible(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """As os.walk: a folder, the names of its folders, which may be cut, and of its files; then of those below it.

    Links to folders are followed, and each folder is visited once. Left out are hidden names (.venv, .git), and those
    that are not in UTF-8, which no page can show and safetensors cannot open.
    """
    visited: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        folders[:] = [] if real in visited else sorted(filter(_is_visible, folders))
        if real not in visited:
            visited.add(real)
            yield Path(root), folders, sorted(filter(_is_visible, files))


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and is_utf8(name)


def printable(name: str) -> str:
    """A file's name as a page can show it: with ? for bytes that are no UTF-8."""
    return name.encode("utf-8", "replace").decode()


def is_utf8(name: str) -> bool:
    """Whether a name, as Python has it, stands in UTF-8 on the disk."""
    return not any("\ud800" <= character <= "\udfff" for character in name)
