"""Pictures drawn as part of a job: their steps are counted, and Interrupt is heard between two of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ...ui.utilities import Show
from ..diffusers_backend import DiffusersBackend


@contextmanager
def steps_shown(backend: DiffusersBackend, show: Show, total: int, what: str) -> Iterator[None]:
    """Within the block, each call of the UNet is a step of `total`; `show` may raise Interrupted at any."""
    done = 0

    def step(_module: Any, _inputs: Any) -> None:
        nonlocal done
        show(done, total, what)
        done += 1

    handle = backend.unet.register_forward_pre_hook(step)
    try:
        yield
    finally:
        handle.remove()
