"""A card writes the tag and the words; people's notes come first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from modules import shared
from modules.ui_extra_networks import ExtraNetworksUi
from test_extra_network import save

from lib_custom_diffusion.delta import Delta, Provenance
from lib_custom_diffusion.webui.delta_library import DeltaLibrary

pytest.importorskip("gradio")
import gradio as gr

from lib_custom_diffusion.webui.cards import DeltaCards, DeltaNotesEditor
from page import parts


def write_notes(tmp_path: Path, notes: object) -> None:
    (tmp_path / "deltas" / "cat.delta.json").write_text(json.dumps(notes))


@pytest.fixture
def cards(host, tmp_path) -> DeltaCards:
    save(tmp_path / "deltas", "cat", host, "<new1>")
    return DeltaCards(DeltaLibrary(tmp_path / "deltas"))


def test_a_card_writes_the_tag_with_the_usual_weight_and_the_word(cards):
    [item] = cards.list_items()
    assert item["prompt"] == '"<delta:cat:" + (opts.extra_networks_default_multiplier ?? 1) + "> <new1>"'


def test_folders_without_deltas_have_no_button(cards, host, tmp_path):
    for folder in ("cat-words", "pets & co/dogs"):
        (tmp_path / "deltas" / folder).mkdir(parents=True)
    (tmp_path / "deltas" / "cat-words" / "new1.pt").write_bytes(b"a word")
    cards.refresh()
    assert cards.create_dirs_view_html("txt2img") == ""
    save(tmp_path / "deltas" / "pets & co" / "dogs", "dog", host)
    cards.refresh()
    row = cards.create_dirs_view_html("txt2img").split("<button class='lg' onclick='search(event)'>")
    assert [button.strip().removesuffix("</button>").strip() for button in row[1:]] == [
        "all", "pets &amp; co/", "pets &amp; co/dogs/",
    ]  # fmt: skip


def test_a_card_is_found_by_its_word_which_is_text_and_no_tag_of_the_page(cards):
    [item] = cards.list_items()
    assert "&lt;new1&gt;" in item["search_terms"]


def test_notes_of_a_person_come_first(cards, tmp_path):
    notes = {"activation text": "my <new1> kitten", "preferred weight": 0.7}
    (tmp_path / "deltas" / "cat.delta.json").write_text(json.dumps(notes))
    [item] = cards.list_items()
    assert item["prompt"] == '"<delta:cat:" + 0.7 + "> my <new1> kitten"'


@pytest.mark.parametrize("weight", ["1+alert(1)", ["alert(1)"], {"a": 1}, True, float("nan"), float("inf"), "", None])
def test_a_weight_of_a_stranger_that_is_no_number_is_left_out(cards, tmp_path, weight):
    write_notes(tmp_path, {"preferred weight": weight, "activation text": "kitten"})
    [item] = cards.list_items()
    assert item["prompt"] == '"<delta:cat:" + (opts.extra_networks_default_multiplier ?? 1) + "> kitten"'


def test_a_weight_written_as_text_is_a_number(cards, tmp_path):
    write_notes(tmp_path, {"preferred weight": "0.25"})
    [item] = cards.list_items()
    assert '"<delta:cat:" + 0.25 + ' in item["prompt"]


@pytest.mark.parametrize(
    "notes", [[], 5, None, "text", {"description": {"a": 1}, "activation text": 3, "notes": ["x"]}]
)
def test_notes_that_are_no_notes_are_as_none(cards, tmp_path, notes):
    write_notes(tmp_path, notes)
    [item] = cards.list_items()
    assert item["user_metadata"] == {} and item["prompt"].endswith('+ "> <new1>"')
    editor = DeltaNotesEditor(None, "txt2img", cards)
    cards.items = {"cat": item}
    assert editor.put_values_into_components("cat")[-2:] == ["", 0.0]


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 100_000, b'{"description": "\\ud800"}'])
def test_damaged_notes_are_as_none(cards, tmp_path, content):
    (tmp_path / "deltas" / "cat.delta.json").write_bytes(content)
    assert [item["user_metadata"] for item in cards.list_items()] == [{}]


def test_words_of_notes_stay_text_in_the_pages_script_and_html(cards, tmp_path, monkeypatch):
    words = '"); alert(1); ("\n\u2028 </div>'
    write_notes(tmp_path, {"activation text": words, "description": "<img src=x onerror=alert(1)>"})
    [item] = cards.list_items()
    *_, last = item["prompt"].split(" + ")
    assert json.loads(last) == '> "); alert(1); (" </div>'  # on one line, as a prompt is
    for is_html, shown in ((False, "&lt;img"), (True, "&amp;lt;img")):  # the stand-in escapes; the host as it is set
        monkeypatch.setattr(shared.opts, "extra_networks_card_description_is_html", is_html)
        assert shown in cards.create_item_html("txt2img", item, "card")


@pytest.mark.parametrize("name", ["<img src=x onerror=alert(1)>", 'a"onclick="alert(1)', "a\nb", "a\udcffb"])
def test_a_file_with_a_name_that_the_page_cannot_show_is_one_card_less(cards, tmp_path, name):
    file = tmp_path / "deltas" / "cat.delta.safetensors"
    (tmp_path / "deltas" / f"{name}.delta.safetensors").write_bytes(file.read_bytes())
    assert [item["name"] for item in cards.list_items()] == ["cat"]


def test_a_card_says_what_it_is_for_and_what_a_person_says_of_it(cards, tmp_path):
    delta = Delta.load(tmp_path / "deltas" / "cat.delta.safetensors")
    delta.provenance = Provenance("crossattn-10x128", tokens={"<new1>": "photo of a cat"})
    delta.save(tmp_path / "deltas" / "cat.delta.safetensors")
    [item] = cards.list_items()
    assert "toy model · &lt;new1&gt; cat" in cards.create_item_html("txt2img", item, "card")
    write_notes(tmp_path, {"description": "a cat of mine"})
    [item] = cards.list_items()
    card = cards.create_item_html("txt2img", item, "card")
    assert "toy model · &lt;new1&gt; cat · a cat of mine" in card


def test_the_cards_are_made_anew_by_themselves_because_the_hosts_way_wants_a_checkpoint(cards, host, tmp_path):
    with gr.Blocks() as blocks:
        tab = ExtraNetworksUi()
        tab.pages.append(gr.HTML(elem_id="cards"))
        cards.create_user_metadata_editor(tab, "txt2img")
    save(tmp_path / "deltas", "dog", host)
    [event, *_] = parts(blocks)["txt2img_cd_refresh_cards"].events
    assert [part.elem_id for part in event.outputs] == ["cards"]
    assert "dog" in event.fn() and "extraNetworksControlRefreshOnClick" not in event.fn()
    assert "refreshCustomDiffusionCards(event, 'txt2img'" in event.fn()


def test_the_host_makes_its_cards_anew_when_other_files_are_there(cards, host, tmp_path):
    tab = ExtraNetworksUi()
    with gr.Blocks():
        tab.pages.append(gr.HTML())
        cards.create_user_metadata_editor(tab, "txt2img")
    cards.deltas.refresh()
    tab.pages_contents = ["made before"]
    cards.deltas.refresh()
    assert tab.pages_contents == ["made before"]
    save(tmp_path / "deltas", "dog", host)
    cards.deltas.refresh()
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
