"""The kinds of network that LoRA files hold: what the parts of one layer change in its weight W (out, in).

LoRA          down (r, in), up (out, r):                 Δ = s · up · down
LoHa          hada_w1_a/b, hada_w2_a/b:                  Δ = s · (w1_a · w1_b) ∘ (w2_a · w2_b)    (arXiv 2108.06098)
LoKr          lokr_w1, lokr_w2, each whole or as _a · _b: Δ = s · w1 ⊗ w2                         (arXiv 2309.14859)
full          diff (out, in):                            Δ = diff
DoRA          any of these with magnitudes m:            W + Δ' = (W + Δ) · m / ‖W + Δ‖           (arXiv 2402.09353)

s = alpha / r, r being the rank of what is factored, or alpha / √r as PEFT's rslora has it; 1 without alpha or where
nothing is factored. m and the norm are of the rows (out, 1) or, as LyCORIS has it by default, of the columns (1, in).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..algebra.blending import dense
from ..delta import Entry, Factors
from ..errors import UserError
from ..reading import matrix
from ..reading.document import WIDEST, check_values
from .base import Base, needed

Parts = Mapping[str, Any]
ADAPTER_CONFIG = "adapter_config.json"
"""PEFT's settings, in a file beside its `adapter_model.safetensors`; in a document's metadata by this name."""

_SAME = (
    (
        r"lora_down(\.weight)?|lora_A(\.\w+)?\.weight|lora\.down\.weight|lora_linear_layer\.down\.weight|down\.weight",
        "down",
    ),
    (r"lora_up(\.weight)?|lora_B(\.\w+)?\.weight|lora\.up\.weight|lora_linear_layer\.up\.weight|up\.weight", "up"),
    (r"dora_scale|lora_magnitude_vector(\.\w+)*", "magnitude"),
    (r"diff\.weight|full\.weight", "diff"),
)


def part_name(said: str) -> str:
    """The name that a part has here, whatever the program that wrote it calls it."""
    return next((name for pattern, name in _SAME if re.fullmatch(pattern, said)), said)


def entry_of(key: str, parts: Parts, base: Base | None) -> Entry:
    """What the parts of one layer change.

    Raises UserError for parts that are missing, do not fit, or are of a kind that is no difference; and for a DoRA
    without a base, since what it does depends on the weights.
    """
    found = {part_name(said): value for said, value in parts.items()}
    magnitude, alpha = found.pop("magnitude", None), found.pop("alpha", None)
    changes = _change(key, found, _number(key, alpha))
    if magnitude is not None:
        base = needed(base, "a DoRA", "depends on the weights of its model")
        changes = _decomposed(key, dense(changes), magnitude, base)
    check_values(key, changes.us if isinstance(changes, Factors) else changes)
    return changes


def alpha_beside(metadata: Mapping[str, str], place: str, parts: Parts) -> Tensor | None:
    """The alpha of a layer that PEFT's settings beside its tensors say; None if there are none, or they leave it out.

    place: the layer's path in diffusers' UNet. Settings are those of PEFT's adapter_config.json, or what diffusers
    writes into the file itself since 0.34, those of the UNet after "unet.". Raises UserError if they are damaged.
    """
    down = next((value for said, value in parts.items() if part_name(said) == "down"), None)
    told = metadata.get(ADAPTER_CONFIG) or metadata.get("lora_adapter_metadata")
    if told is None or not isinstance(down, Tensor) or down.ndim < 2:
        return None
    try:
        settings = json.loads(told)
        of_unet = {name.removeprefix("unet."): value for name, value in settings.items() if name.startswith("unet.")}
        settings = of_unet or settings
        alpha = settings.get("lora_alpha")
        for pattern, other in (settings.get("alpha_pattern") or {}).items():  # the last part, or all, of a path
            if f".{place}".endswith(f".{str(pattern).removeprefix('unet.')}"):
                alpha = other
        if alpha is None:
            return None
        return torch.tensor(float(alpha) * (len(down) ** 0.5 if settings.get("use_rslora") else 1.0))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"its settings of PEFT, {told[:60]!r}, are damaged; get the file again") from error


def _number(key: str, alpha: Any) -> float | None:
    if alpha is None:
        return None
    if not isinstance(alpha, Tensor) or alpha.numel() != 1:
        raise UserError(f"the alpha of {key} should be one number")
    return float(alpha)


def _change(key: str, found: Parts, alpha: float | None) -> Entry:
    for only, make in _KINDS:
        if any(name in found for name in only):
            strange = sorted(set(found) - only)
            if strange:
                raise UserError(f"{key} has a part {strange[0]}, which a delta cannot hold; nothing was read of it")
            return make(key, found, alpha)
    raise UserError(
        f"{key} has the parts {', '.join(sorted(found)) or 'alpha alone'}, from which no difference can be computed"
    )


def _lora(key: str, found: Parts, alpha: float | None) -> Entry:
    up, down = (matrix(f"{key} {name}", found.get(name)) for name in ("up", "down"))
    return Factors(_fitting(key, up, down, _scale(alpha, len(down))), down)


def _loha(key: str, found: Parts, alpha: float | None) -> Entry:
    a1, b1, a2, b2 = (matrix(f"{key} {name}", found.get(name)) for name in _LOHA)
    first, second = _fitting(key, a1, b1) @ b1, _fitting(key, a2, b2) @ b2
    if first.shape != second.shape:
        raise UserError(f"the two products of {key} do not fit: {tuple(first.shape)} and {tuple(second.shape)}")
    return first * second * _scale(alpha, len(b1))


def _lokr(key: str, found: Parts, alpha: float | None) -> Entry:
    factors, rank = [], None
    for name in ("lokr_w1", "lokr_w2"):
        if name in found:
            factors.append(matrix(f"{key} {name}", found[name]))
        else:
            a, b = (matrix(f"{key} {name}{end}", found.get(f"{name}{end}")) for end in ("_a", "_b"))
            factors.append(_fitting(key, a, b) @ b)
            rank = len(b) if rank is None else rank
    first, second = factors
    if max(len(first) * len(second), first.shape[1] * second.shape[1]) > WIDEST:
        raise UserError(f"the factors of {key} make a matrix larger than a layer of any model; the file is damaged")
    return torch.kron(first, second) * (1.0 if rank is None else _scale(alpha, rank))


def _full(key: str, found: Parts, alpha: float | None) -> Entry:
    return matrix(f"{key} diff", found["diff"])


_LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_LOKR = {f"lokr_w{number}{end}" for number in (1, 2) for end in ("", "_a", "_b")}
_KINDS: tuple[tuple[set[str], Callable[[str, Parts, float | None], Entry]], ...] = (
    ({"up", "down"}, _lora),
    (set(_LOHA), _loha),
    (_LOKR, _lokr),
    ({"diff"}, _full),
)


def _scale(alpha: float | None, rank: int) -> float:
    return 1.0 if alpha is None else alpha / rank


def _fitting(key: str, up: Tensor, down: Tensor, scale: float = 1.0) -> Tensor:
    if up.shape[1] != down.shape[0]:
        raise UserError(f"the factors of {key} do not fit: {tuple(up.shape)} and {tuple(down.shape)}")
    return up * scale


def _decomposed(key: str, change: Tensor, magnitude: Any, base: Base) -> Tensor:
    """What a DoRA changes: each row or column of W + Δ is brought to the length that the file says."""
    weight = base.weight(key, change)
    if isinstance(magnitude, Tensor) and magnitude.ndim == 1:
        magnitude = magnitude[:, None]
    lengths = matrix(f"{key} dora_scale", magnitude)
    merged = weight + change
    if lengths.shape == (len(merged), 1):
        norms = merged.norm(dim=1, keepdim=True)
    elif lengths.shape == (1, merged.shape[1]):
        norms = merged.norm(dim=0, keepdim=True)
    else:
        raise UserError(
            f"the magnitudes of {key} are {tuple(lengths.shape)}, which fits no side of {tuple(merged.shape)}"
        )
    return merged * (lengths / norms.clamp_min(torch.finfo(norms.dtype).tiny)) - weight
