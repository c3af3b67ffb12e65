"""Names that other programs than LDM's give the parts of a checkpoint, as those of LDM's and Stability's own files.

Text encoders are under transformers' names in what some converters and merges write, and in checkpoints saved by Forge,
whose VAE is `vae.`; SD-Turbo has its one text encoder under SDXL's prefix; Playground v2 has a projection that is laid
out as transformers', beside OpenCLIP's other names. stable-diffusion.cpp writes a diffusers folder, or its parts, into
one file under their names there, behind prefixes. Tensors are not touched, but for one that holds three of OpenCLIP's;
OpenCLIP's layers keep transformers' names behind OpenCLIP's prefix.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import Tensor

from .layout import (
    FIRST_TEXT_PREFIX,
    OPEN_CLIP_PREFIX,
    SECOND_TEXT_PREFIX,
    TEXT_PREFIX,
    UNET_PREFIX,
    VAE_PREFIX,
    Tensors,
    count,
    unet_name,
)

_WRAPPERS = r"(?:model\.|transformer\.)*"
_OLD = r"(?=(?:embeddings|encoder|final_layer_norm)\.)"
"""What follows where `text_model.` was left out, as older versions of transformers did."""
_OF_ALL = ((re.compile(r"vae\.(?=encoder\.|decoder\.|quant_conv\.|post_quant_conv\.)"), VAE_PREFIX),)
_OF_SDXL = (
    *_OF_ALL,
    (re.compile(r"(?:te|text_encoder)\.(?=text_model\.)"), FIRST_TEXT_PREFIX),
    (re.compile(r"(?:te\.1|text_encoder_2)\.(?=text_model\.|text_projection\b)"), SECOND_TEXT_PREFIX),
    (
        re.compile(rf"(?:conditioner\.embedders\.0|text_encoders\.clip_l)\.{_WRAPPERS}(?=text_model\.)"),
        FIRST_TEXT_PREFIX,
    ),
    (re.compile(rf"conditioner\.embedders\.0\.{_WRAPPERS}{_OLD}"), f"{FIRST_TEXT_PREFIX}text_model."),
    (
        re.compile(
            rf"(?:conditioner\.embedders\.1|text_encoders\.clip_g)\.{_WRAPPERS}(?=text_model\.|text_projection\b)"
        ),
        SECOND_TEXT_PREFIX,
    ),
)
_OF_OTHERS = (
    *_OF_ALL,
    (re.compile(r"(?:te|text_encoder)\.(?=text_model\.)"), TEXT_PREFIX),
    (re.compile(r"conditioner\.embedders\.0\.model\."), OPEN_CLIP_PREFIX),
    (re.compile(rf"{re.escape(TEXT_PREFIX)}{_OLD}"), f"{TEXT_PREFIX}text_model."),
    (re.compile(rf"text_encoders\.clip_l\.{_WRAPPERS}(?=text_model\.)"), TEXT_PREFIX),
    (re.compile(rf"(?:cond_stage_model\.model|text_encoders\.clip_h)\.{_WRAPPERS}(?=text_model\.)"), OPEN_CLIP_PREFIX),
)
_THREE_IN_ONE = re.compile(r"(.*\.self_attn\.)in_proj\.(weight|bias)")
_WORDS = "text_model.embeddings.token_embedding.weight"
_WIDTH_OF_OPEN_CLIP = 1024  # of Stable Diffusion 2's text encoder; CLIP's is 768 wide


def under_ldm_names(tensors: Tensors) -> Tensors:
    """The tensors of a checkpoint under the names of `layout`."""
    tensors = _unet_under_ldm_names(tensors)
    names = _OF_SDXL if f"{UNET_PREFIX}label_emb.0.0.weight" in tensors else _OF_OTHERS
    renamed = {
        part: tensor for name, whole in tensors.items() for part, tensor in _one_by_one(_renamed(name, names), whole)
    }
    words = renamed.get(f"{TEXT_PREFIX}{_WORDS}")
    if words is None or words.ndim != 2 or words.shape[1] != _WIDTH_OF_OPEN_CLIP:
        return renamed
    return {
        OPEN_CLIP_PREFIX + name.removeprefix(TEXT_PREFIX) if name.startswith(TEXT_PREFIX) else name: tensor
        for name, tensor in renamed.items()
    }


def _unet_under_ldm_names(tensors: Tensors) -> Tensors:
    """The same with a UNet's tensors under LDM's names, if they are under diffusers' behind a prefix."""
    first = "down_blocks.0.resnets.0.conv1.weight"
    prefix = next((each for each in ("unet.", UNET_PREFIX) if f"{each}{first}" in tensors), None)
    if prefix is None:
        return tensors
    levels = count(tensors, f"{prefix}down_blocks.")
    attend = [count(tensors, f"{prefix}up_blocks.{level}.attentions.") for level in range(levels)]
    config = {
        "block_out_channels": range(levels),
        "layers_per_block": count(tensors, f"{prefix}down_blocks.0.resnets."),
        "up_block_types": ["CrossAttnUpBlock2D" if each else "UpBlock2D" for each in attend],
    }
    return {
        unet_name(name.removeprefix(prefix), config) if name.startswith(prefix) else name: tensor
        for name, tensor in tensors.items()
    }


def _one_by_one(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Query, key and value of an attention, if they are in one tensor under transformers' names; else what is given."""
    found = _THREE_IN_ONE.fullmatch(name)
    if found is None or not tensor.ndim:
        yield name, tensor
        return
    for part, each in zip("qkv", tensor.tensor_split(3), strict=True):
        yield f"{found[1]}{part}_proj.{found[2]}", each


def _renamed(name: str, names: tuple[tuple[re.Pattern[str], str], ...]) -> str:
    for pattern, own in names:
        found = pattern.match(name)
        if found:
            return own + name[found.end() :]
    return name
