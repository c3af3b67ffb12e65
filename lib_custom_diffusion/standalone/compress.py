"""The compress command: a delta in fewer bytes, and what that cost."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..algebra.compression import Limit
from ..algebra.files import Compressed, LoadModel, compress_file, compressed_text
from ..delta import SUFFIX
from ..storage import size


def compress(options: argparse.Namespace) -> int:
    """Run the command; returns its exit status. Raises UserError for whatever the user can mend."""
    limit = limit_of(options)
    assert limit is not None
    output = options.output or options.file.with_name(f"{_stem(options.file)}-small{SUFFIX}")
    load_model = loader_of(options.model)
    done = compress_file(options.file, output, limit, load_model, options.captions, quantized=not options.float16)
    print(dropped_text(done.dropped), end="")
    print(_report(done))
    return 0


def limit_of(options: argparse.Namespace) -> Limit | None:
    """What --max_size, --rank or --energy say; None if none is given."""
    if options.max_size is None and options.rank is None and options.energy is None:
        return None
    return Limit(size(options.max_size) if options.max_size is not None else None, options.rank, options.energy)


def loader_of(model: str | None) -> LoadModel | None:
    """What loads the model of that name; None if none is named."""
    if model is None:
        return None
    from . import models

    return lambda: models.load_model(model)


def dropped_text(dropped: Mapping[Path, Sequence[str]]) -> str:
    """A line for each file of which something was left out."""
    return "".join(
        f"{path}: left out {len(names)} tensors that are no cross-attention, such as {names[0]}\n"
        for path, names in dropped.items()
    )


def _report(done: Compressed) -> str:
    if done.unchanged:
        return f"{done.path}: {compressed_text(done)}"
    measured = "on captions held out" if done.weighed else "of the matrices themselves (no --model given)"
    return (
        f"{done.path}: {done.size / 1e6:.2f} MB, was {done.size_before / 1e6:.2f} MB"
        f" ({done.size_before / done.size:.1f} times smaller)\n"
        f"relative error {done.error:.2%} {measured}\n"
        f"{done.layers[0]} of {done.layers[1]} layers, {done.quantized_layers} of them quantized,"
        f" ranks {done.ranks[0]} to {done.ranks[1]}"
    )


def _stem(path: Path) -> str:
    return path.name.removesuffix(SUFFIX) if path.name.endswith(SUFFIX) else path.stem
