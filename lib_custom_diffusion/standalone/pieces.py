"""Long prompts in pieces of as many tokens as the text encoder reads at once, divided as AUTOMATIC1111's WebUI does.

Each piece is encoded by itself, and the features stand one behind the other for the UNet to read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

COMMA = ",</w>"
"""CLIP's entry of a comma that ends a word."""
_BACKTRACK = 20
"""So few tokens behind a comma go into the next piece with what follows them (the WebUI's comma_padding_backtrack)."""


@dataclass
class Piece:
    """Token ids, with 0 where new words' vectors belong, and those vectors with their columns."""

    ids: list[int] = field(default_factory=list)
    vectors: list[tuple[int, Tensor]] = field(default_factory=list)

    def add(self, part: int | Tensor) -> None:
        """A token's id, or the vectors (n, width) of a new word."""
        if isinstance(part, int):
            self.ids.append(part)
        else:
            self.vectors += [(len(self.ids) + index, vector) for index, vector in enumerate(part)]
            self.ids += [0] * len(part)

    def cut(self, column: int) -> Piece:
        """Take off what stands from a column on, as a piece of its own."""
        behind = Piece(self.ids[column:], [(at - column, vector) for at, vector in self.vectors if at >= column])
        self.ids, self.vectors = self.ids[:column], [each for each in self.vectors if each[0] < column]
        return behind


def in_pieces(parts: Iterable[int | Tensor], room: int, comma: int | None) -> list[Piece]:
    """A caption's parts, `Piece.add`'s, in pieces of at most `room` tokens; of an empty caption one that is empty.

    A new word is not divided: it goes into the next piece whole, and of more than `room` vectors the first ones are
    read. A piece that ends within a phrase gives what stands behind its last comma to the next, if that is near.
    """
    pieces, behind_comma = [Piece()], 0
    for part in parts:
        is_comma = isinstance(part, int) and part == comma
        if len(pieces[-1].ids) == room and behind_comma and not is_comma and room - behind_comma < _BACKTRACK:
            pieces.append(pieces[-1].cut(behind_comma))
            behind_comma = 0
        length = 1 if isinstance(part, int) else min(len(part), room)
        if len(pieces[-1].ids) + length > room:
            pieces.append(Piece())
            behind_comma = 0
        pieces[-1].add(part if isinstance(part, int) else part[:room])
        if is_comma:
            behind_comma = len(pieces[-1].ids)
    return pieces
