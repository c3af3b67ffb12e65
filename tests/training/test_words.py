"""A word that the text encoder never sees is refused with the caption; what lacks one, or is too long, is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lib_custom_diffusion.backend import Conditioning
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.training.words import check_words
from tiny import WIDTH, TinyBackend

ONE = {"<new1>": torch.ones(1, WIDTH)}
TWO = {**ONE, "<new2>": torch.zeros(1, WIDTH)}
LONG = " ".join(["photo"] * 30)


@pytest.mark.parametrize(
    ("captions", "said"),
    [
        ([["photo of a cat", "a dog"]], "no caption or prompt has the modifier token <new1>, such as 'photo of a cat'"),
        ([["photo of a <new1>cat"]], "in the caption 'photo of a <new1>cat' letters or digits touch <new1>"),
        ([["photo of a8<new1> cat"]], "in the caption 'photo of a8<new1> cat' letters or digits touch <new1>"),
        ([[f"{LONG} <new1> cat"]], "is so long that the model does not read as far as <new1>; put the word first"),
    ],
)
def test_a_word_that_is_never_seen_is_refused_with_the_caption(captions: list[list[str]], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_words(TinyBackend(), ONE, captions)


def test_a_concept_without_any_of_the_words_is_refused_with_its_caption() -> None:
    with pytest.raises(
        UserError, match="captions of concept 2, such as 'a dog', have none of the words <new1>, <new2>"
    ):
        check_words(TinyBackend(), TWO, [["a <new1> and a <new2>"], ["a dog"]])


def test_several_words_of_one_concept_may_stand_in_one_caption() -> None:
    assert check_words(TinyBackend(), TWO, [["a <new1> of <new2>"]]) == []


def test_captions_that_lack_a_word_beside_others_are_told() -> None:
    told = check_words(TinyBackend(), ONE, [["a <new1> cat", "a cat", "a dog"]])
    assert told == ["2 of the 3 captions of concept 1 have none of the new words, such as 'a cat'"]


class Reading(TinyBackend):
    """An encoder that reads so many positions, or all in pieces of 77."""

    def __init__(self, pieces: bool) -> None:
        super().__init__()
        self.pieces = pieces

    def token_vectors(self, text: str) -> Tensor:
        return torch.cat([self._word(word) for word in text.split()])

    def encode_captions(self, captions: Sequence[str], vectors: Mapping[str, Tensor]) -> Conditioning:
        rows = [torch.cat([vectors[w] if w in vectors else self._word(w) for w in each.split()]) for each in captions]
        room = 77 * -(-max(map(len, rows)) // 75) if self.pieces else 77
        return Conditioning(torch.stack([F.pad(row[: room - 2], (0, 0, 0, room)) for row in rows])[:, :room])


def test_a_caption_that_is_cut_is_told_and_one_that_is_read_in_pieces_is_not() -> None:
    caption = " ".join(["<new1>", *["photo"] * 90])
    assert check_words(Reading(pieces=True), ONE, [[caption]]) == []
    [told] = check_words(Reading(pieces=False), ONE, [[caption]])
    assert told.endswith("is longer than the model reads; its end is left out")
