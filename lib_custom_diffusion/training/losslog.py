"""The record of a training: a CSV file and, on request, TensorBoard."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
from PIL import Image

from ..errors import UserError
from ..storage import write_atomically

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
    A disk that is full costs the log, not the training: what cannot be written is told once, and then left out.
    """

    def __init__(
        self, folder: Path, resume_step: int, logs: Path | None, table: LossTable, recorder: Recorder | None = None
    ) -> None:
        self._table = table
        self._file: TextIO | None = None
        self._writer: Any = None
        self._path = folder / table.name
        self._aside = folder / f".{table.name}.new.tmp"
        make_writer = _summary_writer() if logs is not None else None
        self._recorder = recorder
        with self._sparing_the_training():
            folder.mkdir(parents=True, exist_ok=True)
            if table.every:
                if not resume_step and self._path.is_file():
                    self._file = self._aside.open("w", newline="", encoding="utf-8")
                    csv.writer(self._file).writerow(table.columns)
                else:
                    self._file = _continued(self._path, table.columns, resume_step)
            if make_writer is not None:
                self._writer = make_writer(str(logs), purge_step=resume_step + 1)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """One step's NUMBERS."""
        if self._recorder is not None:
            self._recorder.add(step, numbers)
        with self._sparing_the_training():
            if self._file is not None and step % self._table.every == 0:
                csv.writer(self._file).writerow([step, *self._table.row(step, numbers)])
            if self._writer is not None:
                for name, value in numbers.items():
                    self._writer.add_scalar(name, value, step)

    def add_pictures(self, step: int, pictures: list[Image.Image]) -> None:
        """Validation pictures, which go to TensorBoard and the recorder alone."""
        if self._recorder is not None:
            self._recorder.add_pictures(step, pictures)
        with self._sparing_the_training():
            if self._writer is not None:
                stacked = np.stack([np.asarray(picture) for picture in pictures])
                self._writer.add_images("validation", stacked, step, dataformats="NHWC")

    def replace_old(self) -> None:
        """Put the rows in the place of the file that was there, if there was one."""
        with self._sparing_the_training():
            if self._file is not None and self._aside.is_file():
                self._file.close()
                os.replace(self._aside, self._path)
                self._file = self._path.open("a", newline="", encoding="utf-8")

    def flush(self) -> None:
        """Bring what was added to the disk."""
        with self._sparing_the_training():
            if self._file is not None:
                self._file.flush()
            if self._writer is not None:
                self._writer.flush()

    def close(self) -> None:
        """Flush and close the files. Rows of a training that saved nothing are dropped: the old ones still stand."""
        if self._recorder is not None:
            self._recorder.close()
        with self._sparing_the_training():
            if self._file is not None:
                self._file.close()
            self._aside.unlink(missing_ok=True)
            if self._writer is not None:
                self._writer.close()

    @contextmanager
    def _sparing_the_training(self) -> Iterator[None]:
        try:
            yield
        except (OSError, UserError) as error:
            self._file = self._writer = None
            logger.warning("the losses are no longer written down: %s. The training goes on", error)


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


def _summary_writer() -> Callable[..., Any]:
    """TensorBoard's writer. Raises UserError if it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("TensorBoard is not installed; pip install tensorboard, or use --report_to none") from error
    return SummaryWriter
