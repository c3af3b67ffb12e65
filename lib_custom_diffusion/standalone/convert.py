"""The convert command: from any known format to any other."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import formats
from ..compression import Limit, compress, functional_error
from ..delta import SUFFIX, Delta, Factors
from ..errors import UserError
from ..formats import Base, Imported
from ..storage import write_atomically


def convert(options: argparse.Namespace) -> int:
    """Run the command; returns its exit status. Raises UserError for whatever the user can mend."""
    base, architecture = _base(options.model)
    delta = _joined(options.files, base)
    delta.provenance.architecture = delta.provenance.architecture or architecture
    if options.to == "lora":
        delta = _low_rank(delta, options.rank)
    files = formats.write(delta, options.to, base)
    for path, content in _paths(options.output, options.to, files).items():
        write_atomically(path, content)
        print(f"{path}: {len(content) / 1e6:.2f} MB")
    return 0


def _base(model: str | None) -> tuple[Base | None, str]:
    if model is None:
        return None, ""
    from .models import load_model

    backend = load_model(model)
    return Base.of(backend.unet), backend.architecture


def _joined(paths: list[Path], base: Base | None) -> Delta:
    """One delta of the only file with layers and of all files with words, those named <…> beside it included."""
    found = {path: formats.read(path, base) for path in paths}
    with_layers = [path for path, imported in found.items() if imported.delta.entries]
    if len(with_layers) > 1:
        raise UserError(
            f"{with_layers[0]} and {with_layers[1]} both hold layers; convert one by one, or use blend or merge"
        )
    for path in with_layers:
        if not found[path].delta.embeddings and len(paths) == 1:
            found |= {other: formats.read(other, base) for other in sorted(path.parent.glob("<*>.*"))}
    delta = found[with_layers[0]].delta if with_layers else Delta({})
    for path, imported in found.items():
        _tell_dropped(path, imported)
        for token, vectors in imported.delta.embeddings.items():
            if delta.embeddings.setdefault(token, vectors) is not vectors:
                raise UserError(f"{path} has a word {token}, and so has another file; rename one")
    return delta


def _tell_dropped(path: Path, imported: Imported) -> None:
    if imported.dropped:
        print(f"{path}: left out {len(imported.dropped)} tensors that a delta has no place for:")
        print("".join(f"  {name}\n" for name in imported.dropped), end="")


def _low_rank(delta: Delta, rank: int) -> Delta:
    """The delta with no layer above the rank; layers that are factors within it stay as they are."""
    high = {k: e for k, e in delta.entries.items() if not isinstance(e, Factors) or e.us.shape[1] > rank}
    if not high:
        return delta
    low = compress(Delta(high), Limit(rank=rank))
    print(f"{len(high)} layers cut to rank {rank}, relative error {functional_error(Delta(high), low):.2%}")
    return Delta({**delta.entries, **low.entries}, delta.embeddings, delta.provenance)


def _paths(output: Path, kind: str, files: dict[str, bytes]) -> dict[Path, bytes]:
    """Where each file goes: a single one to `output` itself if that looks like a file, else into it as a folder."""
    endings = (".safetensors", ".pt", ".ckpt", ".bin")
    if output.suffix not in endings:
        name = f"{output.name}{SUFFIX}" if kind == "delta" else None
        return {output / (name or file): content for file, content in files.items()}
    if len(files) > 1:
        raise UserError(f"{kind} is {len(files)} files; give a folder as --output, not {output}")
    return {output: next(iter(files.values()))}
