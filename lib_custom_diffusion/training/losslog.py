"""The record of a training: a CSV file and, on request, TensorBoard and what else follows it."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TextIO, TypeVar

from PIL import Image

from ..storage import is_in_place, put_back, write_atomically
from .event_file import EventFile

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_R = TypeVar("_R")

NUMBERS = ("loss", "instance_loss", "prior_loss", "text_prior_loss", "learning_rate", "embedding_learning_rate")
"""What is known of a step."""


def _own_row(step: int, numbers: Mapping[str, float]) -> list[str]:
    return [f"{numbers[name]:.6g}" for name in NUMBERS]


@dataclass(frozen=True)
class LossTable:
    """The CSV file of a training.

    name:    of the file.
    columns: its first line; the step comes first.
    row:     the other cells of a step, from its number (1 the first) and its NUMBERS.
    every:   steps between two rows; 0 for no file.
    """

    name: str = "loss.csv"
    columns: Sequence[str] = ("step", *NUMBERS)
    row: Callable[[int, Mapping[str, float]], Sequence[object]] = _own_row
    every: int = 1


LOSS_CSV = LossTable()


class Recorder(Protocol):
    """What else is told of a training."""

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """One step's NUMBERS."""
        ...

    def add_pictures(self, step: int, pictures: Sequence[Image.Image]) -> None:
        """Validation pictures."""
        ...

    def close(self) -> None:
        """There is no more to tell."""
        ...


class LossLog:
    """Appends rows to the CSV file in a folder, and brings the same numbers and validation pictures to TensorBoard.

    logs:     TensorBoard's folder; None without it.
    recorder: told of the same.
    before:   where the rows until `resume_step` are, if not in the folder: that of the training which is gone on with.

    Rows after `resume_step` are those of a run that was cut off and are dropped; those before are never off the disk.
    The file of another training is not touched before `replace_old`; until then the rows stand beside it.
    Nothing is written before there is something to tell, so a training that takes no step leaves no file.
    A disk that is full costs what is written there, not the training, and so does a recorder that fails: each is told
    once, and then left out.
    """

    def __init__(
        self,
        folder: Path,
        resume_step: int,
        logs: Path | None,
        table: LossTable,
        recorder: Recorder | None = None,
        before: Path | None = None,
    ) -> None:
        path = folder / table.name
        known = (before or folder) / table.name
        self._aside = folder / f".{table.name}.new.tmp"
        self._rows = _Spared(
            "losses are no longer saved",
            lambda: _Rows(path, self._aside, known, resume_step, table) if table.every else None,
        )
        self._events = _Spared(
            "TensorBoard's log is no longer written",
            lambda: EventFile(logs, resume_step + 1) if logs is not None else None,
        )
        self._recorder = _Spared("the tracker no longer receives the training", lambda: recorder)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """One step's NUMBERS."""
        self._rows.do(lambda part: part.add(step, numbers))
        self._events.do(lambda part: part.add(step, numbers))
        self._recorder.do(lambda part: part.add(step, numbers))

    def add_pictures(self, step: int, pictures: Sequence[Image.Image]) -> None:
        """Validation pictures, which go to TensorBoard and the recorder alone."""
        self._events.do(lambda part: part.add_pictures(step, pictures))
        self._recorder.do(lambda part: part.add_pictures(step, pictures))

    def replace_old(self) -> None:
        """Put the rows in the place of the file that was there, if there was one."""
        self._rows.do(_Rows.replace_old)

    def flush(self) -> None:
        """Bring what was added to the disk."""
        self._rows.do(_Rows.flush)
        self._events.do(EventFile.flush)

    def close(self) -> None:
        """Flush and close the files. Rows of a training that saved nothing are dropped: the old ones still stand."""
        self._rows.end(_Rows.close)
        self._events.end(EventFile.close)
        self._recorder.do(lambda part: part.close())  # one that was told nothing is open all the same
        with suppress(OSError):
            self._aside.unlink(missing_ok=True)


class _Spared(Generic[_T]):
    """A part of the log, made when it is first used, whose failing costs itself and not the training.

    without: what is told then. make: gives None for a part that there is not.
    """

    def __init__(self, without: str, make: Callable[[], _T | None]) -> None:
        self.without = without
        self.part: _T | None = None
        self._make: Callable[[], _T | None] | None = make

    def do(self, action: Callable[[_T], object]) -> None:
        """Have the part do something, if there is one and it has not failed."""
        if self._make is not None:
            make, self._make = self._make, None
            self.part = self._tried(make)
        self.end(action)

    def end(self, action: Callable[[_T], object]) -> None:
        """As `do`, of a part that was used."""
        part = self.part
        if part is not None:
            self._tried(lambda: action(part))

    def _tried(self, action: Callable[[], _R]) -> _R | None:
        try:
            return action()
        except Exception as error:  # services' libraries all raise their own
            self.part = None
            logger.warning("%s: %s. The training continues", self.without, error)
            return None


class _Rows:
    """The CSV file, open; `aside` while another training's is in its place.

    known: the file with the rows until resume_step, which are kept.
    """

    def __init__(self, path: Path, aside: Path, known: Path, resume_step: int, table: LossTable) -> None:
        self._path, self._aside, self._table = path, aside, table
        goes_on = resume_step > 0 and known.resolve() == path.resolve()
        self._is_aside = path.is_file() and not goes_on
        kept = _rows_until(resume_step, known, table.columns) if resume_step else []
        text = io.StringIO(newline="")
        csv.writer(text).writerows([table.columns, *kept])
        write_atomically(aside if self._is_aside else path, text.getvalue().encode())
        self._file = _opened(aside if self._is_aside else path)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        if step % self._table.every == 0:
            csv.writer(self._file).writerow([step, *self._table.row(step, numbers)])

    def replace_old(self) -> None:
        if self._is_aside:
            self.flush()
            self._file.close()
            os.replace(self._aside, self._path)
            self._file = _opened(self._path)
            self._is_aside = False

    def flush(self) -> None:
        self._file.flush()
        path = self._aside if self._is_aside else self._path
        if not is_in_place(self._file, path):
            logger.warning("%s was removed or replaced; it is written again", self._path)
            put_back(self._file, path)
            self._file.close()
            self._file = _opened(path)

    def close(self) -> None:
        self.flush()
        self._file.close()


def _opened(path: Path) -> TextIO:
    return path.open("a+", newline="", encoding="utf-8")


def _rows_until(step: int, path: Path, columns: Sequence[str]) -> list[list[str]]:
    """The rows of a file until a step; torn ones and what else is no row are dropped."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", errors="replace") as file:
        rows = [line.rstrip("\n").replace("\0", "").split(",") for line in file]  # a torn one may open a quotation
    header = rows[0] if rows else []
    return [_in_columns(dict(zip(header, row)), columns) for row in rows[1:] if _is_row(row, header, step)]


def _is_row(row: Sequence[str], header: Sequence[str], last: int) -> bool:
    return len(row) == len(header) and row[0].isdecimal() and len(row[0]) < 10 and int(row[0]) <= last


def _in_columns(row: Mapping[str, str], columns: Sequence[str]) -> list[str]:
    return [row.get(column, "") for column in columns]
