"""The record of a training: a CSV file and, on request, TensorBoard."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image

from ..errors import UserError

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


class LossLog:
    """Appends rows to the CSV file in a folder, and brings the same numbers and validation pictures to TensorBoard.

    Rows after `resume_step` are those of a run that was cut off and are dropped.
    """

    def __init__(self, folder: Path, resume_step: int, tensorboard: bool, table: LossTable) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._table = table
        self._file = _continued(folder / table.name, table.columns, resume_step) if table.every else None
        self._writer = _summary_writer(folder / "logs", resume_step) if tensorboard else None

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """One step's NUMBERS."""
        if self._file is not None and step % self._table.every == 0:
            csv.writer(self._file).writerow([step, *self._table.row(step, numbers)])
        if self._writer is not None:
            for name, value in numbers.items():
                self._writer.add_scalar(name, value, step)

    def add_pictures(self, step: int, pictures: list[Image.Image]) -> None:
        """Validation pictures, which go to TensorBoard alone."""
        if self._writer is not None:
            self._writer.add_images("validation", np.stack([np.asarray(p) for p in pictures]), step, dataformats="NHWC")

    def flush(self) -> None:
        """Bring what was added to the disk."""
        if self._file is not None:
            self._file.flush()
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Flush and close the files."""
        if self._file is not None:
            self._file.close()
        if self._writer is not None:
            self._writer.close()


def _continued(path: Path, columns: Sequence[str], resume_step: int) -> TextIO:
    """The file opened for rows after a step, those before kept."""
    kept = []
    if resume_step and path.is_file():
        with path.open(newline="") as file:
            kept = [row for row in list(csv.reader(file))[1:] if row and int(row[0]) <= resume_step]
    opened = path.open("w", newline="")
    csv.writer(opened).writerows([columns, *kept])
    return opened


def _summary_writer(folder: Path, resume_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("TensorBoard is not installed; pip install tensorboard, or use --report_to none") from error
    return SummaryWriter(str(folder), purge_step=resume_step + 1)
