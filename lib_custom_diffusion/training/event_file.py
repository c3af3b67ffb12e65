"""TensorBoard's file of a training, written at once.

The writer that comes with TensorBoard writes in a thread of its own, which dies with a traceback when the disk is full.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError
from ..storage import is_in_place, put_back

LOGS = Path("logs")
"""Where it goes, from a training's folder."""


def is_for_tensorboard(report_to: str) -> bool:
    """Whether a training writes such a file; with "all" where TensorBoard is installed."""
    return report_to == "tensorboard" or (report_to == "all" and find_spec("tensorboard") is not None)


class EventFile:
    """A new file in a folder, beside those of runs before. Raises OSError where it cannot be written.

    first_step: what older files tell of it and of later steps no longer counts.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        try:
            from torch.utils.tensorboard import RecordWriter, summary
            from torch.utils.tensorboard.writer import Event, SessionLog
        except ImportError as error:
            raise UserError("TensorBoard is not installed; pip install tensorboard, or use --report_to none") from error
        self._event, self._summary = Event, summary
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        self._path, self._writer = folder / name, RecordWriter
        self._open()
        self._write(file_version="brain.Event:2")
        self._write(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers of a step, by name."""
        for name, value in numbers.items():
            self._write(step=step, summary=self._summary.scalar(name, value))

    def add_pictures(self, step: int, pictures: Sequence[Image.Image]) -> None:
        """Pictures of one size."""
        stacked = np.stack([np.asarray(picture) for picture in pictures])
        self._write(step=step, summary=self._summary.image("validation", stacked, dataformats="NHWC"))

    def flush(self) -> None:
        """Bring what was added to the disk; a file that was removed is written again."""
        self._file.flush()
        if not is_in_place(self._file, self._path):
            put_back(self._file, self._path)
            self._file.close()
            self._open()

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        self._file.close()

    def _open(self) -> None:
        self._file = self._path.open("a+b")
        self._records = self._writer(self._file)

    def _write(self, **content: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **content).SerializeToString())
