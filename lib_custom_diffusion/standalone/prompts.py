"""The `<delta:NAME:WEIGHT>` tags of a prompt, and the command that draws one."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from ..delta import SUFFIX
from ..errors import UserError
from ..prompt_tags import weight_of
from .follow_up import command

_BEGUN = "<delta:"
_TAG = re.compile(r"<delta:([^>]+)>")
_DRIVE = re.compile(r"[A-Za-z]:(?=[\\/])")
_ARGUMENT = re.compile(r"\s*|[^:]*=[^:]*|\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*|\s*[-+]?(nan|inf)\s*")


def split_deltas(prompt: str) -> tuple[str, list[tuple[str, float]]]:
    """The prompt without its delta tags, and their names and weights in order; a weight left out is 1.

    A name may have colons in it, as a path of Windows has. Raises UserError as `weight_of` does, and for a tag that has
    no end or no name.
    """
    deltas, text = [_name_and_weight(tag) for tag in _TAG.findall(prompt)], _TAG.sub("", prompt)
    if _BEGUN in text:
        raise UserError(f"a tag {_BEGUN} in the prompt has no name or no >; write {_BEGUN}NAME:0.8>")
    return re.sub(r" {2,}", " ", text).strip(), deltas


def _name_and_weight(tag: str) -> tuple[str, float]:
    drive = _DRIVE.match(tag)
    start = drive[0] if drive else ""
    parts = tag.removeprefix(start).split(":")
    named = next((n for n in range(1, len(parts)) if all(map(_ARGUMENT.fullmatch, parts[n:]))), 1)
    try:
        return (start + ":".join(parts[:named])).strip(), weight_of(parts[named:])
    except UserError as error:
        raise UserError(f"<delta:{tag}>: {error}") from None


def to_draw(prompt: str, delta: Path, *given: object) -> str:
    """The command that draws a prompt with a delta, by its name in its folder where a tag cannot hold its path.

    given: what else it is told.
    """
    found: list[tuple[str, float]] = []
    with suppress(UserError):
        _, found = split_deltas(f"<delta:{delta}:1>")
    name, where = str(delta), []
    if found != [(name, 1.0)]:
        name, where = delta.name.removesuffix(SUFFIX), ["--deltas_dir", str(delta.parent)]
    return command("generate", *given, *where, "--prompt", f"{prompt} <delta:{name}:1>")
