"""The convert command: from any known format to any other."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..algebra.files import convert_files
from ..delta import SUFFIX
from ..errors import UserError
from ..storage import write_atomically
from .compress import loader_of


def convert(options: argparse.Namespace) -> int:
    """Run the command; returns its exit status. Raises UserError for whatever the user can mend."""
    done = convert_files(options.files, options.to, loader_of(options.model), options.rank)
    for path, names in done.dropped.items():
        print(f"{path}: left out {len(names)} tensors that a delta has no place for:")
        print("".join(f"  {name}\n" for name in names), end="")
    if done.cut_layers:
        print(f"{done.cut_layers} layers cut to rank {options.rank}, relative error {done.error:.2%}")
    for path, content in _paths(options.output, options.to, done.files).items():
        write_atomically(path, content)
        print(f"{path}: {len(content) / 1e6:.2f} MB")
    return 0


def _paths(output: Path, kind: str, files: dict[str, bytes]) -> dict[Path, bytes]:
    """Where each file goes: a single one to `output` itself if that looks like a file, else into it as a folder."""
    endings = (".safetensors", ".pt", ".ckpt", ".bin")
    if output.suffix not in endings:
        name = f"{output.name}{SUFFIX}" if kind == "delta" else None
        return {output / (name or file): content for file, content in files.items()}
    if len(files) > 1:
        raise UserError(f"{kind} is {len(files)} files; give a folder as --output, not {output}")
    return {output: next(iter(files.values()))}
