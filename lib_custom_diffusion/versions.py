"""Files that a newer version of this project has written."""

from __future__ import annotations

import re

from . import __version__

_VERSION = re.compile(r"\d{1,9}(?:\.\d{1,9}){0,3}")


def why_newer(version: object) -> str:
    """Why a file may not be understood, and what to do, if a newer version than this one has written it; else "".

    version: what the file says of that.
    """
    wrote = _VERSION.match(version) if isinstance(version, str) else None
    if wrote is None or _numbers(wrote[0]) <= _numbers(__version__):
        return ""
    return f"version {wrote[0]} of Custom Diffusion wrote it, and this is {__version__}; update this one"


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]
