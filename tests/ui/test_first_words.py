"""Errors stand alone on pages, and begin with a capital letter there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

pytest.importorskip("gradio")

import lib_custom_diffusion
from lib_custom_diffusion.ui.training_page import _FIRST_WORDS, error_html


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        ("there is no folder here", "There is no folder here"),
        ("none, or nothing", "None, or nothing"),
        ("cat is a word that the model toy knows already", "cat is a word that"),
        ("/home/me is a file", "/home/me is a file"),
        ("the", "The"),
        ("", ""),
    ],
)
def test_a_sentence_begins_with_a_capital_and_a_word_or_path_as_it_is(error: str, shown: str) -> None:
    assert error_html(error).startswith(f"<div class='error'>{shown}")


def test_all_our_sentences_are_known_by_their_first_words() -> None:
    folder = Path(lib_custom_diffusion.__file__).parent
    found = {
        word for path in folder.rglob("*.py") for word in _first_words(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert {"the", "there", "give"} <= found and found - _FIRST_WORDS == {"diffusers", "prodigy"}  # which are names


def _first_words(tree: ast.AST) -> set[str]:
    """Of the sentences that are raised as they are written."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("UserError", "Interrupted") and node.args:
            text = node.args[0].values[0] if isinstance(node.args[0], ast.JoinedStr) else node.args[0]
            if isinstance(text, ast.Constant) and (word := re.match("[a-z]+(?=[ ,])", str(text.value))):
                found.add(word[0])
    return found
