"""A word that the text encoder never sees is refused with the caption; captions that lack one are told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lib_custom_diffusion.data.concepts import Concept
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.training.plan import TrainingPlan, Wording
from lib_custom_diffusion.training.words import check_said, check_words, kind_notes, stands_alone
from tiny import WIDTH, TinyBackend

ONE = {"<new1>": torch.ones(1, WIDTH)}
TWO = {**ONE, "<new2>": torch.zeros(1, WIDTH)}
LONG = " ".join(["photo"] * 30)


@pytest.mark.parametrize(
    ("captions", "said"),
    [
        (
            [["photo of a cat", "a dog"]],
            "no caption or prompt has the modifier token <new1>; the first is 'photo of a cat'",
        ),
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


@pytest.mark.parametrize(
    ("captions", "said"),
    [
        ([["photo of a cat"]], "no caption or prompt has the modifier token <new1>; the first is 'photo of a cat'"),
        (
            [["a <new1> and a <new2>"], ["a dog"]],
            "captions of concept 2, such as 'a dog', have none of the words <new1>,",
        ),
    ],
)
def test_a_word_that_no_caption_has_is_refused_without_a_model(captions: list[list[str]], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_said(["<new1>", "<new2>"], captions)


def test_only_who_reads_words_between_spaces_refuses_those_that_letters_touch() -> None:
    touched = [["photo of a <new1>cat"]]
    check_said(["<new1>"], touched)  # which the WebUI's tokenizer sees
    with pytest.raises(UserError, match="in the caption 'photo of a <new1>cat' letters or digits touch <new1>"):
        check_said(["<new1>"], touched, stands_alone)
    check_said(["<new1>"], [["photo of a <new1>, of a cat", "photo of a cat"]], stands_alone)


def test_a_word_may_be_written_in_either_case_where_the_model_takes_both_for_one() -> None:
    check_said(["mycat"], [["photo of MyCat"]])


@pytest.mark.parametrize(
    ("prompt", "kind", "told"),
    [
        ("photo of a [name]", "man", []),
        ("photo of a [name]", "Old man", []),
        ("photo of a [name]", "mna", ["Kind of concept 1 has 'mna', a word that the model toy does not know."
                                      " Did you mean man?"]),
        ("photo of a <new1> mna", "xqzw", ["Kind of concept 1 has 'xqzw', a word that the model toy does not know."]),
        ("photo of a [name]", " ", ["Kind of concept 1 is empty: captions have the new word alone. Of a thing, say what"
                                    " it is, such as cat."]),
        ("photo of a <new1> cat", "", []),
    ],
)  # fmt: skip
def test_a_kind_that_a_toy_does_not_know_is_told_and_one_that_captions_lack(
    prompt: str, kind: str, told: list[str], tmp_path: Path
) -> None:
    backend = _Spelling()
    backend.captions = tmp_path / "captions.txt"
    backend.captions.write_text("an old man\na cat")
    plan = TrainingPlan(modifier_token=("<new1>",), concepts=(Concept(prompt, tmp_path, kind),))
    wording = Wording({"class_prompt": "Kind"})
    assert kind_notes(backend, plan, wording.of_concept) == told
    backend.architecture = "crossattn-16x768"
    large = kind_notes(backend, replace(plan, concepts=(Concept("a <new1>", tmp_path, kind),)), wording.of_concept)
    assert large == []


class _Spelling(TinyBackend):
    """Knows three words, and spells all others."""

    name = "toy"

    def token_vectors(self, text: str) -> torch.Tensor:
        return torch.zeros(1 if text in ("old", "man", "cat") else len(text), WIDTH)
