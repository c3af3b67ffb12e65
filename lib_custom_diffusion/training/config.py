"""The settings of a training loop, and which of them no training can have."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..attention import SELECTIONS, check_blocks
from ..backend import MOST_SEED
from ..errors import UserError, check_range
from ..text_features import read_captions
from ..tokens import check_initializers, file_name
from .optimizers import OPTIMIZERS, check_optimizer
from .prior import PRIORS
from .schedule import SHAPES, Schedule

PRECISIONS = {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Of the frozen model, by accelerate's names; None is that of its weights."""
RANKS = {"sdxl": 32}
"""Of the deltas of models whose full matrices are many: SDXL's keys and values have 341 million numbers, 14.5 at rank
32. Those of other models are full matrices."""
# Where a training may be followed, besides its CSV file.
REPORTS = ("none", "tensorboard", "wandb", "comet_ml", "all")
_CHOICES = {
    "freeze_model": tuple(SELECTIONS), "lr_scheduler": SHAPES, "prior": PRIORS, "mixed_precision": tuple(PRECISIONS),
    "report_to": REPORTS, "optimizer": OPTIMIZERS,
}  # fmt: skip
_RANGES: dict[str, tuple[float, float]] = {
    "vectors_per_token": (1, 75), "max_train_steps": (1, 10_000_000), "train_batch_size": (1, 1_000_000),
    "gradient_accumulation_steps": (1, 10_000), "checkpointing_steps": (1, 10_000_000),
    "checkpoints_total_limit": (1, 1_000_000), "validation_steps": (1, 10_000_000), "num_validation_images": (1, 100),
    "lr_warmup_steps": (0, 10_000_000), "prior_loss_weight": (0, 1000), "adam_weight_decay": (0, 1000),
    "seed": (0, MOST_SEED), "rank": (0, 1280), "noise_offset": (0, 1),
}  # fmt: skip
"""The least and the most that a setting may be. A text has room for 75 vectors."""


@dataclass(frozen=True)
class TrainingConfig:
    """The settings of a training, named as in diffusers' script where it has them.

    Learning rates are written as `Schedule.parse` reads them, and multiplied by `learning_rate_scale`. The default is
    the published recipe, 1e-5 times the batch of 8 that it was used with. Weight decay pulls deltas towards zero, that
    is towards the base model; vectors do not decay. `optimizer` is one of those in `optimizers`. `prior` and the two
    settings after it are those of `prior.text_prior`: what preserves the model without regularization pictures, or
    beside them. `rank` is that of `injection.TrainableDelta`, by RANKS if None. `noise_offset` is how much noise is
    added that is the same all over a channel, so that very dark and bright pictures can be learned; 0.05 to 0.1 are
    usual. Batches count pictures of the concepts, per process; steps are the optimizer's.
    """

    modifier_token: tuple[str, ...] = ("<new1>",)
    initializer_token: tuple[str, ...] = ("ktn",)
    vectors_per_token: int = 1
    freeze_model: str = "crossattn_kv"
    train_blocks: tuple[str, ...] = ()
    rank: int | None = None
    learning_rate: str = "8e-5"
    embedding_learning_rate: str = "8e-5"
    learning_rate_scale: float = 1.0
    lr_scheduler: str = "constant"
    lr_warmup_steps: int = 0
    max_train_steps: int = 250
    train_batch_size: int = 4
    gradient_accumulation_steps: int = 1
    prior: str = PRIORS[0]
    text_prior_weight: float = 0.1
    prior_captions: str = ""
    prior_loss_weight: float = 1.0
    snr_gamma: float | None = None
    noise_offset: float = 0.0
    optimizer: str = OPTIMIZERS[0]
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_weight_decay: float = 1e-2
    adam_epsilon: float = 1e-8
    max_grad_norm: float | None = 1.0
    max_grad_value: float | None = None
    mixed_precision: str = "no"
    gradient_checkpointing: bool = False
    checkpointing_steps: int = 250
    checkpoints_total_limit: int | None = None
    validation_prompt: str | None = None
    validation_steps: int = 50
    num_validation_images: int = 2
    report_to: str = "none"
    seed: int = 42

    def check(self, label: Callable[[str], str] = str) -> None:
        """Raise UserError for a value that no training can have, or a file of captions that cannot be read.

        label: what the user knows a setting as.
        """
        for name, (low, high) in _RANGES.items():
            check_range(self, name, low, high, label)
        for name in ("snr_gamma", "adam_epsilon", "max_grad_norm", "max_grad_value", "learning_rate_scale",
                     "text_prior_weight"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{label(name)} must be above 0, not {value}")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{label(name)} must be 0 or more and below 1, not {getattr(self, name)}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UserError(f"{label(name)} is one of {', '.join(choices)}, not {getattr(self, name)!r}")
        for name in ("learning_rate", "embedding_learning_rate"):
            try:
                self._schedule(getattr(self, name))
            except UserError as error:
                raise UserError(f"{label(name)}: {error}") from error
        if not any(rate for schedule in self.schedules() for rate, _ in schedule.pieces):
            raise UserError(
                f"nothing would be learned: {label('learning_rate')} and {label('embedding_learning_rate')} are 0"
            )
        check_optimizer(self.optimizer, self.schedules(), label)
        for token in self.modifier_token:
            file_name(token)
        check_initializers(self.modifier_token, self.initializer_token)
        check_blocks(self.train_blocks)
        if self.prior_captions:
            read_captions(Path(self.prior_captions))

    def _schedule(self, rate: str) -> Schedule:
        return Schedule.parse(rate, self.lr_scheduler, self.lr_warmup_steps, self.learning_rate_scale)

    def schedules(self) -> list[Schedule]:
        """The learning rates of deltas and of vectors. Raises UserError as `Schedule.parse` does."""
        return [self._schedule(rate) for rate in (self.learning_rate, self.embedding_learning_rate)]


def rank_of(config: TrainingConfig, architecture: str) -> int:
    """The rank of the deltas of a model, by its `attention.architecture`; 0 for full matrices."""
    return RANKS.get(architecture, 0) if config.rank is None else config.rank


def autocast(mixed_precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Within the block the frozen model computes in a precision, one of PRECISIONS."""
    dtype = PRECISIONS[mixed_precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def check_precision(mixed_precision: str, device: torch.device, label: Callable[[str], str] = str) -> None:
    """Raise UserError for a precision that the device cannot train in. label: what the user knows a setting as."""
    if mixed_precision == "fp16" and device.type == "cpu":
        raise UserError(f"{label('mixed_precision')} fp16 needs a GPU; use bf16 or no")
    if mixed_precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise UserError(f"{label('mixed_precision')} bf16 needs a newer GPU than this; use fp16 or no")
