"""What diffusers' script writes with --no_safe_serialization, for those whose next step is to load it."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from .. import formats
from ..delta import Delta
from ..storage import write_atomically
from ..tokens import file_name
from .diffusers_backend import DiffusersBackend


def write_bins(file: Path, folder: Path, backend: DiffusersBackend) -> list[Path]:
    """Write pytorch_custom_diffusion_weights.bin and TOKEN.bin of a delta file into a folder; returns their paths."""
    delta = Delta.load(file)
    weights = formats.write(delta, "diffusers", formats.Base.of(backend.unet))
    contents: dict[str, Any] = {Path(name).stem: safetensors.torch.load(content) for name, content in weights.items()}
    for token, vectors in delta.embeddings.items():
        name = file_name(token) if os.name == "nt" else token.replace("/", "")
        contents[name] = {token: vectors.float()[0] if len(vectors) == 1 else vectors.float()}
    for name, content in contents.items():
        pickled = io.BytesIO()
        torch.save(content, pickled)
        write_atomically(folder / f"{name}.bin", pickled.getvalue())
    return [folder / f"{name}.bin" for name in contents]
