"""The models that the page works with: loaded once, used by one job at a time."""

from __future__ import annotations

import threading

import torch

from ..diffusers_backend import DiffusersBackend
from ..models import best_device, load_model


class Models:
    """Loaded models by name. Whoever computes on one holds `lock`."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._loaded: dict[str, DiffusersBackend] = {}

    def get(self, name: str) -> DiffusersBackend:
        """The model, loaded if it is not yet: in half precision on a GPU. Raises UserError as `load_model` does."""
        if name not in self._loaded:
            device = best_device()
            dtype = torch.float16 if device.type == "cuda" else torch.float32
            self._loaded[name] = load_model(name, dtype, device)
        return self._loaded[name]
