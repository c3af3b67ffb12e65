"""The first Custom Diffusion extension's files, and its ancestor's.

`NAME.delta.safetensors` (0.2.0, dense and factors) is also our own; `delta.Delta` reads it. The ancestor's
`NAME.kv.safetensors` has full weights by the WebUI's names without their "model." and no metadata.
"""

from __future__ import annotations

import re
from dataclasses import replace

from ..algebra.factors import QuantizedFactors
from ..attention import KEY_PREFIX
from ..delta import SUFFIX, Delta, Entry, Factors, from_tensors
from ..reading import Document, matrix
from .base import Base, difference, needed
from .imported import Imported
from .names import key_of

NAMES = {"delta": f"delta{SUFFIX}"}
_KV_PREFIX = KEY_PREFIX.removeprefix("model.")
_WEIGHT = re.compile(r"(model\.)?diffusion_model\..*\.attn2\.to_(q|k|v|out\.0)\.weight")


def recognises(document: Document) -> bool:
    return "json" in document.metadata or any(_WEIGHT.fullmatch(name) for name in document.tensors())


def read(document: Document, base: Base | None) -> Imported:
    """Raises UserError for a damaged delta, or for full weights without a base."""
    tensors = document.tensors()
    if "json" in document.metadata:
        return Imported(from_tensors(document.metadata, tensors))
    entries: dict[str, Entry] = {}
    dropped = []
    for name, value in tensors.items():
        key = key_of(name.removeprefix("model.").removeprefix(_KV_PREFIX).removesuffix(".weight"))
        if key is None:
            dropped.append(name)
        else:
            entries[key] = difference(key, matrix(name, value), needed(base, "a .kv.safetensors file"))
    return Imported(Delta(entries), dropped)


def write(delta: Delta, base: Base | None, kind: str) -> dict[str, bytes]:
    """A file that the first extension reads: dense matrices and float16 factors."""
    entries: dict[str, Entry] = {
        key: Factors(entry.us, entry.vh) if isinstance(entry, QuantizedFactors) else entry
        for key, entry in delta.entries.items()
    }
    return {NAMES[kind]: replace(delta, entries=entries).to_bytes()}
