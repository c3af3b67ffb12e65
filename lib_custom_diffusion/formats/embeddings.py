"""Files with modifier tokens alone.

A1111 `.pt`, and its pictures: {"string_to_param": {"*": (n, width)}, "name": …}; {"emb_params": (n, width)}; diffusers:
{token: (width,) or (n, width)}, in a .bin or a safetensors file; SDXL: {"clip_l": (n, 768), "clip_g": (n, 1280)}, side
by side in one of our vectors (n, 2048), which diffusers' script for pivotal tuning called text_encoders_0 and _1 at
first. That script for SD 1 writes "clip_l" alone. OneTrainer writes "emp_params", and may add what encoders give out
("…_out"), for which no delta has a place.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from ..attention import SDXL_TEXT_WIDTHS, text_widths
from ..delta import Delta
from ..errors import UserError
from ..reading import Document, vectors
from ..storage import safetensors_bytes
from ..tokens import embedding_pt, embedding_sdxl, file_names
from .base import Base
from .imported import Imported

NAMES = {"embedding": "TOKEN.pt", "embedding-diffusers": "TOKEN.safetensors", "embedding-sdxl": "TOKEN.safetensors"}
_UNNAMED = {"emb_params", "emp_params", "*", "clip_l", "text_encoders_0"}
_PAIRS = (("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1"))
_OUTPUT = "_out"
_OF_LAYER = re.compile(r"^(lora|lycoris|oft|base_model|(model\.)?diffusion_model|unet|text_encoder)[._]|\.weight")
"""What stands in the name of a layer's tensor, and in no word."""


def recognises(document: Document) -> bool:
    return "string_to_param" in document.content or _pair(document) is not None or _single(document) is not None


def _vectors_alone(document: Document) -> dict[str, Any]:
    """What a file holds but for the outputs of text encoders."""
    return {name: value for name, value in document.content.items() if not str(name).endswith(_OUTPUT)}


def _pair(document: Document) -> tuple[str, str] | None:
    """What the vectors for SDXL's two text encoders are called in a file of them."""
    return next((pair for pair in _PAIRS if set(_vectors_alone(document)) == set(pair)), None)


def _single(document: Document) -> str | None:
    """The name of the only vectors of a file that is nothing else."""
    name, value = next(iter(_vectors_alone(document).items()), ("", None))
    alone = len(_vectors_alone(document)) == 1 and isinstance(value, Tensor) and value.ndim in (1, 2)
    return str(name) if alone and not _OF_LAYER.search(str(name)) else None


def read(document: Document, base: Base | None) -> Imported:
    """A delta of words only. Files that do not say their token have <FILE'S NAME>, as in `generate`."""
    content, token = document.content, f"<{document.name.strip('<>')}>"
    if "string_to_param" in content:
        held = content["string_to_param"]
        if not isinstance(held, dict) or len(held) != 1:
            raise UserError("string_to_param should hold the vectors of one token")
        return Imported(Delta({}, {token: vectors(token, next(iter(held.values())))}))
    dropped = [str(name) for name in content if str(name).endswith(_OUTPUT)]
    pair = _pair(document)
    if pair is not None:
        left, right = (vectors(name, content[name]) for name in pair)
        return Imported(Delta({}, {token: side_by_side(left, right)}), dropped)
    single = _single(document)
    assert single is not None
    if single in ("clip_g", "text_encoders_1"):
        raise UserError("it has vectors for the second of SDXL's text encoders alone; give the file with both")
    token = token if single in _UNNAMED else single
    return Imported(Delta({}, {token: vectors(token, content[single])}), dropped)


def side_by_side(left: Tensor, right: Tensor) -> Tensor:
    """SDXL's vectors (n, 2048) of its two text encoders' (n, 768) and (n, 1280)."""
    if len(left) != len(right):
        raise UserError(f"clip_l has {len(left)} vectors, clip_g {len(right)}")
    return torch.cat([left, right], dim=1)


def split_sdxl(token: str, value: Tensor, architecture: str) -> tuple[Tensor, Tensor]:
    """The opposite; as SDXL's if the architecture is not known. Raises UserError for vectors that are too narrow."""
    first, second = text_widths(architecture) or SDXL_TEXT_WIDTHS
    if value.shape[1] <= first:
        raise UserError(f"{token} is {value.shape[1]} wide; SDXL's words are {first + second}")
    return value.float()[:, :first].contiguous(), value.float()[:, first:].contiguous()


def write(delta: Delta, base: Base | None, kind: str) -> dict[str, bytes]:
    """One file a token."""
    if not delta.embeddings:
        raise UserError("this delta has no modifier token to write")
    if text_widths(delta.provenance.architecture) and kind != "embedding-sdxl":
        raise UserError(
            f"words of SDXL are for two text encoders, which {kind} cannot say; convert --to embedding-sdxl"
        )
    files = {}
    for token, name in file_names(delta.embeddings).items():
        value = delta.embeddings[token]
        if kind == "embedding":
            files[f"{name}.pt"] = embedding_pt(value, name, delta.provenance.steps)
        elif kind == "embedding-diffusers":
            files[f"{name}.safetensors"] = diffusers_file(token, value)
        else:
            files[f"{name}.safetensors"] = embedding_sdxl(
                split_sdxl(token, value, delta.provenance.architecture), delta.provenance.steps
            )
    return files


def diffusers_file(token: str, value: Tensor) -> bytes:
    """Vectors (n, width) as `load_textual_inversion` takes them, which finds the token in the file."""
    return safetensors_bytes({token: value.float()[0] if len(value) == 1 else value.float()}, {"format": "pt"})
