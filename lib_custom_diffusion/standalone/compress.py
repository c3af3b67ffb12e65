"""The compress command: a delta in fewer bytes, and what that cost."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from .. import formats
from ..backend import Backend
from ..compression import Limit, compress, functional_error
from ..delta import SUFFIX, Delta, Factors, Int8Factors
from ..errors import UserError
from ..text_features import BUNDLED_CAPTIONS, Moments, read_captions, second_moments
from .algebra_cli import size


def compress_file(options: argparse.Namespace) -> int:
    """Run the command; returns its exit status. Raises UserError for whatever the user can mend."""
    limit = limit_of(options)
    assert limit is not None
    delta = read_delta(options.file)
    output = options.output or options.file.with_name(f"{_stem(options.file)}-small{SUFFIX}")
    moments = moments_of(delta, options.model, options.captions) if options.model else None
    small = compress(delta, limit, moments.fitted if moments else None, int8=not options.float16)
    small.save(output)
    print(report(options.file, delta, output, small, moments.held_out if moments else None))
    return 0


def read_delta(path: Path) -> Delta:
    """The delta of a file of any format that needs no model. Raises UserError; tells what was left out."""
    found = formats.read(path)
    if found.dropped:
        print(f"{path}: left out {len(found.dropped)} tensors that are no cross-attention, such as {found.dropped[0]}")
    return found.delta


def limit_of(options: argparse.Namespace) -> Limit | None:
    """What --max_size, --rank or --energy say; None if none is given."""
    if options.max_size is None and options.rank is None and options.energy is None:
        return None
    return Limit(size(options.max_size) if options.max_size is not None else None, options.rank, options.energy)


def moments_of(delta: Delta, model: str, captions: Path | None) -> Moments:
    """Moments of a model's text features. Raises UserError if the delta does not fit it."""
    from ..attention import projections
    from .models import load_model

    listed = read_captions(captions or BUNDLED_CAPTIONS)
    backend = load_model(model)
    delta.check_fits(projections(backend.unet, "crossattn"))
    check_words([delta], backend)
    words = {token: delta.provenance.tokens.get(token, "") for token in delta.embeddings}
    vectors = {token: value.float() for token, value in delta.embeddings.items()}
    return second_moments(backend, listed, words, vectors)


def check_words(deltas: Sequence[Delta], backend: Backend) -> None:
    """Raise UserError if a modifier token is of another width than the model's words."""
    width = backend.token_vectors("a").shape[1]
    for delta in deltas:
        for token, vectors in delta.embeddings.items():
            if vectors.shape[1] != width:
                sizes = f"{vectors.shape[1]} wide, the words of {backend.name} {width}"
                raise UserError(f"{token} is {sizes}: made for another model")


def report(before: Path, delta: Delta, after: Path, small: Delta, held_out: Tensor | None) -> str:
    """Size, ratio, error and ranks, for people."""
    sizes = before.stat().st_size, after.stat().st_size
    ranks = [entry.us.shape[1] for entry in small.entries.values() if isinstance(entry, Factors)]
    one_byte = sum(isinstance(entry, Int8Factors) for entry in small.entries.values())
    error = functional_error(delta, small, held_out)
    measured = "on captions held out" if held_out is not None else "of the matrices themselves (no --model given)"
    return (
        f"{after}: {sizes[1] / 1e6:.2f} MB, was {sizes[0] / 1e6:.2f} MB ({sizes[0] / sizes[1]:.1f} times smaller)\n"
        f"relative error {error:.2%} {measured}\n"
        f"{len(small.entries)} of {len(delta.entries)} layers, {one_byte} of them in one byte a number,"
        f" ranks {min(ranks, default=0)} to {max(ranks, default=0)}"
    )


def _stem(path: Path) -> str:
    return path.name.removesuffix(SUFFIX) if path.name.endswith(SUFFIX) else path.stem
