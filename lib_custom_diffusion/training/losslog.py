"""The record of a training: a CSV file and, on request, TensorBoard."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TextIO

from PIL import Image

from ..storage import write_atomically
from .event_file import EventFile

logger = logging.getLogger(__name__)

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

_PARTS = {
    "_file": "the losses are no longer written down",
    "_events": "TensorBoard's log is no longer written",
    "_recorder": "what follows the training is no longer told of it",
}
"""Of a log, by attribute, and what is told when one of them fails."""


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

    logs: TensorBoard's folder; None without it. recorder: told of the same.

    Rows after `resume_step` are those of a run that was cut off and are dropped; those before are never off the disk.
    The file of another training is not touched before `replace_old`; until then the rows stand beside it.
    A disk that is full costs what is written there, not the training, and so does a recorder that fails: each is told
    once, and then left out.
    """

    def __init__(
        self, folder: Path, resume_step: int, logs: Path | None, table: LossTable, recorder: Recorder | None = None
    ) -> None:
        self._table = table
        self._file: TextIO | None = None
        self._events: EventFile | None = None
        self._recorder = recorder
        self._path = folder / table.name
        self._aside = folder / f".{table.name}.new.tmp"
        if table.every:
            with self._sparing_the_training("_file"):
                folder.mkdir(parents=True, exist_ok=True)
                if not resume_step and self._path.is_file():
                    self._file = self._aside.open("w", newline="", encoding="utf-8")
                    csv.writer(self._file).writerow(table.columns)
                else:
                    self._file = _continued(self._path, table.columns, resume_step)
        if logs is not None:
            with self._sparing_the_training("_events"):
                self._events = EventFile(logs, resume_step + 1)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """One step's NUMBERS."""
        with self._sparing_the_training("_file"):
            if self._file is not None and step % self._table.every == 0:
                csv.writer(self._file).writerow([step, *self._table.row(step, numbers)])
        for part in ("_events", "_recorder"):
            with self._sparing_the_training(part):
                if getattr(self, part) is not None:
                    getattr(self, part).add(step, numbers)

    def add_pictures(self, step: int, pictures: list[Image.Image]) -> None:
        """Validation pictures, which go to TensorBoard and the recorder alone."""
        for part in ("_events", "_recorder"):
            with self._sparing_the_training(part):
                if getattr(self, part) is not None:
                    getattr(self, part).add_pictures(step, pictures)

    def replace_old(self) -> None:
        """Put the rows in the place of the file that was there, if there was one."""
        with self._sparing_the_training("_file"):
            if self._file is not None and self._aside.is_file():
                self._file.close()
                os.replace(self._aside, self._path)
                self._file = self._path.open("a", newline="", encoding="utf-8")

    def flush(self) -> None:
        """Bring what was added to the disk."""
        for part in ("_file", "_events"):
            with self._sparing_the_training(part):
                if getattr(self, part) is not None:
                    getattr(self, part).flush()

    def close(self) -> None:
        """Flush and close the files. Rows of a training that saved nothing are dropped: the old ones still stand."""
        for part in _PARTS:
            with self._sparing_the_training(part):
                if getattr(self, part) is not None:
                    getattr(self, part).close()
        with suppress(OSError):
            self._aside.unlink(missing_ok=True)

    @contextmanager
    def _sparing_the_training(self, part: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # services' libraries all raise their own
            setattr(self, part, None)
            logger.warning("%s: %s. The training goes on", _PARTS[part], error)


def _continued(path: Path, columns: Sequence[str], resume_step: int) -> TextIO:
    """The file opened for rows after a step, those before kept; torn rows and what else is no row are dropped."""
    kept: list[list[str]] = []
    if resume_step and path.is_file():
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            rows = list(csv.reader(line.replace("\0", "") for line in file))
        header = rows[0] if rows else []
        kept = [_in_columns(dict(zip(header, row)), columns) for row in rows[1:] if _is_row(row, header, resume_step)]
    text = io.StringIO(newline="")
    csv.writer(text).writerows([columns, *kept])
    write_atomically(path, text.getvalue().encode())
    return path.open("a", newline="", encoding="utf-8")


def _is_row(row: Sequence[str], header: Sequence[str], resume_step: int) -> bool:
    return len(row) == len(header) and row[0].isdecimal() and int(row[0]) <= resume_step


def _in_columns(row: Mapping[str, str], columns: Sequence[str]) -> list[str]:
    return [row.get(column, "") for column in columns]
