"""The commands merge, concepts learned alone in one delta, and rename, for words that would clash."""

from __future__ import annotations

import argparse

from ..algebra.files import merge_files, parse_prompts, rename_file, renamed_lines
from ..delta import SUFFIX
from ..errors import UserError
from .compress import dropped_text, loader_of


def merge(options: argparse.Namespace) -> int:
    """Run the command; returns its exit status. Raises UserError for whatever the user can mend."""
    load_model = loader_of(options.model)
    assert load_model is not None
    prompts = [parse_prompts(text) for text in options.target_prompts]
    done = merge_files(
        options.files, options.output, load_model, prompts, options.captions, only_targets=options.only_targets
    )
    print(dropped_text(done.dropped), end="")
    print("".join(f"{line}\n" for line in renamed_lines(done.renamed)), end="")
    print(
        f"{done.path}: {done.size / 1e6:.2f} MB, words {', '.join(done.words) or 'none'}\n"
        f"{done.target_rows[0]} of {done.target_rows[1]} target rows kept,"
        f" constraint residual {done.residual:.1e} (as stored {done.stored_residual:.1e})\n"
        f"difference from each concept's own file on its own prompts: {', '.join(f'{off:.1%}' for off in done.off)}\n"
        f"change on {done.captions} captions: {done.change:.4g};"
        f" by the plain sum of the deltas it would be {done.change_of_sum:.4g}"
    )
    return 0


def rename(options: argparse.Namespace) -> int:
    """Run the command; returns its exit status. Raises UserError for whatever the user can mend."""
    if options.output is None and not options.file.name.endswith(SUFFIX):
        raise UserError(f"{options.file} is no {SUFFIX} file, which alone can be replaced; give --output")
    done = rename_file(options.file, options.old, options.new, options.output or options.file)
    print(dropped_text(done.dropped), end="")
    print(f"{done.path}: words {', '.join(done.words)}")
    return 0
