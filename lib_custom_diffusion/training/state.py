"""The state of a training, taken for a save and put back from one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .checkpoints import TrainingState, check_shapes
from .identity import Identity
from .optimizers import OptimizerState, restore, state_of

logger = logging.getLogger(__name__)

WORD = "embedding."
"""What the names of words' parameters begin with."""


def state_taken(
    step: int,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    scaler: Any,
    identity: Identity,
) -> TrainingState:
    """All that a training needs to go on. parameters: by name, in the optimizer's order, as for `put_back`."""
    known = state_of(optimizer, parameters)
    tensors = {**{name: parameter.data for name, parameter in parameters.items()}, **known.tensors}
    return TrainingState(step, tensors, scaler.state_dict(), identity, known.numbers, known.groups)


def put_back(
    state: TrainingState, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, scaler: Any
) -> None:
    """Bring parameters, optimizer and scaler to a save's state.

    Raises UserError for other shapes. What the save does not have is told, and begins anew.
    """
    missing = [name for name in parameters if name not in state.tensors]  # in a training with other settings
    if missing:
        words = [name.removeprefix(WORD) for name in missing if name.startswith(WORD)]
        what = [*words, "the layers"] if len(missing) > len(words) else words
        logger.warning("not in the save as they are trained now, and started again: %s", ", ".join(what))
    check_shapes(*({name: each.shape for name, each in of.items()} for of in (state.tensors, parameters)))
    for name, parameter in parameters.items():
        if name not in missing:
            parameter.data.copy_(state.tensors[name])
    restore(optimizer, parameters, OptimizerState(state.tensors, state.optimizer_numbers, state.optimizer_groups))
    if state.scaler:
        scaler.load_state_dict(state.scaler)
