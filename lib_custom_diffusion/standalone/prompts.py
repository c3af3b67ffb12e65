"""The `<delta:NAME:WEIGHT>` tags of a prompt, and the files that NAME stands for."""

from __future__ import annotations

import re
from pathlib import Path

from ..delta import SUFFIX
from ..deltas_folder import files_below
from ..errors import UserError
from ..prompt_tags import weight_of

_TAG = re.compile(r"<delta:([^:>]+)(?::([^>]*))?>")


def split_deltas(prompt: str) -> tuple[str, list[tuple[str, float]]]:
    """The prompt without its delta tags, and their names and weights in order; a weight left out is 1.

    Raises UserError as `weight_of` does.
    """
    deltas = []
    for tag in _TAG.finditer(prompt):
        name, arguments = tag.groups()
        try:
            deltas.append((name.strip(), weight_of(arguments.split(":") if arguments else [])))
        except UserError as error:
            raise UserError(f"{tag[0]}: {error}") from None
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
