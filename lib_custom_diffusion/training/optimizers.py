"""The optimizers that a training can have, each from the library that people know it by, imported when it is asked for.

Their learning rates are those of the schedules; weight decay is each group's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from .schedule import Schedule

Groups = list[dict[str, Any]]
"""Parameter groups: params and weight_decay."""


def _adamw(groups: Groups, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
    try:
        return torch.optim.AdamW([dict(group) for group in groups], lr=0.0, betas=betas, eps=eps, fused=True)
    except RuntimeError:  # this torch has no fused AdamW for this device
        return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps)


def _adamw8bit(groups: Groups, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
    return import_module("bitsandbytes").optim.AdamW8bit(groups, lr=0.0, betas=betas, eps=eps)


def _prodigy(groups: Groups, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
    return import_module("prodigyopt").Prodigy(groups, lr=1.0, betas=betas, eps=eps, decouple=True)


def _lion(groups: Groups, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
    return import_module("lion_pytorch").Lion(groups, lr=1.0, betas=betas)


def _sgd(groups: Groups, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.0, momentum=betas[0])


@dataclass(frozen=True)
class _Kind:
    make: Callable[[Groups, tuple[float, float], float], torch.optim.Optimizer]
    module: str = "torch"
    package: str = "torch"


_KINDS = {
    "adamw": _Kind(_adamw),
    "adamw8bit": _Kind(_adamw8bit, "bitsandbytes", "bitsandbytes"),
    "prodigy": _Kind(_prodigy, "prodigyopt", "prodigyopt"),
    "lion": _Kind(_lion, "lion_pytorch", "lion-pytorch"),
    "sgd": _Kind(_sgd),
}
OPTIMIZERS = tuple(_KINDS)
_GIVEN = ("lr", "weight_decay")  # numbers of a group that we give it
_LEAST_FACTOR = 0.01
"""Of the rate that prodigy finds by itself; what is less was meant for another optimizer."""


def check_optimizer(name: str, schedules: Sequence[Schedule], label: Callable[[str], str] = str) -> None:
    """Raise UserError if the optimizer's library is not installed, or it cannot have these rates of deltas and vectors.

    label: what the user knows a setting as.
    """
    kind = _KINDS[name]
    if find_spec(kind.module) is None:
        raise UserError(
            f"{label('optimizer')} {name} needs {kind.package}; pip install {kind.package}, or choose adamw"
        )
    if name == "prodigy":
        factors = [rate for schedule in schedules for rate, _ in schedule.pieces if rate]
        trained = {schedule.pieces for schedule in schedules if any(rate for rate, _ in schedule.pieces)}
        if len(trained) > 1 or any(factor < _LEAST_FACTOR for factor in factors):
            rates = f"{label('learning_rate')} and {label('embedding_learning_rate')}"
            raise UserError(
                f"prodigy finds the rates by itself: {rates} are one factor of them, 1 as a rule, not"
                f" {' and '.join(f'{factor:g}' for factor in factors)}"
            )


def make_optimizer(name: str, groups: Groups, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
    """One of OPTIMIZERS; sgd has the first of betas as its momentum. Raises UserError if it cannot be made."""
    try:
        return _KINDS[name].make(groups, betas, eps)
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(f"{_KINDS[name].package} does not work here ({error}); choose adamw") from error


def gradient_scaler(mixed_precision: str, device: torch.device) -> Any:
    """A gradient scaler, which does nothing unless the training is in float16."""
    enabled = mixed_precision == "fp16"
    if hasattr(torch.amp, "GradScaler"):
        return torch.amp.GradScaler(device.type, enabled=enabled)
    return torch.cuda.amp.GradScaler(enabled=enabled)  # torch 2.1, the WebUI's


def check_optimizer_works(name: str, device: torch.device) -> None:
    """Raise UserError if the optimizer cannot be made for parameters on a device."""
    parameter = nn.Parameter(torch.zeros(1, device=device))
    make_optimizer(name, [{"params": [parameter], "weight_decay": 0.0}], (0.9, 0.999), 1e-8)


@dataclass(frozen=True)
class OptimizerState:
    """What an optimizer knows, by the names of its parameters.

    tensors: optimizer.KIND.NAME.
    numbers: those of each parameter, which are no tensors, such as its step.
    groups:  those of each parameter group that it has changed by itself, such as the rate that prodigy has found.
    """

    tensors: dict[str, Tensor]
    numbers: dict[str, dict[str, float]]
    groups: list[dict[str, float]]


def state_of(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> OptimizerState:
    """All that `restore` needs."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, float]] = {}
    for name, parameter in parameters.items():
        own = optimizer.state[parameter]
        tensors |= {f"optimizer.{kind}.{name}": value for kind, value in own.items() if isinstance(value, Tensor)}
        if found := _numbers(own):
            numbers[name] = found
    groups = [
        {kind: value for kind, value in _numbers(group).items()
         if kind not in _GIVEN and optimizer.defaults.get(kind) != value}
        for group in optimizer.param_groups
    ]  # fmt: skip
    return OptimizerState(tensors, numbers, groups)


def restore(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], state: OptimizerState) -> None:
    """Bring an optimizer, new and made alike, to a state. Parameters that were not known to it then stay new.

    parameters: in the optimizer's order.
    """
    known: dict[int, dict[str, Any]] = {}
    for index, name in enumerate(parameters):
        prefix, suffix = "optimizer.", f".{name}"
        own = {key[len(prefix) : -len(suffix)]: value for key, value in state.tensors.items()
               if key.startswith(prefix) and key.endswith(suffix)}  # fmt: skip
        if own:
            known[index] = {**own, **state.numbers.get(name, {})}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": known})
    for group, numbers in zip(optimizer.param_groups, state.groups):
        group.update(numbers)


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Finite numbers among them; an infinite one is none that an optimizer has found, and no JSON."""
    return {
        kind: value
        for kind, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }
