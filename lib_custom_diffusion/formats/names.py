"""One cross-attention projection under the three names it goes by.

key:            model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight   (LDM, SGM; ours)
diffusers path: down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k
kohya name:     lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k, or of the key for SDXL
                lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k

LDM counts one input block a resnet and one a downsampler, after the first convolution, and one output block a resnet.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..attention import CROSS_ATTENTION, KEY_PREFIX

_REST = rf"transformer_blocks[._](\d+)[._]{CROSS_ATTENTION}[._](to_q|to_k|to_v|to_out[._]0)"
_LDM = re.compile(rf"(input_blocks|middle_block|output_blocks)[._](\d+)(?:[._](\d+))?[._]{_REST}")
_DIFFUSERS = re.compile(rf"(?:(down|up)_blocks[._](\d+)|(mid)_block)[._]attentions[._](\d+)[._]{_REST}")


def key_of(name: str, resnets: int = 2) -> str | None:
    """The key of a projection named in any of these ways, without prefix or suffix, dots or underscores; else None."""
    ldm = _LDM.fullmatch(name)
    if ldm is not None:
        side, number, place, depth, leaf = ldm.groups()
        block = f"{side}.{number}" if place is None else f"{side}.{number}.{place}"
        return _key(block, depth, leaf)
    found = _DIFFUSERS.fullmatch(name)
    if found is None:
        return None
    side, block, mid, layer, depth, leaf = found.groups()
    if mid:
        return _key("middle_block.1", depth, leaf)
    number = int(block) * (resnets + 1) + int(layer)
    return _key(f"input_blocks.{number + 1}.1" if side == "down" else f"output_blocks.{number}.1", depth, leaf)


def _key(block: str, depth: str, leaf: str) -> str:
    leaf = leaf.replace("to_out_0", "to_out.0")
    return f"{KEY_PREFIX}{block}.transformer_blocks.{depth}.{CROSS_ATTENTION}.{leaf}.weight"


_STANDARD_ATTENTIONS = {"down": {0, 1}, "up": {0, 1, 2}}


def is_standard(names: Iterable[str]) -> bool:
    """Whether diffusers' paths among the names can be of a UNet with two resnets a block, as all of SD 1, 2 and SDXL.

    Every block named must have the attentions of such a UNet. Keys are right whatever the UNet, and are not looked at.
    """
    return all(layers == _STANDARD_ATTENTIONS[side] for (side, _), layers in _attentions(names).items())


def may_be_standard(names: Iterable[str]) -> bool:
    """The same where layers may have been left out, as in a LoRA of some blocks.

    False if an attention is beyond those of such a UNet, or if the last on both sides are those of one resnet a block.
    """
    reach: dict[str, int] = {}
    for (side, _), layers in _attentions(names).items():
        reach[side] = max(reach.get(side, 0), *layers)
    last = {side: max(layers) for side, layers in _STANDARD_ATTENTIONS.items()}
    beyond = any(number > last[side] for side, number in reach.items())
    return not beyond and reach != {side: number - 1 for side, number in last.items()}


def _attentions(names: Iterable[str]) -> dict[tuple[str, str], set[int]]:
    """The numbers of the attentions by side ("down" or "up") and block, of the diffusers paths among the names."""
    found: dict[tuple[str, str], set[int]] = {}
    for name in names:
        path = _DIFFUSERS.fullmatch(name)
        if path is not None and path[1]:
            found.setdefault((path[1], path[2]), set()).add(int(path[4]))
    return found


def is_key(name: str) -> bool:
    """Whether a name is made of a key, not of a diffusers path: such a one is right whatever the UNet."""
    return _LDM.fullmatch(name) is not None


def diffusers_path(key: str, resnets: int = 2) -> str:
    """The diffusers path of a key."""
    name = key.removeprefix(KEY_PREFIX).removesuffix(".weight")
    side, number, rest = name.split(".", 2)
    if side == "middle_block":
        return f"mid_block.attentions.0.{rest}"
    _, rest = rest.split(".", 1)
    block, layer = divmod(int(number) - (side == "input_blocks"), resnets + 1)
    return f"{'down' if side == 'input_blocks' else 'up'}_blocks.{block}.attentions.{layer}.{rest}"


def kohya_name(key: str, of_diffusers: bool, resnets: int = 2) -> str:
    """The kohya name, made of the diffusers path as kohya's trainer does for SD 1 and 2, or of the key as for SDXL."""
    name = diffusers_path(key, resnets) if of_diffusers else key.removeprefix(KEY_PREFIX).removesuffix(".weight")
    return f"lora_unet_{name.replace('.', '_')}"
