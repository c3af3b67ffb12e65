"""Pictures drawn as part of a job: something is done before each step of the sampler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..diffusers_backend import DiffusersBackend


@contextmanager
def before_each_step(backend: DiffusersBackend, do: Callable[[], None]) -> Iterator[None]:
    """Within the block `do` is called before each call of the UNet; what it raises ends the drawing."""
    handle = backend.unet.register_forward_pre_hook(lambda _module, _inputs: do())
    try:
        yield
    finally:
        handle.remove()
