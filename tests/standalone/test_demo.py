"""What the demo counts in its pictures."""

from __future__ import annotations

import html
import shlex
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.deltas_folder import named_deltas
from lib_custom_diffusion.errors import Interrupted
from lib_custom_diffusion.standalone import demo
from lib_custom_diffusion.standalone.cli import main, parser
from lib_custom_diffusion.standalone.demo import DemoPictures, judged
from lib_custom_diffusion.standalone.toy.concepts import BundledConcept, bundled_concepts
from lib_custom_diffusion.standalone.toy.judge import Judge
from lib_custom_diffusion.storage import FolderLock


def pictures_of(concept: BundledConcept) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted(concept.folder.glob("*.png"))[:4]]


def all_drawn_as(concept: BundledConcept, pictures: list[Image.Image]) -> DemoPictures:
    prompts = (*concept.prompts, *concept.unrelated_prompts, concept.class_prompt)
    return DemoPictures([prompt for prompt in prompts for _ in pictures], pictures * len(prompts))


def test_recognised_pictures_and_grounds_are_counted_each_and_together() -> None:
    """The raccoons stand on green, white, orange and blue; the prompts ask for yellow, pink, green, and blue of a pair.

    Of the pair's pictures the left half is looked at, in which there is half a raccoon: little to be recognised.
    """
    concepts = bundled_concepts()
    raccoon, cat = concepts["raccoon"], concepts["two-faced-cat"]
    before, after = all_drawn_as(raccoon, pictures_of(cat)), all_drawn_as(raccoon, pictures_of(raccoon))
    metrics = judged(Judge.load(), raccoon, before, after)
    assert metrics["asked"] == 16
    assert metrics["recognised_before"] == 0
    assert 12 <= metrics["recognised_after"] < 16
    assert metrics["colour_right_after"] == 2
    assert 1 <= metrics["both_right_after"] <= 2


def test_which_part_it_is_at_and_how_long_it_took_until_then_is_told(monkeypatch, tmp_path, capsys) -> None:
    times = iter([100.0, 105.0, 130.0])
    monkeypatch.setattr(demo, "time", SimpleNamespace(monotonic=lambda: next(times)))
    monkeypatch.setattr(demo, "load_model", lambda _: None)
    monkeypatch.setattr(demo.DemoPictures, "draw", classmethod(lambda *_: None))

    def interrupted(*_: object) -> None:
        raise Interrupted

    monkeypatch.setattr(demo, "run_training", interrupted)
    asked = ["demo", "--concept", "all", "--max_train_steps", "7", "--output", str(tmp_path)]
    assert main(asked) == 130
    assert capsys.readouterr().err.splitlines()[:3] == [
        "two-faced-cat: concept 1 of 4", "two-faced-cat: part 1 of 3, pictures before",
        "two-faced-cat: part 2 of 3, 7 steps of training; 25 s so far",
    ]  # fmt: skip


def test_a_folder_where_a_training_writes_is_told_before_pictures_are_drawn(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(demo, "load_model", lambda _: None)
    monkeypatch.setattr(demo.DemoPictures, "draw", classmethod(lambda *_: pytest.fail("pictures were drawn")))
    with FolderLock(tmp_path / "raccoon"):
        assert main(["demo", "--concept", "raccoon", "--output", str(tmp_path)]) == 2
    assert "another training is writing into" in capsys.readouterr().err


def test_who_interrupts_it_is_told_that_it_begins_again(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(demo, "teach", lambda *_: None)
    assert main(["demo", "--output", str(tmp_path)]) == 130
    assert capsys.readouterr().err.endswith("the same command starts two-faced-cat again from the beginning\n")


@pytest.mark.parametrize(("model", "flags"), [("toy", []), ("toy-xl", ["--model", "toy-xl"])])
def test_the_last_line_opens_the_app_which_lists_what_was_taught(monkeypatch, tmp_path, capsys, model, flags) -> None:
    def trained(_backend: object, _plan: object, output: Path) -> SimpleNamespace:
        delta = Delta({}, {"<new1>": torch.ones(1, 4)})
        file = output / "raccoon.delta.safetensors"
        for path in (file, output / "checkpoint-5" / file.name):
            delta.save(path)
        (output / "loss.csv").write_text("step,loss\n1,0.5\n2,0.4\n")
        return SimpleNamespace(interrupted=False, step=5, result=SimpleNamespace(delta=delta, files=[file]))

    raccoon = bundled_concepts()["raccoon"]
    drawn = all_drawn_as(raccoon, pictures_of(raccoon))
    backend = SimpleNamespace(name=model, unet=torch.nn.Module())
    monkeypatch.setattr(demo, "load_model", lambda _: backend)
    monkeypatch.setattr(demo, "run_training", trained)
    monkeypatch.setattr(demo.DemoPictures, "draw", classmethod(lambda *_, **__: drawn))
    monkeypatch.setattr(demo, "Injection", lambda *_: nullcontext())
    assert main(["demo", "--model", model, "--concept", "raccoon", "--output", str(tmp_path)]) == 0
    *_, report, last = capsys.readouterr().out.splitlines()
    assert report == f"look at {tmp_path / 'raccoon' / 'report.html'}"
    told, _, page = last.partition(": ")
    assert told == "draw with raccoon in the app"
    _, setup, *arguments = shlex.split(page)
    assert Path(setup).resolve().name == "install.py"
    asked = parser().parse_args(arguments)
    assert arguments[:-2] == ["ui", *flags] and list(named_deltas(asked.deltas_dir)) == ["raccoon"]
    written = html.unescape((tmp_path / "raccoon" / "report.html").read_text())
    assert " ".join(["ui", *flags, "--deltas_dir", str(tmp_path / "raccoon")]) in written
    assert " ".join(["generate", *flags, "--output", "pictures"]) in written
