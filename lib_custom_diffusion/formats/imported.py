"""What is read from another program's file."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..delta import Delta


@dataclass(frozen=True)
class Imported:
    """The delta, and the names of what the file holds beyond it and a delta has no place for."""

    delta: Delta
    dropped: list[str] = field(default_factory=list)
