"""The record of a training: loss.csv and, on request, TensorBoard."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .errors import UserError

COLUMNS = ("step", "loss", "instance_loss", "prior_loss", "learning_rate", "embedding_learning_rate")


class LossLog:
    """Appends rows to FOLDER/loss.csv, and the same scalars and validation pictures to TensorBoard.

    Rows after `resume_step` are those of a run that was cut off and are dropped.
    """

    def __init__(self, folder: Path, resume_step: int, tensorboard: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "loss.csv"
        kept = []
        if resume_step and path.is_file():
            with path.open(newline="") as file:
                kept = [row for row in list(csv.reader(file))[1:] if row and int(row[0]) <= resume_step]
        self._file = path.open("w", newline="")
        self._rows = csv.writer(self._file)
        self._rows.writerows([COLUMNS, *kept])
        self._writer = _summary_writer(folder / "logs", resume_step) if tensorboard else None

    def add(self, step: int, values: dict[str, float]) -> None:
        """One step's numbers, named as in COLUMNS."""
        self._rows.writerow([step, *(f"{values[column]:.6g}" for column in COLUMNS[1:])])
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def add_pictures(self, step: int, pictures: list[Image.Image]) -> None:
        """Validation pictures, which go to TensorBoard alone."""
        if self._writer is not None:
            self._writer.add_images("validation", np.stack([np.asarray(p) for p in pictures]), step, dataformats="NHWC")

    def flush(self) -> None:
        """Bring what was added to the disk."""
        self._file.flush()
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Flush and close the files."""
        self._file.close()
        if self._writer is not None:
            self._writer.close()


def _summary_writer(folder: Path, resume_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("TensorBoard is not installed; pip install tensorboard, or use --report_to none") from error
    return SummaryWriter(str(folder), purge_step=resume_step + 1)
