"""A card writes the tag and the words; people's notes come first."""

from __future__ import annotations

import json

import pytest
from modules.ui_extra_networks import ExtraNetworksUi
from test_extra_network import save

from lib_custom_diffusion.webui.library import DeltaLibrary

pytest.importorskip("gradio")
from lib_custom_diffusion.webui.cards import DeltaCards, DeltaNotesEditor


@pytest.fixture
def cards(host, tmp_path) -> DeltaCards:
    save(tmp_path / "deltas", "cat", host, "<new1>")
    return DeltaCards(DeltaLibrary(tmp_path / "deltas"))


def test_a_card_writes_the_tag_with_the_usual_weight_and_the_word(cards):
    [item] = cards.list_items()
    assert item["prompt"] == '"<delta:cat:" + opts.extra_networks_default_multiplier + "> <new1>"'


def test_a_card_is_found_by_its_word_which_is_text_and_no_tag_of_the_page(cards):
    [item] = cards.list_items()
    assert "&lt;new1&gt;" in item["search_terms"]


def test_notes_of_a_person_come_first(cards, tmp_path):
    notes = {"activation text": "my <new1> kitten", "preferred weight": 0.7}
    (tmp_path / "deltas" / "cat.delta.json").write_text(json.dumps(notes))
    [item] = cards.list_items()
    assert item["prompt"] == '"<delta:cat:" + 0.7 + "> my <new1> kitten"'


def test_the_host_makes_its_cards_anew_when_other_files_are_there(cards, host, tmp_path):
    tab = ExtraNetworksUi()
    cards.create_user_metadata_editor(tab, "txt2img")
    cards.library.refresh()
    tab.pages_contents = ["made before"]
    cards.library.refresh()
    assert tab.pages_contents == ["made before"]
    save(tmp_path / "deltas", "dog", host)
    cards.library.refresh()
    assert tab.pages_contents == []


def test_a_damaged_file_has_no_card(cards, tmp_path):
    (tmp_path / "deltas" / "broken.delta.safetensors").write_bytes(b"no")
    assert [item["name"] for item in cards.list_items()] == ["cat"]


def test_the_editor_keeps_words_and_weight_beside_what_the_host_keeps(cards):
    cards.items = {item["name"]: item for item in cards.list_items()}
    editor = DeltaNotesEditor(None, "txt2img", cards)
    editor.save("cat", "a cat", "nice", "the <new1>", 0.5)
    assert cards.items["cat"]["user_metadata"] == {
        "activation text": "the <new1>", "preferred weight": 0.5, "description": "a cat", "notes": "nice",
    }  # fmt: skip
    assert ("Words: ", "&lt;new1&gt;") in editor.get_metadata_table("cat")
