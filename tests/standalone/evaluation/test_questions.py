"""Prompts with new words, and the plain captions that their pictures are measured by."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lib_custom_diffusion.delta import Delta, Provenance
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.standalone.evaluation.questions import Question, question, read_lines


def delta(**tokens: str) -> Delta:
    words = {f"<{name}>": noun for name, noun in tokens.items()}
    return Delta({}, {word: torch.ones(1, 4) for word in words}, Provenance(tokens=words))


@pytest.mark.parametrize(
    ("line", "prompt", "caption"),
    [
        ("photo of a <new1> cat on a beach", "photo of a <new1> cat on a beach", "photo of a cat on a beach"),
        ("photo of a <new1>, asleep", "photo of a <new1>, asleep", "photo of a cat, asleep"),
        ("{} in times square", "<new1> cat in times square", "cat in times square"),
        ("<new1> cats", "<new1> cats", "cat cats"),
        ("<new1> thing\ta cat in a hat", "<new1> thing", "a cat in a hat"),
        ("a red dog", "a red dog", "a red dog"),
    ],
)
def test_a_caption_is_the_prompt_in_plain_words(line: str, prompt: str, caption: str) -> None:
    assert question(line, delta(new1="cat"), "") == Question(prompt, caption)


def test_several_words_stand_for_one_subject() -> None:
    asked = question("{} on a table", delta(new1="cat", new2="cup"), "")
    assert asked == Question("<new1> cat and <new2> cup on a table", "cat and cup on a table")


def test_what_the_delta_does_not_say_the_user_does() -> None:
    assert question("a <new1> here", delta(new1=""), "raccoon").caption == "a raccoon here"
    assert question("art by <new1>", delta(new1=""), "").caption == "art by"


def test_a_class_prompt_counts_as_its_noun() -> None:
    for asked in (
        question("{} here", delta(new1="photo of a cat"), ""),
        question("{} here", delta(new1=""), "a photo of the cat"),
    ):
        assert asked == Question("<new1> cat here", "cat here")


def test_lines_are_read_without_blanks_and_remarks(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeff{} asleep\n\n# later\n  {} awake \n", encoding="utf-8")
    assert read_lines(file) == ["{} asleep", "{} awake"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has no prompts"),
        (b"\n# nothing\n", "has no prompts"),
        ("a {} asleep".encode("utf-16-le"), "it is not text in UTF-8; give"),
    ],
)
def test_files_without_prompts_are_refused_in_one_sentence(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"prompts\.txt .*{said}"):
        read_lines(file)
    with pytest.raises(UserError, match="cannot be read"):
        read_lines(tmp_path / "missing.txt")
