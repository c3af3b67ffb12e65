"""LoRA files as kohya's trainer writes them, and as most programs read them.

NAME.lora_down.weight (r, in), NAME.lora_up.weight (out, r) and NAME.alpha: Δ = alpha / r · up · down; or NAME.diff
(out, in). NAME is a kohya name (`names`), or a diffusers path after `unet.` with lora_A and lora_B (or lora.down and
lora.up). The WebUI's built-in Lora reads embeddings from the same file: `bundle_emb.TOKEN.string_to_param.*`.

What `write` makes is to load everywhere, and that takes two tricks. diffusers reads kohya's names only in files that
hold nothing else, and its own names only in files of which every tensor's name contains "lora". So a file with words
holds the factors under both kinds of names (whoever knows both takes one), and its words have "lora" in their names,
where the WebUI (up to the second dot) and ComfyUI (the end) do not look. SDXL's words, which both expect as
`bundle_emb.TOKEN.clip_l` and `.clip_g`, leave no room for that: diffusers refuses an SDXL file with words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..delta import Delta, Entry, Factors
from ..errors import UserError
from ..reading import Document, matrix, vectors
from ..storage import safetensors_bytes
from .base import Base, resnets_of
from .embeddings import side_by_side, split_sdxl
from .imported import Imported
from .names import diffusers_path, is_key, key_of, kohya_name, may_be_standard

NAMES = {"lora": "lora.safetensors"}
_PART = re.compile(
    r"(?:lora_unet_|unet\.|base_model\.model\.)?(.+?)"
    r"(?:\.processor)?\.(lora_down\.weight|lora_up\.weight|lora_A\.weight|lora_B\.weight|lora\.down\.weight"
    r"|lora\.up\.weight|alpha|diff|diff_b|dora_scale|lora_mid\.weight|hada_\w+|lokr_\w+)"
)
_DOWN = ("lora_down.weight", "lora_A.weight", "lora.down.weight")
_UP = ("lora_up.weight", "lora_B.weight", "lora.up.weight")
_UNDERSTOOD = {*_DOWN, *_UP, "alpha", "diff"}
_BUNDLED = re.compile(r"bundle_emb\.([^.]+)\.(string_to_param\..*|clip_l|clip_g)")
_BASE_VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}


def recognises(document: Document) -> bool:
    names = [str(name) for name in document.content]
    return any(
        re.search(r"\.(lora_(up|down|A|B)|lora\.(up|down))\.weight$|^lora_unet_.*\.diff$", name) for name in names
    )


def read(document: Document, base: Base | None) -> Imported:
    """Its cross-attention part; all else is listed as dropped.

    Raises UserError for pairs that do not fit, and without a base for layers whose names need one.
    """
    layers: dict[str, dict[str, Any]] = {}
    words: dict[str, dict[str, Any]] = {}
    dropped = []
    parts_of = {str(name): _PART.fullmatch(str(name)) for name in document.content}
    named = {part[1] for part in parts_of.values() if part}
    twice = False
    if base is None and not may_be_standard(named):
        twice = any(map(is_key, named))  # as `write` does it: what the diffusers paths say is said by keys as well
        if not twice:
            raise UserError(
                "its layers are not those of Stable Diffusion 1 or 2, and what they are called depends on the model;"
                " give the model it was trained on by --model"
            )
    for name, value in document.content.items():
        bundled = _BUNDLED.fullmatch(str(name))
        part = parts_of[str(name)]
        key = key_of(part[1], base.resnets if base else 2) if part else None
        if twice and part is not None and key is not None and not is_key(part[1]):
            continue
        if bundled:
            words.setdefault(bundled[1], {})[bundled[2]] = value
        elif part is None or key is None:
            dropped.append(str(name))
        else:
            layers.setdefault(key, {})[part[2]] = value
    entries: dict[str, Entry] = {}
    for key, parts in layers.items():
        if set(parts) <= _UNDERSTOOD:
            entries[key] = _entry(key, parts)
        else:
            dropped += [f"{key}: {part}" for part in parts]
    return Imported(Delta(entries, {token: _word(token, parts) for token, parts in words.items()}), dropped)


def _entry(key: str, parts: Mapping[str, Any]) -> Entry:
    if "diff" in parts:
        return matrix(f"{key} diff", parts["diff"])
    down = matrix(f"{key} down", next((parts[name] for name in _DOWN if name in parts), None))
    up = matrix(f"{key} up", next((parts[name] for name in _UP if name in parts), None))
    if up.shape[1] != down.shape[0]:
        raise UserError(f"the factors of {key} do not fit: {tuple(up.shape)} and {tuple(down.shape)}")
    alpha = parts.get("alpha", torch.tensor(float(len(down))))
    if not isinstance(alpha, Tensor) or alpha.numel() != 1:
        raise UserError(f"the alpha of {key} should be one number")
    return Factors(up * (float(alpha) / len(down)), down)


def _word(token: str, parts: Mapping[str, Any]) -> Tensor:
    if set(parts) == {"clip_l", "clip_g"}:
        return side_by_side(
            vectors(f"clip_l of {token}", parts["clip_l"]), vectors(f"clip_g of {token}", parts["clip_g"])
        )
    if len(parts) != 1 or "clip" in next(iter(parts)):
        raise UserError(f"the word {token} should be one tensor, or clip_l and clip_g, not {', '.join(sorted(parts))}")
    return vectors(token, next(iter(parts.values())))


def write(delta: Delta, base: Base | None, kind: str) -> dict[str, bytes]:
    """One LoRA file for all programs. Raises UserError for dense entries: a LoRA is low-rank, so compress first."""
    if not delta.entries:
        raise UserError("this delta has no layers to make a LoRA of")
    tensors: dict[str, Tensor] = {}
    factors = [entry for entry in delta.entries.values() if isinstance(entry, Factors)]
    rank = max((len(entry.vh) for entry in factors), default=0)
    resnets = resnets_of(delta, base)
    sdxl = delta.provenance.architecture == "sdxl"
    for_diffusers = not sdxl and (bool(delta.embeddings) or resnets != 2)
    of_diffusers = not sdxl and resnets == 2
    for key, entry in delta.entries.items():
        if not isinstance(entry, Factors):
            raise UserError(f"a LoRA holds low-rank layers only, and {key} is dense; compress the delta first")
        name, (up, down) = kohya_name(key, of_diffusers, resnets), _of_rank(entry, rank)
        tensors |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
        tensors[f"{name}.alpha"] = torch.tensor(float(rank))
        if for_diffusers:
            path = f"unet.{diffusers_path(key, resnets)}"
            tensors |= {f"{path}.lora_B.weight": up.clone(), f"{path}.lora_A.weight": down.clone()}
    for token, value in delta.embeddings.items():
        name = f"bundle_emb.{_bundle_name(token)}"
        if sdxl:
            tensors[f"{name}.clip_l"], tensors[f"{name}.clip_g"] = split_sdxl(token, value)
        else:
            tensors[f"{name}.string_to_param.lora.string_to_param.*"] = value.float()
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{name} has values that are not finite as float16; nothing was saved")
    return {NAMES[kind]: safetensors_bytes(tensors, _metadata(delta, rank))}


def _of_rank(entry: Factors, rank: int) -> tuple[Tensor, Tensor]:
    """up (out, rank) and down (rank, in), float16, filled up with zeros.

    One rank for all layers: diffusers takes the scale of every layer from one of them.
    """
    up, down = entry.us.half(), entry.vh.half()
    room = rank - len(down)
    return F.pad(up, (0, room)), F.pad(down, (0, 0, 0, room))


def _bundle_name(token: str) -> str:
    if "." in token:
        raise UserError(f"the WebUI cannot find a token with a dot in a LoRA; rename {token}")
    return token


def _metadata(delta: Delta, rank: int) -> dict[str, str]:
    architecture = delta.provenance.architecture
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(rank),
        "ss_base_model_version": _BASE_VERSIONS.get(architecture, architecture),
        "ss_v2": str(architecture == "sd2"),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture or 'unknown'}/lora",
        "modelspec.implementation": "custom-diffusion",
        "modelspec.trigger_phrase": ", ".join(delta.embeddings),
    }
