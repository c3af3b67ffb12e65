"""The blend command: deltas added up."""

from __future__ import annotations

import argparse

from ..algebra.files import blend_files, parse_weights, renamed_lines
from .compress import dropped_text, limit_of, loader_of


def blend(options: argparse.Namespace) -> int:
    """Run the command; returns its exit status. Raises UserError for whatever the user can mend."""
    weights = parse_weights(options.weights or "", len(options.files))
    done = blend_files(options.files, weights, options.output, limit_of(options), loader_of(options.model))
    print(dropped_text(done.dropped), end="")
    print("".join(f"{line}\n" for line in renamed_lines(done.renamed)), end="")
    if done.error is not None:
        print(f"compressed with a relative error of {done.error:.2%}")
    print(f"{done.path}: {done.size / 1e6:.2f} MB, words {', '.join(done.words) or 'none'}")
    return 0
