"""The app's Generate tab: earlier prompts are kept, and a picture gives back how it was made."""

from __future__ import annotations

import html
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image, PngImagePlugin

pytest.importorskip("gradio")
import gradio as gr

from lib_custom_diffusion.backend import Sampling
from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.errors import Interrupted
from lib_custom_diffusion.standalone.app import generate_tab
from lib_custom_diffusion.standalone.app.generate_tab import add_generate_tab
from lib_custom_diffusion.standalone.app.jobs import Jobs
from lib_custom_diffusion.standalone.app.models import Models
from lib_custom_diffusion.standalone.app.prompt_history import KEPT, PromptHistory
from lib_custom_diffusion.standalone.app.reopened_pages import ReopenedPages
from lib_custom_diffusion.ui.utilities import Lists
from page import Part, parts


@pytest.fixture
def history(tmp_path: Path) -> PromptHistory:
    return PromptHistory(tmp_path / "prompts.json")


@pytest.fixture
def made(model: Path, tmp_path: Path, history: PromptHistory) -> dict[str, Part]:
    with gr.Blocks() as blocks:
        add_generate_tab(
            Models(str(model)), tmp_path / "deltas", Jobs(threading.Lock()), Lists(), history, ReopenedPages()
        )
    return parts(blocks)


def test_prompts_are_kept_each_once_the_newest_first(history: PromptHistory) -> None:
    for number in range(KEPT + 1):
        history.add(f"cat {number}")
    history.add("cat 5")
    kept = PromptHistory(history.path).all()
    assert kept[:3] == ["cat 5", "cat 100", "cat 99"] and len(kept) == len(set(kept)) == KEPT


@pytest.mark.parametrize("content", [b"", b"{}", b"[1, null]", b"\xff", b"[" * 100_000])
def test_a_damaged_file_is_as_none(history: PromptHistory, content: bytes) -> None:
    history.path.write_bytes(content)
    assert history.all() == []


def test_what_was_drawn_is_in_the_history_and_in_the_picture(made: dict[str, Part], history: PromptHistory) -> None:
    settings = {"cd_gen_prompt": "a cat", "cd_gen_steps": 1, "cd_gen_count": 1, "cd_gen_seed": 5}
    *_, (pictures, told, earlier) = made["cd_generate"].press(**settings, cd_gen_width=16, cd_gen_height=8)
    assert "Seed 5" in told and earlier["choices"] == history.all() == ["a cat"]
    [chosen] = made["cd_gen_history"].events
    assert chosen.fn("a cat") == "a cat"
    prompt, negative, *numbers, seen, said = made["cd_gen_read"].press(cd_gen_read=SimpleNamespace(name=pictures[0][0]))
    assert (prompt, negative, numbers) == ("a cat", "", [1, 6.0, 16, 8, 5]) and [path for path, _ in seen] == [
        pictures[0][0]
    ]
    assert "from this picture: Prompt, Sampling steps 1, CFG Scale 6, Width 16, Height 8, Seed 5. Press" in said


def test_a_word_without_its_delta_is_told_with_what_to_add(tmp_path: Path) -> None:
    for name, word in (("robo", "<robo>"), ("other", "<robo>"), ("cat", "<new1>")):
        Delta({}, {word: torch.ones(1, 4)}).save(tmp_path / f"{name}.delta.safetensors")
    (tmp_path / "broken.delta.safetensors").write_bytes(b"nothing")

    def told(prompt: str) -> str:
        return generate_tab._told(prompt, Sampling(), tmp_path, 5, 2)

    assert told("a <robo> robot").count("&lt;robo&gt; only means something with its delta: add &lt;delta:") == 1
    assert "plain text" not in told("a <robo> robot")
    for prompt in ("a <robo> robot <delta:robo:1>", "a robot", "a <robot <delta:robo"):
        assert told(prompt) == "<p>Seeds 5 to 6. Pictures are not kept: save the ones you want.</p>"
    assert "add &lt;delta:cat:1&gt; to the prompt" in told("a <robo> and a <new1> <delta:other:0.5>")


