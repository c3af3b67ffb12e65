"""The benchmark of ranks compares what it says it does."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from lib_custom_diffusion.algebra.factors import Factors
from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.training.plan import TrainingPlan


def test_full_matrices_stand_beside_their_best_cut_and_trainings_of_each_rank(
    benchmark_script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = benchmark_script("ranks")
    key = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    full = Delta({key: torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.5]))}, {"<new1>": torch.ones(1, 4)})
    asked: list[int | None] = []

    def learned(backend: object, plan: TrainingPlan) -> Delta:
        asked.append(plan.rank)
        return full

    monkeypatch.setattr(module, "learned", learned)
    found = dict(module.ways(None, TrainingPlan(), [1, 2]))
    assert list(found) == ["full", "cut to 1", "rank 1", "cut to 2", "rank 2"] and asked == [0, 1, 2]
    cut = found["cut to 2"].entries[key]
    assert isinstance(cut, Factors) and cut.us.shape[1] == 2
    torch.testing.assert_close(cut.dense(), torch.diag(torch.tensor([3.0, 2, 0, 0])), atol=1e-2, rtol=0)
    assert torch.equal(found["cut to 2"].embeddings["<new1>"], torch.ones(1, 4))
