"""Pictures drawn by the WebUI as part of a job that can be interrupted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from modules import shared
from PIL import Image
from torch import Tensor

from ..backend import Sampling
from ..errors import Interrupted
from .host_backend import HostBackend


class DrawingBackend(HostBackend):
    """Leaves nothing half-drawn: a batch during which Interrupt was pressed does not count."""

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], sampling: Sampling, vectors: Mapping[str, Tensor]
    ) -> list[Image.Image]:
        """As the WebUI draws them. Raises Interrupted."""
        pictures = super().generate(prompts, seeds, sampling, vectors)
        if shared.state.interrupted:
            raise Interrupted("Interrupted. What was drawn is kept; draw again with the same settings to continue.")
        return pictures
