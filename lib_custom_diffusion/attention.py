"""Which cross-attention projections a UNet has, and what they are called.

Three layouts name the same layers differently: LDM (Stable Diffusion 1 and 2 in the WebUI) and SGM (SDXL there) count
`input_blocks`, `middle_block` and `output_blocks`; diffusers has `down_blocks`, `mid_block` and `up_blocks`. A
projection's key is always the WebUI's parameter name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UserError
from .hooks import Hooks

SELECTIONS = {
    "crossattn_kv": ("k", "v"),
    "crossattn": ("q", "k", "v", "out"),
    "k": ("k",),
    "v": ("v",),
}
"""What `projections` can select, by name, and the roles each stands for. The first is the paper's choice."""

READ_TEXT = ("k", "v")
"""Roles of the projections whose input is text features."""

BLOCKS = ("down", "mid", "up")

KEY_PREFIX = "model.diffusion_model."
CROSS_ATTENTION = "attn2"
"""What every layout calls the cross-attention of a transformer block; attn1 is its self-attention."""

_ROLES = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "out"}
_ATTENTION = re.compile(rf"(?:^|\.)transformer_blocks\.\d+\.{CROSS_ATTENTION}$")
_LEAF = re.compile(rf"{_ATTENTION.pattern[:-1]}\.({'|'.join(map(re.escape, _ROLES))})$")
# Around a UNet torch.compile, DistributedDataParallel, FSDP and peft put themselves, and peft around a layer.
_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|module|_fsdp_wrapped_module|base_model\.model)\.|\.(?:base_layer|_orig_mod)(?=\.|$)"
)
_LDM_BLOCKS = {"input_blocks": "down", "middle_block": "mid", "output_blocks": "up"}


TEXT_KEY_ENDING = f"{CROSS_ATTENTION}.to_k.weight"
"""How the key of every to_k ends; there is one in each cross-attention."""


def role(key: str) -> str:
    """The role that a projection has by its key; "" for a key of anything else."""
    leaf = key.rpartition(f".{CROSS_ATTENTION}.")[2].removesuffix(".weight")
    return _ROLES.get(leaf, "")


def reads_text(key: str) -> bool:
    """Whether the projection of that key is a to_k or a to_v."""
    return role(key) in READ_TEXT


def beside_to_v(key: str) -> str:
    """The key of the to_k that reads the same as a to_v; any other key itself."""
    return key.replace(f".{CROSS_ATTENTION}.to_v.", f".{CROSS_ATTENTION}.to_k.")


def short_name(key: str) -> str:
    """A key for people: "input_blocks.1.1.0.to_k"."""
    name = key.removeprefix(KEY_PREFIX).removesuffix(".weight")
    return name.replace("transformer_blocks.", "").replace(f"{CROSS_ATTENTION}.", "")


@dataclass(frozen=True)
class Projection:
    """One Linear layer of a cross-attention.

    key:    the WebUI's name of its weight, `model.diffusion_model.….attn2.to_k.weight`.
    module: the Linear itself, within whatever peft has put around it.
    role:   "q", "k", "v" or "out".
    block:  "down", "mid" or "up".
    """

    key: str
    role: str
    block: str
    module: nn.Linear

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight."""
        return self.module.out_features, self.module.in_features


def check_blocks(blocks: Sequence[str]) -> None:
    """Raise UserError for what is neither a block nor a pattern that some UNet's key can match."""
    for block in blocks:
        literal = re.split(r"[*?\[]", block, maxsplit=1)[0]
        may_match = literal.startswith(KEY_PREFIX) or (literal != block and KEY_PREFIX.startswith(literal))
        if block not in BLOCKS and not may_match:
            raise _no_layer_in(block, "output_blocks.9.1")


def _no_layer_in(block: str, example: str) -> UserError:
    return UserError(
        f"no cross-attention layer is in {block!r}; choose from {', '.join(BLOCKS)} or give a pattern such as"
        f" *{example}.*"
    )


def projections(unet: nn.Module, select: str = "crossattn_kv", blocks: Sequence[str] = ()) -> dict[str, Projection]:
    """The selected cross-attention projections of a UNet by key, in the network's order.

    `select` is one of SELECTIONS. `blocks` keeps only those whose block is named ("down", "mid", "up") or whose key
    matches a pattern such as "*output_blocks.9.*"; empty keeps all.

    Raises UserError for an unknown selection, a block or pattern that selects nothing, or a network without
    cross-attention.
    """
    if select not in SELECTIONS:
        raise UserError(f"unknown selection {select!r} of what to train; choose one of {', '.join(SELECTIONS)}")
    every = list(_cross_attention(unet))
    if not every:
        raise UserError("this UNet has no cross-attention layers (attn2.to_k, attn2.to_v) to train")
    for block in blocks:
        if not any(_in_block(projection, block) for projection in every):
            raise _no_layer_in(block, every[0].key.removeprefix(KEY_PREFIX).split(".transformer_blocks")[0])
    return {
        projection.key: projection
        for projection in every
        if projection.role in SELECTIONS[select]
        and (not blocks or any(_in_block(projection, block) for block in blocks))
    }


def _in_block(projection: Projection, block: str) -> bool:
    return projection.block == block if block in BLOCKS else fnmatchcase(projection.key, block)


def _cross_attention(unet: nn.Module) -> Iterator[Projection]:
    root = next((module for module in unet.modules() if "down_blocks" in module._modules), None)
    offsets = None if root is None else _diffusers_offsets(root)
    for full_path, module in unet.named_modules():
        path = _WRAPPERS.sub("", full_path)
        leaf = _LEAF.search(path)
        if leaf is None or not isinstance(module, nn.Linear):
            continue
        name = path if offsets is None else _ldm_path(path, offsets)
        block = _LDM_BLOCKS.get(name.split(".", 1)[0])
        if block is not None:  # some transformers without a UNet's blocks call their layers attn2 too
            yield Projection(f"{KEY_PREFIX}{name}.weight", _ROLES[leaf[1]], block, module)


