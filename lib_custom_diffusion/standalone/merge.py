"""The merge command: concepts learned alone, in one delta."""

from __future__ import annotations

import argparse

import torch

from ..blending import blend, bundle_words, dense
from ..delta import Delta
from ..errors import UserError
from ..merging import change_on, merge, target_features
from ..text_features import BUNDLED_CAPTIONS, read_captions, spoken_features
from .blend import renamed_text
from .compress import check_words, read_delta
from .models import load_model

_CAPTIONS = 200  # as many as Adobe's code takes


def merge_files(options: argparse.Namespace) -> int:
    """Run the command; returns its exit status. Raises UserError for whatever the user can mend."""
    deltas = [read_delta(path) for path in options.files]
    if len(options.target_prompts) not in (0, len(deltas)):
        raise UserError(f"--target_prompts is given {len(options.target_prompts)} times for {len(deltas)} files")
    prompts = [[prompt.strip() for prompt in text.split("|") if prompt.strip()] for text in options.target_prompts]
    captions = read_captions(options.captions or BUNDLED_CAPTIONS)
    chosen = captions[:: max(1, len(captions) // _CAPTIONS)][:_CAPTIONS]
    backend = load_model(options.model)
    check_words(deltas, backend)
    words = bundle_words(deltas)
    targets = target_features(backend, deltas, words, prompts)
    regularization = spoken_features(backend, chosen, {})
    merged = merge(deltas, targets, regularization)
    merged.delta.save(options.output)
    print(renamed_text(merged.renamed), end="")
    stored = stored_residual(deltas, targets, Delta.load(options.output))
    ours = change_on(merged.delta, regularization)
    sums = change_on(blend(deltas, [1.0] * len(deltas)).delta, regularization)
    print(
        f"{options.output}: {options.output.stat().st_size / 1e6:.2f} MB, words {', '.join(words.vectors) or 'none'}\n"
        f"{merged.target_rows[0]} of {merged.target_rows[1]} target rows kept,"
        f" constraint residual {merged.residual:.1e} (as stored {stored:.1e})\n"
        f"change on {len(chosen)} captions: {ours:.4g}; by the plain sum of the deltas it would be {sums:.4g}"
    )
    return 0


def stored_residual(deltas: list[Delta], targets: list[torch.Tensor], stored: Delta) -> float:
    """The constraint residual that is left after rounding to float16, relative."""
    missed = asked = 0.0
    for delta, target in zip(deltas, targets):
        rows = target.float()
        for key in stored.entries:
            wanted = _applied(delta, key, rows)
            missed += (_applied(stored, key, rows) - wanted).square().sum().item()
            asked += wanted.square().sum().item()
    return (missed / asked) ** 0.5 if asked else 0.0


def _applied(delta: Delta, key: str, rows: torch.Tensor) -> torch.Tensor:
    return rows @ dense(delta.entries[key]).T if key in delta.entries else torch.zeros(())
