"""The deltas in the WebUI's folder: found by name, told apart by hash, read once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from modules import hashes, paths, shared

from ..delta import Delta, Factors
from ..deltas_folder import named_deltas, named_saves, steps_of_save
from ..errors import NotSaved, UserError, did_you_mean
from ..storage import write_atomically
from ..ui.inspection import words_of

LOG_DIRECTORY = "textual_inversion"
"""Where the host's trainings keep their logs, from its data folder, if nobody says otherwise."""
_KEPT_IN_MEMORY = 8  # deltas, or
_BYTES_IN_MEMORY = 512 * 2**20


@dataclass(frozen=True)
class DeltaOnDisk:
    """A delta file and the name that prompts call it by."""

    name: str
    path: Path

    def version(self) -> tuple[int, ...]:
        """Changes when the file does, or another takes its place. Raises UserError if it is gone."""
        try:
            status = self.path.stat()
        except OSError as error:
            raise UserError(f"the delta file {self.path} is gone; refresh the list of deltas") from error
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino

    @property
    def shorthash(self) -> str:
        """First 12 digits of the file's SHA-256, from the host's cache; "" if it is gone or hashing is off."""
        try:
            return (hashes.sha256(str(self.path), f"delta/{self.name}") or "")[:12]
        except OSError:
            return ""


class DeltaLibrary:
    """All delta files under one folder, by name: the file's stem, or its relative path if the stem is taken.

    logs:       folders of trainings, whose saves are found by name, too, where no file of the folder has it.
    other_logs: a text file of more of them, one a line, which `look_into` adds to.

    `when_changed` is called when other files are found in the folder than the last time.
    """

    def __init__(self, folder: Path, *logs: Path, other_logs: Path | None = None) -> None:
        self.folder = folder
        self.other_logs = other_logs
        self.logs = list(dict.fromkeys([*logs, *map(Path, _lines(other_logs))]))
        self.when_changed: Callable[[], None] = lambda: None
        self._by_name: dict[str, DeltaOnDisk] = {}
        self._saves: dict[str, DeltaOnDisk] = {}
        self._words: dict[str, list[str]] | None = None
        self._read: OrderedDict[Path, tuple[tuple[int, ...], Delta, int]] = OrderedDict()

    def look_into(self, logs: Path) -> None:
        """Find the saves of the trainings in that folder as well, from now on."""
        if logs in self.logs:
            return
        self.logs.append(logs)
        if self.other_logs is not None:
            with suppress(NotSaved):  # then they are found until the host ends
                write_atomically(self.other_logs, "\n".join([*_lines(self.other_logs), str(logs), ""]).encode())

    def refresh(self) -> None:
        """Look at the folders again."""
        found = {name: DeltaOnDisk(name, path) for name, path in named_deltas(self.folder).items()}
        changed = found != self._by_name
        self._by_name, self._words = found, None
        saves = {name: path for logs in reversed(self.logs) for name, path in named_saves(logs).items()}
        self._saves = {name: DeltaOnDisk(name, path) for name, path in saves.items() if name not in found}
        if changed:
            self.when_changed()

    def all(self) -> list[DeltaOnDisk]:
        return list(self._by_name.values())

    def saves(self) -> list[DeltaOnDisk]:
        """Those that trainings kept on the way."""
        return list(self._saves.values())

    def find(self, name: str) -> DeltaOnDisk:
        """The delta of that name, looking at the folders again if it is not in the first one yet. Raises UserError if
        it is not there."""
        if name not in self._by_name:
            self.refresh()
        found = self._by_name.get(name) or self._saves.get(name)
        if found is None:
            near = did_you_mean(name, [*self._saves, *self._by_name])
            raise UserError(f"there is no delta {name!r} in {self.folder}{near}")
        return found

    def words(self) -> dict[str, list[str]]:
        """The words of each delta in the folder, by its name; their files are read once after a refresh."""
        if self._words is None:
            self._words = {delta.name: words_of(delta.path) for delta in self.all()}
        return self._words

    def by_steps(self, name: str) -> dict[int, DeltaOnDisk]:
        """What the training of a delta, or of a save of it, had learned after how many steps: its copies, and the end.

        Raises UserError if the delta cannot be read.
        """
        self.refresh()
        if name in self._saves:
            name = name.rpartition("-")[0]
        found = {steps_of_save(each.name, name): each for each in [*self.saves(), *self.all()]}
        if name in self._by_name:
            found[self.load(self._by_name[name]).provenance.steps] = self._by_name[name]
        return {steps: found[steps] for steps in sorted(found) if steps}

    def named_by_hash(self, shorthash: str) -> str | None:
        """The name that the file of that hash has here."""
        return next((delta.name for delta in self.all() if shorthash and delta.shorthash == shorthash), None)

    def load(self, delta: DeltaOnDisk) -> Delta:
        """The file's content, read again only if it has changed. Raises UserError if it cannot be read."""
        version = delta.version()
        held = self._read.get(delta.path)
        if held is None or held[0] != version:
            read = Delta.load(delta.path)
            held = self._read[delta.path] = version, read, _bytes(read)
        self._read.move_to_end(delta.path)
        while len(self._read) > 1 and (
            len(self._read) > _KEPT_IN_MEMORY or sum(size for _, _, size in self._read.values()) > _BYTES_IN_MEMORY
        ):
            self._read.popitem(last=False)
        return held[1]


def _lines(file: Path | None) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines() if file else []
    except (OSError, UnicodeDecodeError):
        return []


def _bytes(delta: Delta) -> int:
    tensors = [each for entry in delta.entries.values()
               for each in ((entry.us, entry.vh) if isinstance(entry, Factors) else (entry,))]  # fmt: skip
    return sum(each.numel() * each.element_size() for each in tensors)


# There is no --deltas-dir yet in the session in which the extension was installed: the host reads flags at its start.
library = DeltaLibrary(
    Path(getattr(shared.cmd_opts, "deltas_dir", None) or Path(paths.models_path, "deltas")),
    Path(paths.data_path, LOG_DIRECTORY),
    other_logs=Path(paths.data_path, "custom-diffusion-logs.txt"),
)
