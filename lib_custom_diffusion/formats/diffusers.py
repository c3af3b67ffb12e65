"""What diffusers' `train_custom_diffusion.py` leaves, and `unet.load_attn_procs` reads.

`pytorch_custom_diffusion_weights.safetensors` (or .bin): full weights under
`down_blocks.….attn2.processor.to_k_custom_diffusion.weight`, likewise to_v and, if trained, to_q and
`to_out_custom_diffusion.0.weight` and `.bias`. Self-attention processors have no weights: an empty dict in a .bin; a
safetensors file cannot hold one, but the loader takes any value of length 0 for it, and refuses a file that lacks some
processor. Tokens are in files of their own (`embeddings`).
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from ..algebra.blending import dense
from ..attention import CROSS_ATTENTION, reads_text
from ..delta import Delta, Entry
from ..errors import UserError
from ..reading import Document, matrix
from ..storage import safetensors_bytes
from .base import Base, difference, needed
from .imported import Imported
from .names import diffusers_path, key_of

NAMES = {"diffusers": "pytorch_custom_diffusion_weights.safetensors"}
_WEIGHT = re.compile(r"(.*attn2)\.processor\.(to_[qkv]|to_out)_custom_diffusion(?:\.0)?\.weight")


def recognises(document: Document) -> bool:
    return any("_custom_diffusion." in str(name) for name in document.content)


def read(document: Document, base: Base | None) -> Imported:
    """Raises UserError without a base, since weights are full ones, or if it has other layers."""
    base = needed(base, "diffusers' file")
    entries: dict[str, Entry] = {}
    dropped = []
    for name, value in document.content.items():
        found = _WEIGHT.fullmatch(str(name))
        leaf = f"{found[2]}.0" if found and found[2] == "to_out" else found[2] if found else ""
        key = key_of(f"{found[1]}.{leaf}", base.resnets) if found else None
        if key is not None:
            entries[key] = difference(key, matrix(str(name), value), base)
        elif not (isinstance(value, (dict, Tensor)) and len(value) == 0):
            dropped.append(str(name))
    if not entries:
        raise UserError("it has no weights of cross-attention")
    return Imported(Delta(entries), dropped)


def write(delta: Delta, base: Base | None, kind: str) -> dict[str, bytes]:
    """Full weights of all cross-attention layers of the base: the loader wants all, changed or not."""
    base = needed(base, "diffusers' format", architecture=delta.provenance.architecture)
    text_alone = all(reads_text(key) for key in delta.entries)
    for key, entry in delta.entries.items():
        base.weight(key, dense(entry))
    tensors: dict[str, Tensor] = {}
    for key, weight in base.weights.items():
        if text_alone and not reads_text(key):
            continue
        path, _, leaf = diffusers_path(key, base.resnets).partition(f".{CROSS_ATTENTION}.")
        name = f"{path}.{CROSS_ATTENTION}.processor.{leaf.replace('to_out.0', 'to_out')}_custom_diffusion"
        name += ".0" if leaf == "to_out.0" else ""
        tensors[f"{name}.weight"] = weight + dense(delta.entries[key]) if key in delta.entries else weight.clone()
        if leaf == "to_out.0" and key in base.biases:
            tensors[f"{name}.bias"] = base.biases[key].clone()
        tensors[f"{path}.attn1.processor"] = torch.zeros(0)
    return {NAMES[kind]: safetensors_bytes(tensors, {"format": "pt"})}
