"""The folder of deltas: which are there, by what names prompts call them, and where a new one goes."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from .delta import SUFFIX
from .errors import UserError, did_you_mean
from .storage import given_path, visible
from .tokens import file_name

_LOOKED_AT = 50_000
"""Files and folders in which a name is looked for, where the folder may be any: from / it took minutes."""
_SHOWN = 5
_DATE = "-".join("[0-9]" * digits for digits in (4, 2, 2))  # of folders; a directory of logs may have any others


def files_below(folder: Path, suffixes: Sequence[str] = (SUFFIX,), most: float = math.inf) -> list[Path]:
    """The files with one of the suffixes in a folder and below it, as `storage.visible` has them, the nearest first.

    Raises UserError if there are more files and folders than `most`, of whatever kind.
    """
    found: list[Path] = []
    seen = 0
    for root, folders, files in visible(folder):
        seen += len(folders) + len(files)
        if seen > most:
            raise UserError(
                f"{folder} has more than {most:,} files and folders, too many to look for deltas in; give the folder"
                " that has them, or a delta's path"
            )
        found += [root / file for file in files if file.lower().endswith(tuple(suffixes))]
    return sorted(found, key=lambda path: (len(path.parts), path))


def delta_name(path: Path) -> str:
    """What prompts call a file: its name without .delta.safetensors, in whatever case, or without its last suffix."""
    ours = path.name.lower().endswith(SUFFIX)
    return path.name[: -len(SUFFIX)] if ours and path.name[: -len(SUFFIX)] else path.stem


def named_deltas(folder: Path, most: float = math.inf) -> dict[str, Path]:
    """All delta files by name: the file's stem, or its path from the folder where a nearer file has that stem.

    most: as in `files_below`.
    """
    found: dict[str, Path] = {}
    for path in files_below(folder, most=most):
        stem = delta_name(path)
        found[stem if stem not in found else path.relative_to(folder).with_name(stem).as_posix()] = path
    return found


def named_saves(logs: Path) -> dict[str, Path]:
    """Copies that trainings kept on the way (LOGS/DATE/NAME/…/NAME-STEPS), by name, by training and steps.

    The latest training of a name has the plain names; those of earlier ones begin with DATE/.
    """
    found: dict[str, Path] = {}
    named: set[str] = set()
    latest_first = sorted(logs.glob(f"{_DATE}/*"), key=lambda path: path.parent.name, reverse=True)
    for training in sorted(latest_first, key=lambda path: path.name):
        copies = {steps_of_save(delta_name(path), training.name): path for path in files_below(training)}
        before = f"{training.parent.name}/" if training.name in named else ""
        for steps in sorted(copies.keys() - {0}):
            found[f"{before}{training.name}-{steps}"] = copies[steps]
            named.add(training.name)
    return found


def steps_of_save(name: str, training: str) -> int:
    """The steps that a training had behind it at a copy of that name; 0 if it is none of this training."""
    stem, _, steps = name.rpartition("-")
    return int(steps) if stem == training and steps.isdecimal() else 0


def find_delta(folder: Path, name: str, by_path: bool = False) -> Path:
    """The delta of that name, or of that path from the folder; with `by_path` also a file anywhere.

    Raises UserError, saying what is there, if it is not; with `by_path`, also for a folder of too many files.
    """
    if not name:
        raise UserError("choose a delta")
    if by_path and name.lower().endswith(SUFFIX) and os.path.isfile(given_path(name)):
        return given_path(name)
    named = named_deltas(folder, _LOOKED_AT if by_path else math.inf)
    if by_path and name not in named and os.path.isfile(given_path(name)):
        return given_path(name)
    names = sorted(named)
    for path in list(named.values()):
        named.setdefault(path.relative_to(folder).with_name(delta_name(path)).as_posix(), path)
    if name not in named:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        there = f"has {', '.join(names[:_SHOWN])}{more}" if names else "is empty"
        near = did_you_mean(name, names)
        rest = f"{near} The folder {there}" if near else f", which {there}"
        raise UserError(f"there is no delta {name!r} in {folder.absolute()}{rest}")
    return named[name]


def namesakes(folder: Path, path: Path) -> list[str]:
    """By what names prompts call the other files in a folder and below it that have a file's own name."""
    return [
        name for name, other in named_deltas(folder).items() if other != path and delta_name(other) == delta_name(path)
    ]


def new_file(folder: Path, name: str, overwrite: bool, suffix: str = SUFFIX) -> Path:
    """Where a result of that name goes: directly into the folder, whatever the name says.

    Raises UserError for a name without letters and digits, and for one that is taken unless it may be overwritten.
    """
    kept = file_name(name.strip().removesuffix(suffix))
    path = folder / f"{kept}{suffix}"
    alike = [other.name for other in folder.glob("*") if other.name.casefold() == path.name.casefold()]
    if alike and not (overwrite and path.name in alike):  # Windows and macOS take cat and Cat for one name
        raise UserError(f"there is a file {alike[0]} already; give another name, or tick Overwrite")
    return path
