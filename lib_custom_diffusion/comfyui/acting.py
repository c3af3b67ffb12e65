"""A delta acting on a model of ComfyUI, by ComfyUI's own patches.

These change the model's weights while it is loaded and put them back when it is used without them; they add up with
LoRAs, and work with weights that are kept in 8 bits or moved to the GPU piece by piece.
"""

from __future__ import annotations

from typing import Any

import comfy.lora
from torch import Tensor

from ..attention import projections
from ..delta import Delta, Factors
from ..errors import UserError


def with_delta(model: Any, delta: Delta, strength: float) -> Any:
    """A clone of the ModelPatcher, with strength · Δ on its cross-attention. Raises UserError if Δ does not fit."""
    delta.check_fits(projections(model.model.diffusion_model, "crossattn"))
    tensors: dict[str, Tensor] = {}
    for key, entry in delta.entries.items():
        if isinstance(entry, Factors):
            tensors[f"{key}.lora_up.weight"], tensors[f"{key}.lora_down.weight"] = entry.us, entry.vh
        else:
            tensors[f"{key}.diff"] = entry
    patches = comfy.lora.load_lora(tensors, {key: key.removeprefix("model.") for key in delta.entries})
    patched = model.clone()
    left_out = set(patches) - set(patched.add_patches(patches, strength))
    if left_out:
        raise UserError(f"the delta does not fit this model: ComfyUI cannot patch its layer {min(left_out)}")
    return patched
