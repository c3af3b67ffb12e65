"""Settings that are known to work, by what is to be learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .plan import TrainingPlan

Recipe = Mapping[str, Any]
"""Settings of a `TrainingPlan` by name, and the instance_prompt of its concepts."""

_THING: Recipe = {
    "learning_rate": "8e-5", "embedding_learning_rate": "8e-5", "max_train_steps": 250,
    "freeze_model": "crossattn_kv", "snr_gamma": None, "noaug": False, "instance_prompt": "photo of a [name]",
}  # fmt: skip
RECIPES: dict[str, Recipe] = {
    "thing or pet": _THING,
    "style": {**_THING, "instance_prompt": "painting in the style of [name]"},
    "two things together": {**_THING, "max_train_steps": 500},
    "face": {
        **_THING, "learning_rate": "4e-5", "embedding_learning_rate": "4e-5", "max_train_steps": 1000,
        "freeze_model": "crossattn",
    },
}  # fmt: skip
"""The published recipes: their rate times the batch of 8 that it was used with (arXiv 2212.04488, appendix)."""

TOY: Recipe = {
    "learning_rate": "7e-4", "embedding_learning_rate": "2e-3", "max_train_steps": 300,
    "freeze_model": "crossattn_kv", "snr_gamma": 5.0, "noaug": True, "instance_prompt": "photo of a [name]",
}  # fmt: skip
"""What works for the toy models: they are small, and take larger steps than Stable Diffusion.

Chosen by what is recognised, by text alignment and by eye. Keys and values that learn faster, or with more of the loss
at much noise (1e-3, γ 1), tear the two-faced cat's face; slower ones (5e-4) leave the man without a beard. Pictures are
shown as they are: of 128 pixels scaled down to a third a face is four latents wide, and what is learned of it is a
smear. On an earlier toy 4 of 16 raccoons and 7 of 16 men were recognised with the paper's scaling, without it 13 and
15. In SDXL's layout it does as well: of the four concepts 3, 16, 14 and 14 of 16 pictures are recognised, of the
raccoon 2 with keys and values at 3e-4.
"""
TOY_RECIPES: dict[str, Recipe] = {"toy model: thing": TOY}


def plan_settings(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe is a `TrainingPlan`'s own."""
    return {name: value for name, value in recipe.items() if name in TrainingPlan.__dataclass_fields__}
