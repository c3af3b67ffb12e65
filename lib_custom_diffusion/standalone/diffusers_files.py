"""What diffusers' script leaves at the end, for those whose next step is to load it with diffusers."""

from __future__ import annotations

import io
import os
from pathlib import Path

import safetensors.torch
import torch

from .. import formats
from ..delta import Delta
from ..formats.embeddings import diffusers_file
from ..storage import write_atomically
from ..tokens import file_name
from .diffusers_backend import DiffusersBackend


def write_for_diffusers(file: Path, folder: Path, backend: DiffusersBackend, safe: bool = True) -> list[Path]:
    """Write pytorch_custom_diffusion_weights and TOKEN of a delta file into a folder; returns their paths.

    safe: as .safetensors, rather than as .bin.
    """
    delta = Delta.load(file)
    contents = formats.write(delta, "diffusers", formats.Base.of(backend.unet))
    if backend.reads_sizes:
        contents |= formats.write(delta, "embedding-sdxl")
    else:
        contents |= {f"{_called(token)}.safetensors": diffusers_file(token, v) for token, v in delta.embeddings.items()}
    if not safe:
        contents = {f"{Path(name).stem}.bin": _pickled(content) for name, content in contents.items()}
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return [folder / name for name in contents]


def _called(token: str) -> str:
    """The script's name for a word's file, where the system takes it."""
    return file_name(token) if os.name == "nt" else token.replace("/", "")


def _pickled(content: bytes) -> bytes:
    pickled = io.BytesIO()
    torch.save(safetensors.torch.load(content), pickled)
    return pickled.getvalue()