def test_what_in_a_prompt_has_no_effect_is_told_beside_the_pictures(tmp_path: Path) -> None:
    Delta({}, {"<rac>": torch.ones(1, 4)}).save(tmp_path / "rac.delta.safetensors")
    sampling = Sampling(guidance_scale=1, negative_prompt="<new7>")
    told = generate_tab._told("a <rca> <lora:x:1> <delta:rac:10>", sampling, tmp_path, 5, 1)
    assert [html.unescape(each) for each in told.removesuffix("</p>").split("</p>")[1:]] == [
        "<p><lora:x:1> is plain text here, where <delta:NAME:0.8> is the only tag; convert makes deltas of LoRAs.",
        "<p><rca> is plain text: no delta in the prompt has that word. Did you mean <rac>?",
        "<p><new7> is plain text: no delta in the prompt has that word.",
        "<p>The prompt has none of its delta's words: <rac>.",
        "<p>A weight of 10 is far from 1, at which the delta was trained: try 0.5 to 1.2.",
        "<p>Negative prompt has no effect, as CFG Scale is 1.",
    ]


def test_a_picture_that_does_not_say_how_it_was_made_changes_nothing(made: dict[str, Part], tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    *same, said = made["cd_gen_read"].press(cd_gen_read=SimpleNamespace(name=str(tmp_path / "photo.png")))
    assert same == [gr.update()] * 8 and "<div class='error'>photo.png does not say" in said
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "a dog\nSeed: 3")
    Image.new("RGB", (8, 8)).save(tmp_path / "half.png", pnginfo=text)
    prompt, _, steps, *_ = made["cd_gen_read"].press(cd_gen_read=SimpleNamespace(name=str(tmp_path / "half.png")))
    assert prompt == "a dog\nSeed: 3" and steps == gr.update()


def test_a_page_opened_later_shows_the_last_pictures_and_no_refusal(made: dict[str, Part]) -> None:
    opened = made["cd_again"].events[0]
    assert [each.elem_id for each in opened.outputs] == ["cd_gallery", "cd_gen_outcome", "cd_gen_history"]
    assert len(list(opened.fn())) == 1  # there is nothing yet
    drawn = {"cd_gen_steps": 1, "cd_gen_count": 1, "cd_gen_seed": 5, "cd_gen_width": 16, "cd_gen_height": 8}
    *_, here = made["cd_generate"].press(cd_gen_prompt="a cat", **drawn)
    *_, later = opened.fn()
    assert later == here and "Seed 5" in later[1]
    *_, refused = made["cd_generate"].press(cd_gen_prompt="<delta:nobody:1>", **drawn)
    assert "There is no delta" in refused[1]
    *_, later = opened.fn()
    assert later == here


def test_what_was_drawn_before_an_interruption_is_shown_and_that_is_no_error(
    made: dict[str, Part], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(count: int) -> object:
        yield from [SimpleNamespace(seed=seed, png=b"picture") for seed in range(5, 5 + count)]
        raise Interrupted("interrupted")

    for drawn in (2, 0):
        monkeypatch.setattr(generate_tab, "draw", lambda *_, drawn=drawn: interrupted(drawn))
        *_, (pictures, told, _) = made["cd_generate"].press(cd_gen_prompt="a cat", cd_gen_count=4, cd_gen_seed=5)
        assert told == f"<p>Interrupted after {drawn} of 4 pictures.</p>"
        if drawn:
            assert [Path(path).read_bytes() for path, _ in pictures] == [b"picture"] * 2
        else:
            assert pictures == gr.update()  # those before


@pytest.mark.parametrize(("part", "label"), [("cd_gen_steps", "Sampling steps"), ("cd_gen_count", "Batch count")])
def test_an_emptied_number_is_asked_for_by_its_label(made: dict[str, Part], part: str, label: str) -> None:
    *_, (_, told, _) = made["cd_generate"].press(cd_gen_prompt="a cat", **{part: None})
    assert told == f"<div class='error'>{label} is empty; give a number. Nothing was drawn.</div>"
    *_, (_, told, _) = made["cd_generate"].press(cd_gen_prompt="a cat", **{part: 0})
    assert f"{label} should be 1 to " in told
    *_, (_, told, _) = made["cd_generate"].press(cd_gen_prompt="a cat", cd_gen_cfg=None)
    assert "CFG Scale is empty" in told


def test_half_a_size_is_refused(made: dict[str, Part]) -> None:
    *_, (_, told, _) = made["cd_generate"].press(cd_gen_prompt="a cat", cd_gen_width=16)
    assert "Give both width and height" in told
