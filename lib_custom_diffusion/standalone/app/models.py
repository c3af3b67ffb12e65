"""The models that the page works with: loaded once, used by one job at a time."""

from __future__ import annotations

import threading
from pathlib import Path

import torch

from ..diffusers_backend import DiffusersBackend
from ..models import best_device, load_model


class Models:
    """Loaded models by name. Whoever computes on one holds `lock`. The arguments are those of `load_model`."""

    def __init__(self, vae: Path | None = None, prediction_type: str | None = None) -> None:
        self._vae, self._prediction_type = vae, prediction_type
        self.lock = threading.Lock()
        self._loaded: dict[str, DiffusersBackend] = {}

    def loaded(self, name: str) -> DiffusersBackend | None:
        """The model, if it is loaded."""
        return self._loaded.get(name)

    def get(self, name: str) -> DiffusersBackend:
        """The model, loaded if it is not yet: in half precision on a GPU. Raises UserError as `load_model` does."""
        if name not in self._loaded:
            device = best_device()
            dtype = torch.float16 if device.type == "cuda" else torch.float32
            self._loaded[name] = load_model(name, dtype, device, self._vae, self._prediction_type)
        return self._loaded[name]
