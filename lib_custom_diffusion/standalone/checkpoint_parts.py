"""Parts of a checkpoint, such as its UNet: their tensors, and models that are filled with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import UserError
from .layout import Tensors

_ZERO_AT_FIRST = ("conv_out.weight", "proj_out.weight", "conv2.weight")
"""Layers of UNets that are zero before any training, by diffusers' names."""


def part_of(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors of a part, by their names in it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@contextmanager
def whole(path: Path, part: str) -> Iterator[None]:
    """Within the block a tensor that is not there, or of a shape that does not fit, is a UserError naming the part."""
    try:
        yield
    except (KeyError, IndexError, ValueError, TypeError, StopIteration) as error:
        lacks = f": it lacks {error.args[0]}" if isinstance(error, KeyError) else ""
        raise UserError(f"the {part} of {path} is incomplete, or of another kind{lacks}") from error


def filled(path: Path, part: str, model: nn.Module, find: Callable[[str], Tensor | None]) -> Any:
    """The model with its weights. Raises UserError, which names one, if some are missing or of other shapes."""
    state = {}
    for key, own in model.state_dict().items():
        tensor = find(key)
        if tensor is None:
            raise UserError(f"the {part} of {path} is incomplete: it lacks {key} (by diffusers' name)")
        if not tensor.is_floating_point():
            raise UserError(f"the {part} of {path} is quantized ({tensor.dtype}); give a file in float16 or float32")
        if tensor.squeeze().shape != own.squeeze().shape:
            shapes = f"{tuple(tensor.shape)}, not {tuple(own.shape)}"
            raise UserError(f"the {part} of {path} is of another kind: {key} (by diffusers' name) is {shapes}")
        if not key.endswith(_ZERO_AT_FIRST) and _is_blank(tensor):
            raise UserError(
                f"the {part} of {path} is torn: {key} (by diffusers' name) is nothing but zeros; download it again"
            )
        state[key] = tensor.reshape(own.shape)
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def _is_blank(tensor: Tensor) -> bool:
    """Whether a matrix is nothing but zeros, as where a download had room put aside for it and ended early."""
    return tensor.ndim > 1 and not tensor.flatten()[-64:].float().any() and not tensor.float().any()
