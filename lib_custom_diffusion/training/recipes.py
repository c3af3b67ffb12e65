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
    "learning_rate": "2e-3", "embedding_learning_rate": "5e-3", "max_train_steps": 300,
    "freeze_model": "crossattn_kv", "snr_gamma": 1.0, "noaug": True, "instance_prompt": "photo of a [name]",
}  # fmt: skip
"""What works for the toy models: they are small, and take larger steps than Stable Diffusion.

Chosen by what is recognised, by text alignment and by eye, on the bundled concepts. Beside it stood keys and values at
7e-4 with the word at 2e-3 and γ 5: raccoons with torn mouths; the word at 1e-2: a raccoon or two more, but less of the
prompt in their pictures, and more faces torn; γ 5 with it: twice the drift, and men without a cheek. From the word
"bear" instead of "ktn" the house beside the raccoon became a bear as well. Batches of 8 were no better. Pictures are
shown as they are: of 128 pixels scaled down to a third a face is four latents wide, and what is learned of it is a
smear.
"""
TOY_RECIPES: dict[str, Recipe] = {"toy model: thing": TOY}


def plan_settings(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe is a `TrainingPlan`'s own."""
    return {name: value for name, value in recipe.items() if name in TrainingPlan.__dataclass_fields__}
