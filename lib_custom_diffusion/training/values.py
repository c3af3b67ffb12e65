"""Values of settings as JSON, a flag or a page's field has them, read as the types that the settings have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from ..errors import UserError
from ..storage import given_path
from ..tokens import split_tokens

_AS_WRITTEN = "filename_join_string"
"""The one text whose spaces count."""
_WANTED = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}


def may_be_none(hint: Any) -> bool:
    """Whether a setting of that type may be left open."""
    return type(None) in get_args(hint)


def read_value(label: str, name: str, value: Any, hint: Any) -> Any:
    """The value as the type `hint` of the setting `name`. Raises UserError, with the label, if it is none such."""
    if may_be_none(hint):
        [inner] = (each for each in get_args(hint) if each is not type(None))
        return None if value is None or value == "" else read_value(label, name, value, inner)
    if get_origin(hint) is tuple:
        return _read_texts(label, name, value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and number and math.isfinite(value) and value == int(value):
        return int(value)
    if hint is float and number:
        return float(value)
    if hint is Path and isinstance(value, (str, Path)):
        return given_path(value)
    if hint is str and isinstance(value, str):
        text = value if name == _AS_WRITTEN else value.strip()
        return str(given_path(text)) if name == "prior_captions" and text else text
    if hint is str and number and name.endswith("learning_rate"):  # which may also be a schedule
        return str(value)
    raise UserError(f"{label} must be {_WANTED[hint]}, not {value!r}")


def _read_texts(label: str, name: str, value: Any) -> tuple[str, ...]:
    """A list of texts, or, as flags have it, words joined by + and blocks by commas."""
    if isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(part, str) for part in value):
        return tuple(part.strip() for part in value)
    if not isinstance(value, str):
        raise UserError(f"{label} must be a list of texts, not {value!r}")
    if name == "modifier_token":
        return tuple(split_tokens(value)) if value.strip() else ()
    if name == "initializer_token":  # an empty one is refused with the others
        return tuple(part.strip() for part in value.split("+"))
    return tuple(part.strip() for part in value.split(",") if part.strip())
