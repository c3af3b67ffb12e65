"""The folder of deltas: which are there, by what names prompts call them, and where a new one goes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from .delta import SUFFIX
from .errors import UserError
from .tokens import file_name


def files_below(folder: Path, suffixes: Sequence[str] = (SUFFIX,)) -> list[Path]:
    """The files with one of the suffixes in a folder and below it, the nearest first; links to folders are followed."""
    found = [
        Path(root, file)
        for root, _, files in os.walk(folder, followlinks=True)
        for file in files
        if file.endswith(tuple(suffixes)) and not file.startswith(".")
    ]
    return sorted(found, key=lambda path: (len(path.parts), path))


def named_deltas(folder: Path) -> dict[str, Path]:
    """All delta files by name: the file's stem, or its path from the folder where a nearer file has that stem."""
    found: dict[str, Path] = {}
    for path in files_below(folder):
        stem = path.name.removesuffix(SUFFIX)
        found[stem if stem not in found else path.relative_to(folder).as_posix().removesuffix(SUFFIX)] = path
    return found


def find_delta(folder: Path, name: str) -> Path:
    """The delta of that name. Raises UserError if it is not there."""
    found = named_deltas(folder)
    if name not in found:
        raise UserError(f"there is no delta {name!r} in {folder}" if name else "choose a delta")
    return found[name]


def new_file(folder: Path, name: str, overwrite: bool, suffix: str = SUFFIX) -> Path:
    """Where a result of that name goes: directly into the folder, whatever the name says.

    Raises UserError for a name without letters and digits, and for one that is taken unless it may be overwritten.
    """
    kept = file_name(name.strip().removesuffix(suffix))
    path = folder / f"{kept}{suffix}"
    if path.exists() and not overwrite:
        raise UserError(f"there is a file {path.name} already; give another name, or tick Overwrite")
    return path
