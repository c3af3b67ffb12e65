"""Captions as conditionings: which are encoded once, and which are long."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from lib_custom_diffusion.data.concepts import Example
from lib_custom_diffusion.training.conditionings import Conditionings, is_short
from tiny import WIDTH, TinyBackend


def of(*captions: str) -> list[Example]:
    return [Example(torch.zeros(4, 2, 2), torch.zeros(4, 2, 2), torch.ones(1, 2, 2), each) for each in captions]


@pytest.fixture
def made() -> Conditionings:
    return Conditionings(TinyBackend(), {"<new1>": torch.ones(1, WIDTH, requires_grad=True)}, nullcontext)


@pytest.mark.parametrize("caption", ["a <new1> cat", "a <NEW1> cat"])
def test_captions_of_class_pictures_that_have_the_word_are_no_more_fixed_than_others(
    made: Conditionings, caption: str
) -> None:
    made.keep(of("a cat", caption, "a cat"))
    assert list(made.fixed) == [("a cat", None)]


def test_a_batch_has_the_row_of_each_caption_and_encodes_each_that_is_new_once(made: Conditionings) -> None:
    made.keep(of("a cat"))
    made.backend.captions_encoded = 0  # type: ignore[attr-defined]
    batch = made.of(of("a <new1> cat", "a cat", "a <new1> dog", "a <new1> cat")).crossattn
    assert made.backend.captions_encoded == 2  # type: ignore[attr-defined]
    alone = [made.backend.encode_captions([each], made.vectors).crossattn[0] for each in
             ("a <new1> cat", "a cat", "a <new1> dog", "a <new1> cat")]  # fmt: skip
    assert torch.equal(batch, torch.stack(alone))
    batch.sum().backward()
    assert made.vectors["<new1>"].grad is not None and not made.fixed["a cat", None].crossattn.requires_grad


def test_captions_that_the_encoder_reads_at_once_share_a_pass_however_many_letters_they_have(
    made: Conditionings,
) -> None:
    assert made.more_positions("a <new1> cat") == made.more_positions(f"a <new1> {'c' * 80}") == 0


def test_a_caption_is_short_if_its_bytes_and_the_vectors_of_all_words_are_no_more_than_75() -> None:
    words = {"<new1>": torch.zeros(30, 6), "<new2>": torch.zeros(5, 6)}
    assert [is_short("é" * count, words) for count in (20, 21)] == [True, False]


@pytest.mark.parametrize(
    ("letters", "vectors", "short"), [(75, 0, True), (76, 0, False), (73, 2, True), (74, 2, False)]
)
def test_a_caption_is_short_while_its_bytes_and_vectors_fit_what_is_read_at_once(
    letters: int, vectors: int, short: bool
) -> None:
    words = {"<new1>": torch.zeros(vectors, WIDTH)} if vectors else {}
    assert is_short("a" * letters, words) == short
    assert is_short("é" * (letters // 2) + "a" * (letters % 2), words) == short
