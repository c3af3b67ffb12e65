"""Where long prompts are divided: the numbers are those of the WebUI's `tokenize_line` (v1.10.1)."""

from __future__ import annotations

import pytest
import torch

from lib_custom_diffusion.standalone.pieces import in_pieces

COMMA = 7


@pytest.mark.parametrize(
    ("ids", "lengths"),
    [
        ([], [0]),
        ([1] * 75, [75]),
        ([1] * 76, [75, 1]),
        ([1] * 151, [75, 75, 1]),
        ([1] * 60 + [COMMA] + [1] * 20, [61, 20]),  # 14 stand behind the comma and go with the 6 that follow
        ([1] * 55 + [COMMA] + [1] * 20, [56, 20]),
        ([1] * 54 + [COMMA] + [1] * 21, [75, 1]),  # 20 behind it are too many
        ([1] * 74 + [COMMA] + [1], [75, 1]),
        ([1] * 75 + [COMMA] + [1], [75, 2]),
        ([1] * 60 + [COMMA] + [1] * 13 + [COMMA] + [1] * 5, [75, 5]),
        ([1] * 60 + [COMMA] + [1] * 14 + [COMMA], [75, 1]),  # nothing is moved for a comma
    ],
)
def test_a_piece_ends_at_75_tokens_or_behind_a_comma_that_is_near(ids: list[int], lengths: list[int]) -> None:
    pieces = in_pieces(ids, 75, COMMA)
    assert [len(piece.ids) for piece in pieces] == lengths
    assert [number for piece in pieces for number in piece.ids] == ids


def test_a_word_of_several_vectors_is_not_divided() -> None:
    word = torch.arange(4.0).reshape(4, 1)
    first, second = in_pieces([1] * 73 + [word, 2], 75, COMMA)
    assert first.ids == [1] * 73 and second.ids == [0, 0, 0, 0, 2]
    assert [(column, vector.item()) for column, vector in second.vectors] == [(0, 0), (1, 1), (2, 2), (3, 3)]


def test_a_word_behind_a_comma_keeps_its_vectors_in_the_next_piece() -> None:
    word = torch.tensor([[5.0], [6.0]])
    first, second = in_pieces([1] * 60 + [COMMA, 2, word] + [3] * 20, 75, COMMA)
    assert first.ids == [1] * 60 + [COMMA] and not first.vectors
    assert second.ids == [2, 0, 0] + [3] * 20
    assert [(column, vector.item()) for column, vector in second.vectors] == [(1, 5), (2, 6)]


def test_a_long_word_gets_a_piece_behind_what_a_comma_has_moved_and_of_too_many_vectors_the_first_are_read() -> None:
    word = torch.arange(80.0)[:, None]
    pieces = in_pieces([1] * 60 + [COMMA] + [2] * 14 + [word], 75, COMMA)
    assert [len(piece.ids) for piece in pieces] == [61, 14, 75]
    assert [vector.item() for _, vector in pieces[2].vectors] == list(range(75))