def _diffusers_offsets(unet: nn.Module) -> dict[str, list[int]]:
    """Number of the LDM block that holds resnet 0 of each diffusers block.

    LDM counts one input block a resnet and one a downsampler, after the first convolution; an upsampler shares the
    output block of the resnet before it.
    """
    down = [len(block.resnets) + 1 for block in unet.down_blocks]  # type: ignore[union-attr]
    up = [len(block.resnets) for block in unet.up_blocks]  # type: ignore[union-attr]
    return {"down_blocks": list(accumulate(down, initial=1)), "up_blocks": list(accumulate(up, initial=0))}


def _ldm_path(path: str, offsets: dict[str, list[int]]) -> str:
    if path.startswith("mid_block.attentions.0."):
        return path.replace("mid_block.attentions.0.", "middle_block.1.", 1)
    side, block, _attentions, layer, rest = path.split(".", 4)
    ldm_side = "input_blocks" if side == "down_blocks" else "output_blocks"
    return f"{ldm_side}.{offsets[side][int(block)] + int(layer)}.1.{rest}"


def cross_attentions(unet: nn.Module) -> list[nn.Module]:
    """The modules that hold the projections, in the network's order."""
    return [module for path, module in unet.named_modules() if _ATTENTION.search(_WRAPPERS.sub("", path))]


def refuse_bypassed(attentions: Iterable[nn.Module]) -> None:
    """Raise UserError if a cross-attention computes keys and values without calling its `to_k` and `to_v`.

    Diffusers' attention processors may: after `fuse_qkv_projections`, and those that its own Custom Diffusion makes.
    Whatever acts on the projections would be without effect.
    """
    for attention in attentions:
        processor = getattr(attention, "processor", None)
        if type(processor).__name__.startswith("Fused"):
            raise UserError(
                "keys and values of this UNet are fused, so a delta would have no effect; call"
                " unfuse_qkv_projections() first"
            )
        if hasattr(processor, "to_k_custom_diffusion"):
            raise UserError(
                f"this UNet's attention has keys and values of its own ({type(processor).__name__}), so a delta would"
                " have no effect; call set_default_attn_processor() first"
            )


@contextmanager
def recorded_attention(unet: nn.Module, shares: list[Tensor]) -> Iterator[None]:
    """Within the block, each pass of each cross-attention adds to `shares` how it is divided between text positions.

    That is softmax(q kᵀ / √d) over the heads and latent positions, on average: (batch, text positions), float32 on the
    CPU. It is computed from what to_q and to_k return, whichever way the host itself computes attention.
    """
    hooks = Hooks(hook for attention in cross_attentions(unet) for hook in _recording(attention, shares))
    try:
        yield
    finally:
        hooks.remove()


def _recording(attention: Any, shares: list[Tensor]) -> list[tuple[nn.Module, Callable[..., None]]]:
    queries: list[Tensor] = []

    def keep(_layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        queries[:] = [output]

    def divide(_layer: nn.Module, _inputs: tuple[Tensor, ...], keys: Tensor) -> None:
        query, key = (each.float().unflatten(-1, (attention.heads, -1)) for each in (queries[0], keys))
        logits = torch.einsum("bnhd,bphd->bhnp", query, key) * query.shape[-1] ** -0.5
        shares.append(logits.softmax(dim=-1).mean(dim=(1, 2)).cpu())

    return [(attention.to_q, keep), (attention.to_k, divide)]


_ARCHITECTURES = {(16, 768): "sd1", (16, 1024): "sd2", (70, 2048): "sdxl"}


def architecture(unet: nn.Module) -> str:
    """The word for all models that a delta of this UNet fits: "sd1", "sd2", "sdxl", else one made of its shape.

    Told by the number of cross-attention layers and the width of the text features they read, so both hosts say the
    same of one model.
    """
    return architecture_of(projections(unet, "k"))


def architecture_of(layers: Mapping[str, Projection]) -> str:
    """The same, of a UNet's projections, those of keys among them."""
    keys = [layer for layer in layers.values() if layer.role == "k"]
    width = keys[0].module.in_features
    return _ARCHITECTURES.get((len(keys), width), f"crossattn-{len(keys)}x{width}")


_TOY_XL = "crossattn-14x256"
_FAMILIES = {"sd1": "SD 1", "sd2": "SD 2", "sdxl": "SDXL", _TOY_XL: "toy model of SDXL's layout"}
SDXL_TEXT_WIDTHS = (768, 1280)
"""Of SDXL's text encoders, CLIP's and OpenCLIP's."""
_TEXT_WIDTHS = {"sdxl": SDXL_TEXT_WIDTHS, _TOY_XL: (128, 128)}
_LEAST_TEXT_WIDTH = 512  # of CLIP's text encoders; those of small models to try things with are narrower


def family(architecture: str) -> str:
    """What people call the models of an `architecture`; one without a name of its own keeps its word."""
    return _FAMILIES.get(architecture, "toy model" if is_toy(architecture) else architecture)


def is_toy(architecture: str) -> bool:
    """Whether the models of an `architecture` are small ones, to try things with."""
    shape = re.fullmatch(r"crossattn-\d+x(\d+)", architecture)
    return shape is not None and int(shape[1]) < _LEAST_TEXT_WIDTH


def text_widths(architecture: str) -> tuple[int, int] | None:
    """The widths of both text encoders of models that have two, as a word's vectors hold them; None for others."""
    return _TEXT_WIDTHS.get(architecture)
