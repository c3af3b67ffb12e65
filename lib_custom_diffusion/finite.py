"""Which weights of a model are no numbers, as a merge in half precision can leave them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """The names of tensors that have values which are NaN or infinite. Each is read once, and nothing is copied."""
    names, extremes = [], []
    for name, tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            names.append(name)
            extremes.append(_extremes(tensor.detach()))
    if not names:
        return []
    sound = torch.isfinite(torch.stack(extremes)).all(dim=1).tolist()
    return [name for name, each in zip(names, sound) if not each]


def _extremes(tensor: Tensor) -> Tensor:
    """The least and the greatest value, (2,): NaN is both where there is one."""
    if not _compares(tensor.dtype, tensor.device.type):
        tensor = tensor.to(torch.bfloat16)
    return torch.stack(torch.aminmax(tensor)).float()


@cache
def _compares(dtype: torch.dtype, device: str) -> bool:
    """Whether torch can: not values of one byte, and before 2.2 not float16 on a CPU."""
    try:
        torch.aminmax(torch.zeros(1, device=device).to(dtype))
    except RuntimeError:
        return False
    return True


def named(names: list[str]) -> str:
    """The subject and verb of a sentence that says that they hold values which are no numbers."""
    [first, *more] = names
    return f"{len(names)} of its tensors, such as {first}, hold" if more else f"{first} holds"
