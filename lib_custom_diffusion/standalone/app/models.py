"""The model that the page works with: loaded once, used by one job at a time, and exchanged for another."""

from __future__ import annotations

import threading
from pathlib import Path

import torch

from ...attention import is_toy
from ...delta import SUFFIX
from ...errors import UserError
from ...storage import visible
from ..diffusers_backend import DiffusersBackend
from ..models import CHECKPOINT_SUFFIXES, best_device, load_model
from ..toy import TOYS


class Models:
    """The model that the page works with, one at a time. Whoever computes on it, or chooses another, holds `lock`.

    models_dir: a folder with checkpoints to choose from. The other arguments are those of `load_model`, for the model
    of that name alone.
    """

    def __init__(
        self, name: str, models_dir: Path | None = None, vae: Path | None = None, prediction_type: str | None = None
    ) -> None:
        self.name, self._started_with = name, name
        self._models_dir, self._vae, self._prediction_type = models_dir, vae, prediction_type
        self.lock = threading.Lock()
        self.loaded: DiffusersBackend | None = None

    def get(self) -> DiffusersBackend:
        """The model, loaded if it is not yet: in half precision on a GPU. Raises UserError as `load_model` does."""
        if self.loaded is None:
            self.loaded = self._load(self.name, self.name == self._started_with)
        return self.loaded

    @property
    def small(self) -> bool:
        """Whether it is a toy, by whatever name, or another model to try things with: its presets are others."""
        return self.name in TOYS if self.loaded is None else is_toy(self.loaded.architecture)

    def names(self) -> list[str]:
        """What can be chosen: the model that the app was started with, the toys, and what is in the models' folder."""
        return list(dict.fromkeys([self._started_with, *TOYS, *self._in_folder()]))

    def choose(self, name: str) -> None:
        """Load the model of that name in the place of the other. Raises UserError, and keeps it, if that cannot be."""
        found = self._in_folder()
        if name not in self.names():
            raise UserError(f"there is no model {name!r} to choose")
        self.loaded = self._load(str(found.get(name, name)), name == self._started_with)
        self.name = name

    def _load(self, name: str, as_started: bool) -> DiffusersBackend:
        device = best_device()
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        vae, prediction_type = (self._vae, self._prediction_type) if as_started else (None, None)
        return load_model(name, dtype, device, vae, prediction_type)

    def _in_folder(self) -> dict[str, Path]:
        """Checkpoint files and folders in diffusers' layout, by their paths below the models' folder."""
        found: dict[str, Path] = {}
        if self._models_dir is None:
            return found
        for root, folders, files in visible(self._models_dir):
            below = root.relative_to(self._models_dir)
            if "model_index.json" in files:
                found[below.as_posix()] = root
                folders.clear()
                continue
            for file in files:
                if file.lower().endswith(CHECKPOINT_SUFFIXES) and SUFFIX not in file:
                    found[(below / file).as_posix()] = root / file
        return found
