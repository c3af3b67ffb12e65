"""Adobe's own files (github.com/adobe-research/custom-diffusion).

`delta*.ckpt`: {"state_dict": {LDM key: weight, …, "embed": (tokens, width)}}
`delta.bin`:   {"unet": {diffusers path + ".weight": weight, …}, "modifier_token": {token: vector}}
Weights are full ones, base included; after its compress.py each is {"u": (out, r), "v": (r, in)}, a difference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..algebra.blending import dense
from ..attention import KEY_PREFIX
from ..delta import Delta, Entry, Factors
from ..errors import UserError
from ..reading import Document, archive, matrix, vectors
from .base import Base, difference, give_model, needed, resnets_of
from .embeddings import side_by_side
from .imported import Imported
from .names import diffusers_path, is_standard, key_of

NAMES = {"adobe": "delta.ckpt", "adobe-diffusers": "delta.bin"}
"""What `write` can make, and what the files are called."""


def recognises(document: Document) -> bool:
    content = document.content
    weights = content.get("state_dict", content.get("unet"))
    return isinstance(weights, dict) and any("attn2.to_" in str(name) for name in weights)


def read(document: Document, base: Base | None) -> Imported:
    """Raises UserError for full weights without a base, shapes that do not fit, or layers whose names need one."""
    content = document.content
    weights = content["state_dict"] if "state_dict" in content else content["unet"]
    entries: dict[str, Entry] = {}
    dropped = []
    if base is None and not is_standard(str(name).removesuffix(".weight") for name in weights):
        raise UserError(
            "its layers are not those of Stable Diffusion 1 or 2, and what they are called depends on the model;"
            f" {give_model()} (--model toy if that was the toy model)"
        )
    for name, value in weights.items():
        key = _key(str(name), base)
        if key is None:
            dropped += [] if name == "embed" else [str(name)]
        else:
            entries[key] = _entry(key, value, base)
    return Imported(Delta(entries, _tokens(content, weights)), dropped)


def _key(name: str, base: Base | None) -> str | None:
    if not name.endswith(".weight"):
        return None
    return key_of(name.removeprefix(KEY_PREFIX).removesuffix(".weight"), base.resnets if base else 2)


def _entry(key: str, value: Any, base: Base | None) -> Entry:
    if not isinstance(value, dict):
        return difference(key, matrix(key, value), needed(base, "an Adobe delta that is not compressed"))
    factors = Factors(matrix(f"u of {key}", value.get("u")), matrix(f"v of {key}", value.get("v")))
    if factors.us.shape[1] != factors.vh.shape[0]:
        raise UserError(f"the factors of {key} do not fit: {tuple(factors.us.shape)} and {tuple(factors.vh.shape)}")
    return factors


def _tokens(content: dict[str, Any], weights: dict[str, Any]) -> dict[str, Tensor]:
    named = content.get("modifier_token", {})
    if not isinstance(named, dict):
        raise UserError("modifier_token should be vectors by token")
    if "embed" in weights:
        return {f"<new{index}>": row[None] for index, row in enumerate(vectors("embed", weights["embed"]), start=1)}
    return {str(token): _word(str(token), value) for token, value in named.items()}


def _word(token: str, value: Any) -> Tensor:
    """Its vectors; of SDXL a list of one for each text encoder."""
    if isinstance(value, list) and len(value) == 2:
        return side_by_side(*(vectors(token, each) for each in value))
    return vectors(token, value)


def write(delta: Delta, base: Base | None, kind: str) -> dict[str, bytes]:
    """The file by its name: u and v where all entries are factors, else full weights, which take a base."""
    compressed = all(isinstance(entry, Factors) for entry in delta.entries.values())
    weights = {
        key: _written(key, entry, None if compressed else base, delta.provenance.architecture)
        for key, entry in delta.entries.items()
    }
    if kind == "adobe":
        embed = {"embed": torch.cat([v.float() for v in delta.embeddings.values()])} if delta.embeddings else {}
        return {NAMES[kind]: archive({"state_dict": {**weights, **embed}})}
    resnets = resnets_of(delta, base)
    unet = {f"{diffusers_path(key, resnets)}.weight": value for key, value in weights.items()}
    tokens = {token: v.float()[0].clone() if len(v) == 1 else v.float() for token, v in delta.embeddings.items()}
    return {NAMES[kind]: archive({"unet": unet, "modifier_token": tokens})}


def _written(key: str, entry: Entry, base: Base | None, architecture: str) -> Any:
    if base is None and isinstance(entry, Factors):
        return {"u": entry.us.float(), "v": entry.vh.float()}
    matrix_ = dense(entry)
    return needed(base, "Adobe's format", architecture=architecture).weight(key, matrix_) + matrix_
