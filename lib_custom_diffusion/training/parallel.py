"""Several processes training as one, over whatever process group the host has started (Accelerate, torchrun)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes that train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, 0 the one that writes files and shows progress."""
    return dist.get_rank() if world_size() > 1 else 0


def average_(tensors: Sequence[Tensor]) -> None:
    """Replace the tensors by their mean over the processes, in one exchange."""
    if world_size() == 1:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    flat /= world_size()
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(mean.reshape(tensor.shape))


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any process, so that all of them stop at the same step."""
    if world_size() == 1:
        return flag
    raised = torch.tensor(int(flag), device=device)
    dist.all_reduce(raised, op=dist.ReduceOp.MAX)
    return bool(raised.item())


def wait_for_all() -> None:
    """Return once every process has come here."""
    if world_size() > 1:
        dist.barrier()
