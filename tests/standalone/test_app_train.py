"""The app's Train tab: from what was entered to the files, and what the page says on the way."""

from __future__ import annotations

import inspect
import json
import threading
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.standalone.app import jobs
from lib_custom_diffusion.standalone.app.jobs import Jobs
from lib_custom_diffusion.standalone.app.models import Models
from lib_custom_diffusion.standalone.app.reopened_pages import ReopenedPages
from lib_custom_diffusion.standalone.app.train_tab import build_train_tab
from lib_custom_diffusion.standalone.cli import parser
from lib_custom_diffusion.standalone.diffusers_backend import DiffusersBackend
from lib_custom_diffusion.standalone.train import plan_of
from lib_custom_diffusion.training.recipes import RECIPES, TOY_RECIPES
from lib_custom_diffusion.ui.training_form import entered_plan
from page import Part, fields, parts


class Page:
    """The tab on a small model, with folders of its own."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.deltas, self.logs, self.sent = folder / "deltas", folder / "training", []
        self.models = Models(str(model))
        self.jobs = Jobs(self.models.lock)
        with gr.Blocks() as self.blocks:
            build_train_tab(
                self.jobs, self.models, self.deltas, self.logs, lambda *parts: self.sent.append(parts), ReopenedPages()
            )
        self.parts: dict[str, Part] = parts(self.blocks)

    def press(self, button: str, **entered: Any) -> list[Any]:
        """All that a press of the button shows, from the first to the last."""
        assert inspect.isgeneratorfunction(self.parts[button].events[0].fn)  # of no other does gradio show all
        return list(self.parts[button].press(**entered))


@pytest.fixture
def page(model: Path, tmp_path: Path) -> Page:
    return Page(model, tmp_path)


def entered(pictures: Path, **more: Any) -> dict[str, Any]:
    return {
        "cd_pictures_1": str(pictures), "cd_class_1": "cat", "cd_steps": 3, "cd_batch_size": 1, "cd_preview_every": 2,
        "cd_resolution": 64, **more,
    }  # fmt: skip


def test_a_word_is_taught_and_the_page_says_how_to_use_it(
    page: Page, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_SECONDS_BETWEEN_LOOKS", 0.001)  # three small steps are soon over
    shown = page.press("cd_start", **entered(pictures, cd_optimizer="sgd"))
    _, progress, _, outcome, prompt, button, resume = shown[-1]
    target = page.deltas / "new1.delta.safetensors"
    assert Delta.load(target).provenance.tokens == {"<new1>": "cat"}
    assert any(" of 3" in str(each[1]) for each in shown)
    assert any("<td>new1</td>" in str(each[1]) for each in shown)
    assert progress == "" and "Finished after 3 steps" in outcome and str(target) in outcome
    assert prompt["value"] == "photo of a <new1> cat <delta:new1:1>" and prompt["visible"] and button["visible"]
    assert not resume["visible"]
    [log] = page.logs.glob("*/new1")
    assert {path.name for path in log.iterdir()} == {
        "checkpoint-3", "config.json", "images", "loss.csv", "new1.delta.safetensors", "new1.pt"
    }  # fmt: skip
    assert sorted(path.name for path in (log / "images").iterdir()) == ["new1-2.png", "new1-3.png"]
    assert json.loads((log / "config.json").read_text())["optimizer"] == "sgd"


def test_pictures_that_are_dragged_in_are_kept_in_a_folder_of_their_own(page: Page, pictures: Path) -> None:
    dragged = [SimpleNamespace(name=str(path)) for path in sorted(pictures.glob("*.png"))]
    keep = page.parts["cd_upload"].events[0].fn
    folder, told = keep(dragged, str(pictures))
    folder = Path(folder)
    assert told == ""
    assert folder.parent == (page.logs / "pictures").resolve()
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert kept == {Path(each.name).name: Path(each.name).read_bytes() for each in dragged} and kept
    more = Path(keep(dragged[:1], str(folder))[0])  # of the same name as one before
    named = Path(dragged[0].name)
    assert more != folder and {path.name for path in more.iterdir()} == {*kept, f"{named.stem}-2.png"}
    assert [part.elem_id for part in page.parts["cd_upload"].events[0].outputs] == ["cd_pictures_1", "cd_estimate"]


def test_files_that_are_no_pictures_are_left_out_with_the_reason(page: Page, pictures: Path, tmp_path: Path) -> None:
    keep = page.parts["cd_upload"].events[0].fn
    assert page.parts["cd_upload"].component.file_types is None  # gradio would drop others without a word
    others = []
    for name in ("report.pdf", "<b>notes.txt", "noname", "film.mp4"):
        (tmp_path / name).write_bytes(b"no")
        others.append(SimpleNamespace(name=str(tmp_path / name)))
    chosen, told = keep(others[:1], str(pictures))
    assert chosen == gr.update() and not page.logs.exists()  # what was chosen stays
    assert told == (
        "<div class='error'>Left out: report.pdf: in a format that cannot be read here; save it as JPEG.</div>"
    )  # fmt: skip
    chosen, told = keep([*others, SimpleNamespace(name=str(pictures / "a.png"))], "")
    assert [path.name for path in Path(chosen).iterdir()] == ["a.png"]
    assert told.count("it is not a picture that can be read") == 2
    assert "&lt;b&gt;notes.txt: it" in told and "; and 1 more." in told


def test_the_toys_preset_is_the_recipe_of_the_command() -> None:
    concept = {"modifier_token": "<new1>", "initializer_token": "ktn", "instance_data_dir": "folder"}
    page = entered_plan([concept], TOY_RECIPES["toy model: thing"], lambda name: None).config()
    flags = parser().parse_args(["train", "--instance_data_dir", "folder", "--instance_prompt", "photo of a <new1>"])
    # The page has previews of its own, and keeps one save.
    pages = {"checkpoints_total_limit", "validation_prompt", "num_validation_images"}
    command = asdict(plan_of(flags).config())
    assert {name for name, value in asdict(page).items() if value != command[name]} == pages


def test_a_page_opened_meanwhile_shows_the_training_and_its_end(page: Page, pictures: Path) -> None:
    events = list(zip(page.blocks.dependencies, page.blocks.fns, strict=True))
    [_, (on_load, opened), (filled, form)] = [
        (event, handler.fn) for event, handler in events if event["trigger"] == "load"
    ]
    shown = [part.component._id for part in page.parts["cd_start"].events[0].outputs]
    assert on_load["outputs"] == shown
    at = [page.blocks.blocks[part].elem_id for part in filled["outputs"]]
    assert form()[:-1] == [gr.update()] * (len(at) - 1)
    assert at[-1] == "cd_note" and "known after the first training" in form()[-1]
    nothing = [(gr.update(),) * 7]
    assert inspect.isgeneratorfunction(opened) and list(opened()) == nothing
    started = page.parts["cd_start"].press(**entered(pictures, cd_steps=100000))
    while "of 100000" not in next(started)[1]:
        pass
    here = opened()
    while "of 100000" not in next(here)[1]:
        pass
    seen = dict(zip(at, form(), strict=True))
    assert (seen["cd_class_1"], seen["cd_pictures_1"], seen["cd_steps"]) == ("cat", str(pictures), 100000)
    assert seen["cd_preset"] == next(iter(RECIPES))
    page.parts["cd_stop"].press()
    there, here_too = list(started)[-1], list(here)[-1]
    seen = dict(zip(at, form(), strict=True))  # as it can go on
    assert (seen["cd_class_1"], seen["cd_pictures_1"], seen["cd_steps"]) == ("cat", str(pictures), 100000)
    assert "on this machine" in form()[-1] and "known after" not in form()[-1]
    assert "Interrupted and saved" in here_too[3] and here_too[3:] == there[3:]
    assert "Word is empty" in page.press("cd_start", **entered(pictures, cd_word_1=""))[-1][0]
    assert dict(zip(at, form(), strict=True))["cd_steps"] == 100000  # not what was refused
    later = list(opened())[-1]
    assert later[3:] == there[3:]  # what was refused is shown only where it was asked for
    with page.models.lock:  # the next one waits
        again = page.parts["cd_start"].press(**entered(pictures, cd_steps=3, cd_name="again"))
        next(again), next(again)
        here = opened()
        next(here), next(here)
    assert "Finished after 3 steps" in list(here)[-1][3] and "Finished after 3 steps" in list(again)[-1][3]
    assert form()[:-1] == [gr.update()] * (len(at) - 1)  # there is nothing to go on with
    *_, before, later = page.parts["cd_again"].events[0].fn()  # as the page presses that has lost its connection
    assert "Finished after 3 steps" in later[3] and before[2]["value"].size == (64, 64)


def test_interrupt_during_a_preview_takes_no_step_more(
    page: Page, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = DiffusersBackend.generate
    monkeypatch.setattr(DiffusersBackend, "generate", lambda *of: page.jobs.interrupt() or draw(*of))
    assert "Interrupted and saved after 2 steps" in page.press("cd_start", **entered(pictures))[-1][3]


def test_interrupt_saves_and_the_next_training_goes_on_from_there(page: Page, pictures: Path) -> None:
    pressed = threading.Event()
    shown = []
    for each in page.parts["cd_start"].press(**entered(pictures, cd_steps=100000)):
        shown.append(each)
        if "of 100000" in each[1] and not pressed.is_set():
            page.parts["cd_stop"].press()
            pressed.set()
    outcome = shown[-1][3]
    assert "Interrupted and saved after" in outcome and "Press Resume to continue from here" in outcome
    assert shown[-1][6]["visible"]
    step = Delta.load(page.deltas / "new1.delta.safetensors").provenance.steps
    assert 0 < step < 100000
    tick, run, untick, noted = page.parts["cd_resume_now"].events
    assert tick.fn() is True and untick.fn() is False
    assert [part.elem_id for part in noted.outputs] == ["cd_note"]
    assert [part.elem_id for event in (tick, untick) for part in event.outputs] == ["cd_resume"] * 2
    start = page.parts["cd_start"].events[0]
    assert [part.elem_id for part in run.inputs] == [part.elem_id for part in start.inputs]
    again = entered(pictures, cd_steps=step + 2, cd_resume=True)
    values = [again.get(part.elem_id, part.value) for part in run.inputs]
    assert f"Finished after {step + 2} steps" in list(run.fn(*values))[-1][3]


def test_a_mistake_is_a_sentence(page: Page, pictures: Path) -> None:
    def said(**more: Any) -> str:
        return page.press("cd_start", **entered(pictures, **more))[-1][0]

    assert "Dataset directory is empty; drag your pictures in" in said(cd_pictures_1=" ")
    assert "cat is a word that" in said(cd_word_1="cat")
    assert "should be a word without spaces" in said(cd_word_1="two words")
    assert not page.deltas.exists()


def test_there_is_one_place_for_what_is_wrong_and_it_is_gone_when_something_begins(page: Page, pictures: Path) -> None:
    nowhere = str(pictures / "nowhere")
    for button in ("cd_start", "cd_ask"):
        *before, last = page.press(button, **entered(pictures, cd_pictures_1=nowhere))
        assert all(each[0] in ("", gr.update()) for each in before)
        assert "There is no folder" in last[0] and "<div class='error'>" not in "".join(map(str, last[1:]))
        assert page.parts[button].events[0].outputs[0].elem_id == "cd_estimate"
    typed, left = [event for event in page.parts["cd_pictures_1"].events if event.outputs[-1].elem_id == "cd_estimate"]
    assert typed.fn is None and typed.js == "() => ''"
    strip, told = left.fn(nowhere, "cropped to a square", False)
    assert strip == "" and "There is no folder" in told
    strip, told = left.fn(str(pictures), "cropped to a square", False)
    assert "3 pictures." in strip and told == gr.update()  # an estimate, perhaps


def test_what_came_of_a_training_stays_while_the_next_is_refused(page: Page, pictures: Path) -> None:
    def last_outcome(**more: Any) -> list[Any]:
        return [each[3] for each in page.press("cd_start", **entered(pictures, **more)) if each[3] != gr.update()]

    refused = last_outcome(cd_pictures_1=str(pictures / "nowhere"))
    cleared, told = last_outcome(cd_steps=1)
    assert (refused, cleared) == ([], "") and "Finished after 1 steps" in told
    assert last_outcome(cd_steps=1) == []  # there is a delta of that name already


def test_while_a_training_goes_on_no_other_begins_and_it_stays_in_sight(page: Page, pictures: Path) -> None:
    with page.models.lock:
        first = page.parts["cd_start"].press(**entered(pictures, cd_steps=1))
        next(first)
        for button in ("cd_start", "cd_ask"):
            answer = page.parts[button].press(**entered(pictures, cd_word_1="<new2>"))
            told, *others = next(answer)
            assert "Training &lt;new1&gt; has not ended yet; wait for it, or press Interrupt and save" in told
            assert all(each == gr.update() for each in others) and list(answer) == []
    *_, last = first
    assert "Finished after 1 steps" in last[3]
    *_, last = page.press("cd_start", **entered(pictures, cd_name="next", cd_steps=1))
    assert "Finished after 1 steps" in last[3]


def test_a_page_that_comes_back_into_sight_shows_what_another_has_trained(page: Page, pictures: Path) -> None:
    seen = page.parts["cd_in_sight"].events[0]
    assert [each.elem_id for each in seen.inputs] == ["cd_outcome"] and len(list(seen.fn("begin"))) == 1
    *_, done = page.press("cd_start", **entered(pictures, cd_steps=1))
    assert len(list(seen.fn(done[3]))) == 1  # it is there
    *_, later = seen.fn("begin")
    assert later[3] == done[3] and later[4] == done[4]


def test_pictures_are_shown_beside_the_form(page: Page) -> None:
    blocks = page.blocks.blocks
    [side] = [part for part in blocks.values() if part.elem_id == "cd_side"]
    assert page.parts["cd_strip"].component in side.children
    assert blocks[page.parts["cd_strip"].component._id] is page.parts["cd_strip"].component


def test_a_delta_of_that_name_is_kept_unless_overwriting_was_asked_for(page: Page, pictures: Path) -> None:
    page.deltas.mkdir()
    target = page.deltas / "new1.delta.safetensors"
    target.write_bytes(b"precious")
    assert "Overwrite" in page.press("cd_start", **entered(pictures))[-1][0]
    assert target.read_bytes() == b"precious"


def test_the_time_is_estimated(page: Page, pictures: Path) -> None:
    told, _ = page.press("cd_ask", **entered(pictures, cd_steps=500))[-1]
    assert "About" in told and "for 500 steps" in told and "a few steps taken just now" in told
    assert not page.deltas.exists() and [path.name for path in page.logs.iterdir()] == ["timings.json"]
    told, _ = page.press("cd_ask", **entered(pictures, cd_steps=500))[-1]
    assert "a training of" in told


def test_the_form_is_that_of_the_webui_with_a_word_to_type(page: Page) -> None:
    asked = {part.elem_id for part in page.parts["cd_start"].events[0].inputs}
    assert {"cd_word_1", "cd_initializer_4", "cd_vectors", "cd_shape", "cd_max_megabytes", "cd_resume"} <= asked
    assert len([each for each in asked if each.startswith("cd_initializer_")]) == 4
    silent = [
        field for field in fields(page.blocks) if not field.info and not getattr(field.component, "placeholder", None)
    ]
    assert {field.label.partition(" of concept")[0] for field in silent} == {"Word", "Prompt to try", "Preset"}


def test_the_prompt_to_try_can_be_sent_on(page: Page) -> None:
    [(button, prompt)] = page.sent
    assert (button.elem_id, prompt.elem_id) == ("cd_send", "cd_try_prompt")


def test_the_toy_model_starts_with_its_own_recipe(tmp_path: Path) -> None:
    values = {name: part.value for name, part in Page(Path("toy"), tmp_path).parts.items()}
    assert (values["cd_learning_rate"], values["cd_embedding_learning_rate"]) == ("2e-3", "5e-3")
    other = {name: part.value for name, part in Page(Path("other"), tmp_path).parts.items()}
    assert (other["cd_learning_rate"], other["cd_steps"]) == ("8e-5", 250)
