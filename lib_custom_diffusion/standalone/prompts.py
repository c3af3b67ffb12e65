"""The `<delta:NAME:WEIGHT>` tags of a prompt, and the files that NAME stands for."""

from __future__ import annotations

import re
from pathlib import Path

from ..delta import SUFFIX
from ..deltas_folder import files_below
from ..errors import UserError

_TAG = re.compile(r"<delta:([^:>]+)(?::([^>]*))?>")


def split_deltas(prompt: str) -> tuple[str, list[tuple[str, float]]]:
    """The prompt without its delta tags, and their names and weights in order; a weight left out is 1.

    Raises UserError for a weight that is no number.
    """
    deltas = []
    for name, weight in _TAG.findall(prompt):
        try:
            deltas.append((name.strip(), float(weight) if weight else 1.0))
        except ValueError:
            raise UserError(f"the weight in <delta:{name}:{weight}> is no number; write <delta:{name}:0.8>") from None
    return re.sub(r" {2,}", " ", _TAG.sub("", prompt)).strip(), deltas


def find_delta(name: str, folder: Path) -> Path:
    """The file of a delta given by path, or by name in `folder` or below it, the nearest one first.

    Raises UserError listing what is there.
    """
    if Path(name).is_file():
        return Path(name)
    found = files_below(folder)
    for path in found:
        if name in (path.name.removesuffix(SUFFIX), path.relative_to(folder).as_posix().removesuffix(SUFFIX)):
            return path
    names = ", ".join(dict.fromkeys(path.name.removesuffix(SUFFIX) for path in found)) or "none"
    raise UserError(f"there is no delta {name!r}: no such file, and {folder} has {names}")
