"""Mistakes that a user can mend."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from pathlib import Path

_SUFFIX = re.compile(r"(\.delta)?\.(safetensors|pt|bin|ckpt)$")


class UserError(Exception):
    """Something the user gave is wrong.

    The message is one line: what was wrong, with the value, and what to do about it. The command line prints it and
    exits with 2; the WebUI shows it where the result would have been. Neither prints a traceback.
    Bytes of a file's name that are no text are ? in it, as no page could show them.
    """

    def __str__(self) -> str:
        return super().__str__().encode("utf-8", "replace").decode()


class NotSaved(UserError):
    """A file or folder could not be written, the disk being full or the place another's.

    reason: the system's.
    """

    def __init__(self, path: Path, reason: str | None, advice: str = "what was saved before is untouched") -> None:
        super().__init__(f"cannot save {path}: {reason}; {advice}")
        self.reason = reason


class Interrupted(UserError):
    """A person asked to stop; what was finished before is kept."""


def check_range(settings: object, name: str, low: float, high: float, label: Callable[[str], str] = str) -> None:
    """Raise UserError unless the setting of that name, if it is set at all, lies between `low` and `high`.

    label: what the user knows a setting as.
    """
    value = getattr(settings, name)
    if value is None or low <= value <= high:
        return
    if value > high:
        raise UserError(f"{label(name)} must be {high:,} or less, not {value}")
    raise UserError(f"{label(name)} must be {low} or more, not {value}")


def did_you_mean(name: str, there: Iterable[str]) -> str:
    """For the end of a message: which name that is there is nearly that one, suffix and case aside; "" for none."""
    plain = {_SUFFIX.sub("", each.casefold()): each for each in there}
    near = difflib.get_close_matches(_SUFFIX.sub("", name.casefold()), plain, 1)
    return f". Did you mean {plain[near[0]]}?" if near else ""


NO_TEXT = re.compile("[\0-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")
"""What stands in no text: halves of letters, as of JSON's "\\ud800" and bytes that are no UTF-8, and control characters
other than spaces. UTF-16 read as UTF-8 has such, and codes that do things to a terminal start with one."""


def check_text(text: str, what: str) -> None:
    """Raise UserError for a text that has what no text has. what: the text's name."""
    if NO_TEXT.search(text):
        raise UserError(f"{what} {text!r} has bytes that are not text; type it again")
