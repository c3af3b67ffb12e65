"""The settings of the loop: what their values may be, and what follows from them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.training.config import TrainingConfig, rank_of


def test_rates_are_multiplied_by_their_scale() -> None:
    config = TrainingConfig(learning_rate="1e-4:5, 2e-5", embedding_learning_rate="3e-3", learning_rate_scale=10.0)
    of_deltas, of_vectors = (schedule.pieces for schedule in config.schedules())
    assert [rate for rate, _ in of_deltas] == pytest.approx([1e-3, 2e-4])
    assert [rate for rate, _ in of_vectors] == pytest.approx([3e-2])


@pytest.mark.parametrize(("rank", "of_sdxl", "of_others"), [(None, 32, 0), (0, 0, 0), (4, 4, 4)])
def test_deltas_are_full_matrices_but_for_sdxl_unless_a_rank_is_given(
    rank: int | None, of_sdxl: int, of_others: int
) -> None:
    config = TrainingConfig(rank=rank)
    assert (rank_of(config, "sdxl"), rank_of(config, "sd1")) == (of_sdxl, of_others)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"adam_beta1": 1.0}, "adam_beta1 must be 0 or more and below 1, not 1.0"),
        ({"adam_beta1": -0.1}, "adam_beta1 must be 0 or more and below 1, not -0.1"),
        ({"noise_offset": 1.5}, "noise_offset must be 1 or less, not 1.5"),
        ({"vectors_per_token": 76}, "vectors_per_token must be 75 or less, not 76"),
        ({"rank": 1281}, "rank must be 1,280 or less, not 1281"),
        ({"seed": -1}, "seed must be 0 or more, not -1"),
        ({"lr_warmup_steps": -1}, "lr_warmup_steps must be 0 or more, not -1"),
        ({"num_validation_images": 0}, "num_validation_images must be 1 or more, not 0"),
        ({"adam_epsilon": 0.0}, "adam_epsilon must be above 0, not 0.0"),
        ({"learning_rate_scale": 0.0}, "learning_rate_scale must be above 0, not 0.0"),
        ({"text_prior_weight": float("nan")}, "text_prior_weight must be above 0, not nan"),
        ({"lr_scheduler": "step"}, "lr_scheduler is one of constant, linear, cosine, not 'step'"),
        ({"report_to": "mlflow"}, "report_to is one of none, tensorboard, wandb, comet_ml, all, not 'mlflow'"),
    ],
    ids=str,
)
def test_values_beyond_their_range_are_refused_by_the_name_that_the_user_sees(
    settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=re.escape(f"--{said}")):
        TrainingConfig(**settings).check(lambda name: f"--{name}")
