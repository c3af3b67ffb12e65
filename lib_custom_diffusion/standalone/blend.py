"""The blend command: deltas added up."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..blending import Renamed, blend
from ..compression import compress, functional_error
from ..errors import UserError
from .compress import limit_of, moments_of, read_delta


def blend_files(options: argparse.Namespace) -> int:
    """Run the command; returns its exit status. Raises UserError for whatever the user can mend."""
    weights = _weights(options.weights, len(options.files))
    limit = limit_of(options)
    blended = blend([read_delta(path) for path in options.files], weights)
    delta = blended.delta
    print(renamed_text(blended.renamed), end="")
    if limit is not None:
        moments = moments_of(delta, options.model, None) if options.model else None
        small = compress(delta, limit, moments.fitted if moments else None)
        error = functional_error(delta, small, moments.held_out if moments else None)
        print(f"compressed with a relative error of {error:.2%}")
        delta = small
    delta.save(options.output)
    print(
        f"{options.output}: {options.output.stat().st_size / 1e6:.2f} MB, words {', '.join(delta.embeddings) or 'none'}"
    )
    return 0


def renamed_text(renamed: Sequence[Renamed]) -> str:
    """A line for each word that had to be renamed."""
    lines = [f"{r.old} of file {r.index + 1} is now {r.new}: another file has a {r.old} too\n" for r in renamed]
    return "".join(lines)


def _weights(text: str | None, count: int) -> list[float]:
    if text is None:
        return [1.0] * count
    try:
        weights = [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f'--weights {text!r} should be numbers such as "0.7,0.3"') from None
    if len(weights) != count or not all(abs(weight) < 1e6 for weight in weights):
        raise UserError(f"--weights {text!r} should be {count} numbers, one for each file")
    return weights
