"""A training from the settings to the files: what is refused and when, what is replaced and when, what is told."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from PIL import Image

from lib_custom_diffusion.data.concepts import Concept
from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.errors import Interrupted, NotSaved, UserError
from lib_custom_diffusion.storage import FolderLock
from lib_custom_diffusion.training import checkpoints, job
from lib_custom_diffusion.training.checks import check_settings
from lib_custom_diffusion.training.job import Host, Report, TrainingJob
from lib_custom_diffusion.training.loop import Progress, Trainer
from lib_custom_diffusion.training.plan import PLAIN, TrainingPlan
from tiny import TinyBackend

DELTA = "new1.delta.safetensors"


class Recorder:
    """A face that keeps what it was shown; `stop` says when a person interrupts."""

    wording = PLAIN

    def __init__(self, stop: Callable[[Recorder], bool] = lambda face: False) -> None:
        self.prepared: list[str] = []
        self.steps: list[int] = []
        self.copies: list[str] = []
        self.previews = 0
        self.stop = stop

    def preparing(self, what: str, done: int, total: int) -> None:
        self.prepared.append(what)

    def progress(self, progress: Progress) -> None:
        self.steps.append(progress.step)

    def preview(self, picture: Image.Image) -> None:
        self.previews += 1

    def copied(self, name: str) -> None:
        self.copies.append(name)

    def interrupted(self) -> bool:
        return self.stop(self)


def folder_of(folder: Path, *names: str) -> Path:
    """A folder with pictures, each of its own colour."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        colour = tuple(hash_of(f"{folder.name}/{name}"))
        Image.new("RGB", (16, 16), colour).save(folder / name)
    return folder


def hash_of(text: str) -> bytes:
    import hashlib

    return hashlib.sha256(text.encode()).digest()[:3]


@pytest.fixture
def plan(tmp_path: Path) -> TrainingPlan:
    pictures = folder_of(tmp_path / "pictures", "a.png", "b.png", "c.png")
    return TrainingPlan.of({
        "concepts": [Concept("photo of a <new1> cat", pictures, "cat")], "max_train_steps": 4, "train_batch_size": 2,
        "checkpointing_steps": 2, "learning_rate": "1e-2", "prior": "none",
    })  # fmt: skip


def run(plan: TrainingPlan, output: Path, face: Recorder | None = None, **host: Any) -> Report:
    return TrainingJob(plan, Host(host.pop("backend", None) or TinyBackend(), output, **host), face or Recorder()).run()


def test_a_training_leaves_its_result_its_saves_its_losses_and_its_settings(plan: TrainingPlan, tmp_path: Path) -> None:
    report = run(plan, tmp_path / "out")
    assert (report.step, report.interrupted, report.delta) == (4, False, tmp_path / "out" / DELTA)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "checkpoint-2", "checkpoint-4", "config.json", "loss.csv", DELTA, "new1.pt",
    ]  # fmt: skip
    assert report.prompt == "photo of a <new1> cat <delta:new1:1>"


def test_settings_on_the_disk_are_a_plan_again(plan: TrainingPlan, tmp_path: Path) -> None:
    run(plan, tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "config.json").read_text())
    assert [stored.pop(name) for name in ("model", "checkpoint")] == ["tiny", "0123456789"]
    stored.pop("library_version")
    assert TrainingPlan.of(stored) == plan


def test_captions_are_looked_at_before_a_model_is_loaded(plan: TrainingPlan) -> None:
    asked = replace(plan, caption_source="template", template=Path("nowhere.txt"))
    with pytest.raises(UserError, match=r"nowhere\.txt"):
        check_settings(asked)


def old_training(folder: Path) -> dict[str, bytes]:
    """What an earlier training has left, as a file's content by its path."""
    for name in ("checkpoint-9/old.bin", DELTA, "loss.csv", "config.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"of weeks")
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max_train_steps": 0}, "max_train_steps must be 1 or more, not 0"),
        ({"learning_rate": "fast"}, "learning_rate: 'fast' is not a learning rate"),
        ({"snr_gamma": -1.0}, "snr_gamma must be above 0"),
        ({"max_grad_norm": -1.0}, "max_grad_norm must be above 0"),
        ({"mixed_precision": "fp16"}, "mixed_precision fp16 needs a GPU"),
        ({"name": "a/b"}, "name 'a/b' has characters that file names cannot have on every system; call it 'ab'"),
        ({"name": "x" * 300}, "too long"),
        ({"modifier_token": ("***",)}, "no letter or digit to use in a file name"),
        ({"modifier_token": ("<new1>", "new1")}, "the words <new1> and new1 are the same, or would be saved as"),
        ({"modifier_token": ("<new1>", "<NEW1>")}, "the words <new1> and <NEW1> are the same, or would be"),
        ({"modifier_token": ("cat",)}, "cat is a word that the model tiny knows already"),
        ({"initializer_token": ("",)}, "the initializer token '' for <new1> is empty"),
        ({"resolution": 20}, "resolution must be a multiple of 8"),
        ({"rank": -1}, "rank must be 0 or more"),
        ({"energy": 1.5}, "energy share must lie between 0 and 1"),
        ({"max_size": "5MB", "energy": 0.5}, "give max_size or energy, not both"),
        ({"max_size": "tiny"}, "'tiny' is not a size"),
        ({"max_size": "5"}, "5 would be bytes; write 5MB for megabytes"),
        ({"train_blocks": ("sideways",)}, "choose from down, mid, up"),
        ({"caption_source": "template", "template": Path("nowhere.txt")}, "nowhere.txt"),
        ({"prior_captions": "nowhere.txt"}, "the captions in nowhere.txt cannot be read"),
        ({"with_prior_preservation": True, "num_class_images": 0}, "needs class pictures: give class_data_dir of conc"),
        ({"with_prior_preservation": True, "real_prior": True}, "concept 1 needs a folder of captioned pictures"),
        ({"resume_from_checkpoint": "checkpoint-7"}, "there is no save checkpoint-7"),
        ({"concepts": (Concept("photo of a <new1> cat", Path("nowhere")),)}, "there is no folder nowhere"),
        ({"concepts": ()}, "1 concept or more"),
        ({"sample_batch_size": 0}, "sample_batch_size must be 1 or more"),
        (
            {"concepts": (Concept("a \ud800 <new1>", Path("pictures")),)},
            "instance_prompt of concept 1 'a \\ud800 <new1>' has",
        ),
        ({"validation_prompt": "\udcff"}, "validation_prompt '\\udcff' has bytes that are not text"),
        ({"validation_prompt": "a\0b"}, "validation_prompt 'a\\x00b' has bytes that are not text"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, dict) else "",
)
def test_what_cannot_be_is_refused_before_anything_is_lost_or_encoded(
    plan: TrainingPlan, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    output, backend = tmp_path / "out", TinyBackend()
    before = old_training(output)
    with pytest.raises(UserError) as refused:
        run(replace(plan, overwrite=True, **change), output, backend=backend)
    assert said in str(refused.value)
    assert contents(output) == before and backend.pictures_encoded == 0


def test_a_second_concept_is_checked_before_pictures_are_drawn_for_the_first(
    plan: TrainingPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TinyBackend, "generate", lambda *_: pytest.fail("pictures were drawn"))
    other = Concept("photo of a <new2> dog", folder_of(tmp_path / "others", "a.png"))
    asked = replace(plan, concepts=(*plan.concepts, other), with_prior_preservation=True, num_class_images=3)
    with pytest.raises(UserError, match="concept 2 needs a class_prompt for prior preservation, such as cat"):
        run(asked, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pictures_without_captions_are_not_picked_from_after_the_first_concept_was(
    plan: TrainingPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TinyBackend, "pooled_text", lambda *_: pytest.fail("captions were compared"))
    captioned, bare = folder_of(tmp_path / "captioned", "a.png"), folder_of(tmp_path / "bare", "a.png")
    (captioned / "a.txt").write_text("a cat")
    [cat] = plan.concepts
    dog = Concept("photo of a <new2> dog", folder_of(tmp_path / "dog", "a.png"), "dog", bare)
    asked = replace(
        plan, concepts=(replace(cat, class_data_dir=captioned), dog), with_prior_preservation=True, real_prior=True
    )
    with pytest.raises(UserError, match="bare has no captions to pick by"):
        run(asked, tmp_path / "out")


def test_class_pictures_are_not_drawn_among_those_to_be_learned_nor_two_classes_into_one_folder(
    plan: TrainingPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TinyBackend, "generate", lambda *_: pytest.fail("pictures were drawn"))
    [cat], others = plan.concepts, tmp_path / "others" / "3_things"
    folder_of(tmp_path / "others" / "3_things", "a.png")
    dog = Concept("photo of a <new2> dog", tmp_path / "others", "dog", class_data_dir=tmp_path / "classes")
    for first, said in (
        (others / ".." / "3_things", "class_data_dir of concept 1 is .*, where pictures to be learned are"),
        (tmp_path / "classes", "class_data_dir of concept 2 is .*classes, where those of 'cat' are drawn"),
    ):
        asked = replace(
            plan, concepts=(replace(cat, class_data_dir=first), dog), with_prior_preservation=True, num_class_images=3
        )
        with pytest.raises(UserError, match=said):
            run(asked, tmp_path / "out")
    assert [path.name for path in others.iterdir()] == ["a.png"] and not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_refused_before_encoding(plan: TrainingPlan, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"no folder")
    backend = TinyBackend()
    for places in (
        {"output": tmp_path / "file" / "out"},
        {"output": tmp_path / "out", "delta": tmp_path / "file" / "x"},
    ):
        with pytest.raises(UserError, match="cannot write to"):
            run(plan, backend=backend, **places)
    assert backend.pictures_encoded == 0 and not (tmp_path / "out").exists()


def test_a_folder_that_another_training_writes_into_is_refused(plan: TrainingPlan, tmp_path: Path) -> None:
    with FolderLock(tmp_path / "out"), pytest.raises(UserError, match="another training is writing into"):
        run(plan, tmp_path / "out")


def test_what_another_training_has_left_meanwhile_is_neither_replaced_nor_mixed_up(
    plan: TrainingPlan, tmp_path: Path
) -> None:
    def made(**changes: Any) -> TrainingJob:
        return TrainingJob(replace(plan, **changes), Host(TinyBackend(), tmp_path / "out"), Recorder())

    waiting, going_on = made(), made(resume_from_checkpoint="latest")
    replacing = made(overwrite=True, max_train_steps=2)
    before = run(plan, tmp_path / "out").step, contents(tmp_path / "out")
    with pytest.raises(UserError, match="there is already a training called new1"):
        waiting.run()
    with pytest.raises(UserError, match=r"another training has saved into .*out meanwhile; start again to resume from"):
        going_on.run()
    assert before == (4, contents(tmp_path / "out"))
    replacing.run()
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-2"]


def test_pictures_that_were_changed_since_a_save_was_looked_at_are_refused(plan: TrainingPlan, tmp_path: Path) -> None:
    run(plan, tmp_path / "out", stop_at(1))
    backend = TinyBackend()
    going_on = TrainingJob(replace(plan, resume_from_checkpoint="latest"), Host(backend, tmp_path / "out"), Recorder())
    changed(plan)
    with pytest.raises(UserError, match=r"pictures of concept 1: added b\.png, removed b\.png"):
        going_on.run()
    assert backend.pictures_encoded == 0


def test_what_overwrite_replaces_is_replaced_at_the_first_save(plan: TrainingPlan, tmp_path: Path) -> None:
    output = tmp_path / "out"
    before = old_training(output)
    seen: dict[int, dict[str, bytes]] = {}

    class Looking(Recorder):
        def progress(self, progress: Progress) -> None:
            seen[progress.step] = contents(output)

    run(replace(plan, overwrite=True), output, Looking())
    unsaved = {path: content for path, content in seen[2].items() if not path.startswith(".")}
    assert unsaved == before  # the save of step 2 comes after its report
    assert "checkpoint-9/old.bin" not in seen[3] and DELTA not in seen[3] and "checkpoint-2/new1.pt" in seen[3]
    assert seen[3]["loss.csv"].startswith(b"step,loss") and seen[3]["config.json"].startswith(b"{")
    assert (output / "loss.csv").read_text().count("\n") == 1 + 4


def test_a_training_keeps_its_own_saves_of_the_steps_that_the_replaced_one_had_too(
    plan: TrainingPlan, tmp_path: Path
) -> None:
    for _ in range(2):
        run(replace(plan, overwrite=True), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]


def test_without_overwrite_a_training_is_not_replaced_and_the_ways_out_are_named(
    plan: TrainingPlan, tmp_path: Path
) -> None:
    run(plan, tmp_path / "out")
    with pytest.raises(UserError, match=r"set resume_from_checkpoint to continue .* set overwrite to replace it"):
        run(plan, tmp_path / "out")


def stop_at(step: int) -> Recorder:
    return Recorder(lambda face: bool(face.steps) and face.steps[-1] >= step)


def test_interrupted_it_goes_on_to_the_same_bytes(plan: TrainingPlan, tmp_path: Path) -> None:
    run(plan, tmp_path / "whole")
    stopped = run(plan, tmp_path / "cut", stop_at(1))
    assert (stopped.step, stopped.interrupted) == (2, True)
    face = Recorder()
    run(replace(plan, resume_from_checkpoint="latest"), tmp_path / "cut", face)
    assert face.steps == [3, 4]
    for name in (DELTA, "new1.pt", "loss.csv"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_settings_and_saves_are_in_a_folder_that_was_removed_meanwhile(plan: TrainingPlan, tmp_path: Path) -> None:
    run(plan, tmp_path / "whole")
    face = Recorder()
    face.progress = lambda progress: shutil.rmtree(tmp_path / "cut") if progress.step == 3 else None  # type: ignore[method-assign]
    run(plan, tmp_path / "cut", face)
    whole, cut = contents(tmp_path / "whole"), contents(tmp_path / "cut")
    assert cut == {name: content for name, content in whole.items() if not name.startswith("checkpoint-2/")}


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="there all names are text")
def test_what_is_told_can_be_shown_whatever_files_are_called(plan: TrainingPlan, tmp_path: Path) -> None:
    pictures = plan.concepts[0].instance_data_dir
    strange = os.fsdecode(b"\xff")
    (pictures / "a.png").rename(pictures / f"a{strange}.png")
    folder_of(pictures / "more", "d.png").rename(pictures / f"more{strange}")
    report = run(replace(plan, caption_source="txt"), tmp_path / "out")
    assert sum("?" in note for note in report.notes) == 2
    assert "".join(report.notes).encode()
    with pytest.raises(UserError) as error:
        TrainingPlan.of({"concepts": [Concept("a <new1>", tmp_path / strange)]}).captions_of(
            Concept("a <new1>", tmp_path / strange)
        )
    assert str(error.value).encode() and "/?" in str(error.value)


def test_no_process_is_gone_before_the_result_is_where_it_is_used(
    plan: TrainingPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted, each ends with a status at which torchrun ends the others, however long compression takes."""
    there: list[bool] = []
    target = tmp_path / "deltas" / DELTA
    monkeypatch.setattr(job.parallel, "wait_for_all", lambda: there.append(target.exists()))
    run(replace(plan, max_size="5kB"), tmp_path / "out", stop_at(1), delta=target)
    assert there[-1] and not any(there[:-1])


def test_a_training_that_goes_on_keeps_the_saves_before_it(plan: TrainingPlan, tmp_path: Path) -> None:
    run(plan, tmp_path / "out", stop_at(2))
    before = contents(tmp_path / "out" / "checkpoint-2")
    report = run(replace(plan, resume_from_checkpoint="latest"), tmp_path / "out")
    assert report.step == 4 and not any("no save" in note for note in report.notes)
    assert contents(tmp_path / "out" / "checkpoint-2") == before


def test_a_training_that_was_to_go_on_from_nothing_begins_and_says_so(plan: TrainingPlan, tmp_path: Path) -> None:
    report = run(replace(plan, resume_from_checkpoint="latest"), tmp_path / "out")
    assert "There was no save to resume from; it started at the first step." in report.notes


@pytest.mark.parametrize("when", ["while encoding", "before the first step"])
def test_interrupted_before_the_first_step_nothing_is_saved_or_replaced(
    plan: TrainingPlan, tmp_path: Path, when: str
) -> None:
    before = old_training(tmp_path / "old")
    asked_before = 0 if when == "while encoding" else 4  # after each of three pictures, and when all are done
    for output in (tmp_path / "old", tmp_path / "new"):
        answers = iter([False] * asked_before + [True] * 9)
        face = Recorder(lambda face: next(answers))  # noqa: B023 - asked in this round only
        with pytest.raises(Interrupted, match="before the first step; nothing was saved or replaced"):
            run(replace(plan, overwrite=True), output, face)
        assert face.steps == []
    assert contents(tmp_path / "old") == before and not (tmp_path / "new").exists()
    assert run(plan, tmp_path / "new").step == 4  # the same command begins anew


def added(plan: TrainingPlan) -> None:
    folder_of(plan.concepts[0].instance_data_dir, "d.png")


def changed(plan: TrainingPlan) -> None:
    Image.new("RGB", (16, 16), "white").save(plan.concepts[0].instance_data_dir / "b.png")


def removed(plan: TrainingPlan) -> None:
    (plan.concepts[0].instance_data_dir / "c.png").unlink()


def captioned(plan: TrainingPlan) -> None:
    (plan.concepts[0].instance_data_dir / "c.txt").write_text("a <new1> outside")


class OfVelocity(TinyBackend):
    """The same model, taken for one that predicts something else."""

    prediction_type = "v_prediction"


class Other(TinyBackend):
    checkpoint_hash = "fedcba9876"


class OfAnotherVAE(TinyBackend):
    parts = MappingProxyType({"vae": "fedcba9876", "tokenizer": ""})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (added, "pictures of concept 1: added d.png"),
        (changed, "pictures of concept 1: added b.png, removed b.png"),
        (removed, "pictures of concept 1: removed c.png"),
        (captioned, "pictures of concept 1: other captions of c.png"),
        ({"hflip": True}, "hflip was False, is True"),
        ({"resolution": 32}, "resolution was 16, is 32"),
        ({"seed": 1}, "seed was 42, is 1"),
        ({"with_prior_preservation": True}, "pictures of the class of concept 1 were added"),
        (
            {"prompt": "a picture of a <new1> cat"},
            "instance_prompt of concept 1 was 'photo of a <new1> cat', is 'a pict",
        ),
        ({"backend": Other}, "the model is another"),
        ({"backend": OfAnotherVAE}, "training (the VAE is another)"),
        ({"backend": OfVelocity}, "prediction_type was 'epsilon', is 'v_prediction'"),
        ({"folder": "stickers"}, "pictures of concept 1: added a.png, removed a.png, b.png, c.png"),
    ],
    ids=lambda each: str(each) if isinstance(each, (dict, str)) else each.__name__,
)
def test_a_save_is_not_gone_on_from_with_anything_else_and_what_differs_is_named(
    plan: TrainingPlan, tmp_path: Path, change: Any, said: str
) -> None:
    plan = replace(plan, caption_source="txt", num_class_images=2)
    run(plan, tmp_path / "out", stop_at(1))
    asked, backend = replace(plan, resume_from_checkpoint="latest"), TinyBackend
    [concept] = plan.concepts
    if callable(change):
        change(plan)
    elif "prompt" in change:
        asked = replace(asked, concepts=(replace(concept, instance_prompt=change["prompt"]),))
    elif "folder" in change:
        other = folder_of(tmp_path / change["folder"], "a.png")
        asked = replace(asked, concepts=(replace(concept, instance_data_dir=other),), train_batch_size=1)
        said = "train_batch_size was 2, is 1"  # and, with fewer pictures than a batch, that
    elif "backend" in change:
        backend = change["backend"]
    else:
        asked = replace(asked, **change)
    if change == {"with_prior_preservation": True}:
        folder_of(tmp_path / "out" / "class_images-1", "0000.png", "0001.png")
    with pytest.raises(UserError) as refused:
        run(asked, tmp_path / "out", backend=backend())
    assert said in str(refused.value) and "or set allow_changes" in str(refused.value)
    assert run(replace(asked, allow_changes=True), tmp_path / "out", backend=backend()).step == 4


def test_a_save_of_another_folder_is_gone_on_from_with_its_losses(plan: TrainingPlan, tmp_path: Path) -> None:
    run(plan, tmp_path / "whole")
    elsewhere = replace(plan, resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    run(elsewhere, tmp_path / "new")
    for name in (DELTA, "new1.pt", "loss.csv"):
        assert (tmp_path / "new" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_save_of_another_folder_does_not_replace_a_training_unasked(plan: TrainingPlan, tmp_path: Path) -> None:
    run(plan, tmp_path / "whole")
    run(replace(plan, seed=7, max_train_steps=6), tmp_path / "other")
    before = contents(tmp_path / "other")
    elsewhere = replace(plan, resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    with pytest.raises(UserError, match=r"already a training called new1 \(.*\); set overwrite to replace it, or"):
        run(elsewhere, tmp_path / "other")
    assert contents(tmp_path / "other") == before
    run(replace(elsewhere, overwrite=True), tmp_path / "other")
    assert contents(tmp_path / "other").keys() == contents(tmp_path / "whole").keys() - {
        path for path in contents(tmp_path / "whole") if path.startswith("checkpoint-2")
    }
    assert (tmp_path / "other" / "loss.csv").read_bytes() == (tmp_path / "whole" / "loss.csv").read_bytes()


@pytest.mark.parametrize("real_prior", [False, True])
def test_class_pictures_that_are_gone_are_drawn_or_picked_again_by_a_training_that_goes_on(
    plan: TrainingPlan, tmp_path: Path, real_prior: bool
) -> None:
    asked = with_classes(plan, captioned_cats(tmp_path / "cats")) if real_prior else plan
    asked = replace(asked, with_prior_preservation=True, num_class_images=2, real_prior=real_prior)
    run(asked, tmp_path / "whole")
    run(asked, tmp_path / "cut", stop_at(1))
    shutil.rmtree(tmp_path / "cut" / "class_images-1")
    assert run(replace(asked, resume_from_checkpoint="latest"), tmp_path / "cut").step == 4
    assert (tmp_path / "cut" / DELTA).read_bytes() == (tmp_path / "whole" / DELTA).read_bytes()


@pytest.mark.parametrize("change", [{"num_class_images": 3}, {"real_prior": True}, {"with_prior_preservation": False}])
def test_other_class_pictures_are_refused_before_any_are_drawn_or_picked(
    plan: TrainingPlan, tmp_path: Path, change: dict[str, Any]
) -> None:
    drawn = {"with_prior_preservation": True, "num_class_images": 2, "real_prior": False}
    cats = captioned_cats(tmp_path / "cats")
    said = f"{next(iter(change))} was|lists class pictures that real_prior has picked"
    for number, (first, then) in enumerate([(drawn, {**drawn, **change}), ({**drawn, **change}, drawn)]):
        own = plan if not first["real_prior"] else with_classes(plan, cats)
        run(replace(own, **first), tmp_path / str(number), stop_at(1))
        before = contents(tmp_path / str(number))
        asked = replace(plan if not then["real_prior"] else with_classes(plan, cats), **then)
        with pytest.raises(UserError, match=said):
            run(replace(asked, resume_from_checkpoint="latest"), tmp_path / str(number))
        assert contents(tmp_path / str(number)) == before


def test_names_of_pictures_alone_make_no_other_training(plan: TrainingPlan, tmp_path: Path) -> None:
    run(plan, tmp_path / "out", stop_at(1))
    folder = plan.concepts[0].instance_data_dir
    (folder / "c.png").rename(folder / "z.png")
    assert run(replace(plan, resume_from_checkpoint="latest"), tmp_path / "out").step == 4


@pytest.mark.parametrize(
    "change",
    [
        {"max_train_steps": 5}, {"checkpointing_steps": 1}, {"checkpoints_total_limit": 2},
        {"num_validation_images": 1}, {"validation_prompt": "a <new1> cat", "validation_steps": 3},
    ],
    ids=lambda each: " ".join(each),
)  # fmt: skip
def test_what_does_not_change_what_is_learned_may_be_otherwise(
    plan: TrainingPlan, tmp_path: Path, change: dict[str, Any]
) -> None:
    run(plan, tmp_path / "out", stop_at(1))
    asked = replace(plan, resume_from_checkpoint="latest", **change)
    assert run(asked, tmp_path / "out").step == asked.max_train_steps


def test_a_save_of_more_steps_than_are_asked_for_is_refused(plan: TrainingPlan, tmp_path: Path) -> None:
    run(plan, tmp_path / "out")
    with pytest.raises(UserError, match="has 4 steps behind it; give max_train_steps as many or more, not 3"):
        run(replace(plan, max_train_steps=3, resume_from_checkpoint="latest"), tmp_path / "out")


def test_a_save_made_before_a_word_was_first_drawn_is_gone_on_from(plan: TrainingPlan, tmp_path: Path) -> None:
    other = Concept("photo of a <new2> dog", folder_of(tmp_path / "others", "a.png"), "dog")
    two = replace(plan, concepts=(*plan.concepts, other), train_batch_size=1, checkpointing_steps=1)
    run(two, tmp_path / "whole")
    run(two, tmp_path / "cut", stop_at(0))
    state = checkpoints.load_state(tmp_path / "cut" / "checkpoint-1")
    assert state.step == 1
    missing = {name: each for name, each in state.tensors.items() if "optimizer" in name and "<new2>" in name}
    without = replace(state, tensors={k: v for k, v in state.tensors.items() if k not in missing})  # as older ones are
    delta = Delta.load(tmp_path / "cut" / "checkpoint-1" / "new1-new2.delta.safetensors")
    checkpoints.save_checkpoint(tmp_path / "cut", "new1-new2", delta, without)
    assert run(replace(two, resume_from_checkpoint="latest"), tmp_path / "cut").step == 4


def test_layers_that_a_save_does_not_have_begin_anew_and_other_shapes_are_refused(
    plan: TrainingPlan, tmp_path: Path
) -> None:
    run(plan, tmp_path / "out", stop_at(1))
    asked = replace(plan, resume_from_checkpoint="latest", allow_changes=True)
    assert run(replace(asked, freeze_model="crossattn", max_train_steps=3), tmp_path / "out").step == 3
    for change, said in (
        ({"vectors_per_token": 2}, r"embedding\.<new1> is \(1, 6\) in it and \(2, 6\) now"),
        ({"rank": 3}, r"to_k\.weight\.US is \(8, 2\) in it and \(8, 3\) now"),
    ):
        run(replace(plan, rank=2, overwrite=True), tmp_path / "out", stop_at(1))
        backend = TinyBackend()
        with pytest.raises(UserError, match=f"the save cannot be resumed from: .*{said}"):
            run(replace(asked, **change), tmp_path / "out", backend=backend)
        assert backend.pictures_encoded == 0


def test_what_is_random_of_the_pictures_is_told_by_the_seed(plan: TrainingPlan, tmp_path: Path) -> None:
    def views(seed: int, folder: str) -> list[str]:
        made = TrainingJob(replace(plan, seed=seed), Host(TinyBackend(), tmp_path / folder), Recorder())
        made.run()
        return [example.caption for example in made.examples[0].instance]

    assert views(1, "first") == views(1, "second") != views(2, "third")


def test_what_was_used_and_left_out_is_told(plan: TrainingPlan, tmp_path: Path) -> None:
    folder = plan.concepts[0].instance_data_dir
    (folder / "h.jpg").write_bytes(b"no picture")
    (folder / "i.jxl").write_bytes(b"a picture, elsewhere")
    report = run(plan, tmp_path / "out")
    assert report.notes[0] == (
        "3 of 5 pictures were used; left out: h.jpg (it is not a picture that can be read), i.jxl (a picture that"
        " needs pip install pillow-jxl-plugin, or to be saved as JPEG)."
    )
    assert run(plan, tmp_path / "other").notes[0] == report.notes[0]


def test_pictures_of_one_name_in_several_folders_are_counted_apart_and_repeated_ones_named_once(
    plan: TrainingPlan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for repeats in (1, 3):
        folder = folder_of(tmp_path / "repeated" / f"{repeats}_cat", "a.png")
        (folder / "x.png").write_bytes(b"no picture")
    [cat] = plan.concepts
    asked = replace(plan, concepts=(replace(cat, instance_data_dir=tmp_path / "repeated"),), train_batch_size=1)
    reason = "x.png (it is not a picture that can be read)"
    assert run(asked, tmp_path / "out").notes[0] == f"2 of 4 pictures were used; left out: {reason}, {reason}."
    assert caplog.text.count("skipped") == 2


def test_a_picture_whose_name_is_no_utf8_is_told_of_as_far_as_it_can_be(plan: TrainingPlan, tmp_path: Path) -> None:
    try:
        (plan.concepts[0].instance_data_dir / "h\udcff.jpg").write_bytes(b"no picture")
    except OSError:
        pytest.skip("this system has no such names")
    assert "left out: h?.jpg (it" in run(plan, tmp_path / "out").notes[0]


def test_of_an_animation_the_first_picture_is_used_and_that_is_told(plan: TrainingPlan, tmp_path: Path) -> None:
    one = Image.new("RGB", (16, 16), "red")
    many = {"save_all": True, "append_images": [Image.new("RGB", (16, 16), "blue")]}
    one.save(plan.concepts[0].instance_data_dir / "moving.gif", **many)
    notes = run(plan, tmp_path / "out").notes
    said = "moving.gif has several pictures, as animations do; the first was used."
    assert notes[:2] == ("4 pictures were used.", said)


def test_a_batch_is_no_larger_than_the_pictures_and_that_is_said(plan: TrainingPlan, tmp_path: Path) -> None:
    report = run(replace(plan, train_batch_size=100_000), tmp_path / "out")
    assert "train_batch_size is 3 rather than 100000, as there are 3 pictures." in report.notes
    assert report.result.delta.provenance.settings["train_batch_size"] == 3


def test_settings_without_effect_are_told(plan: TrainingPlan, tmp_path: Path) -> None:
    classes = folder_of(tmp_path / "class", "a.png")
    [concept] = plan.concepts
    asked = replace(plan, concepts=(replace(concept, class_data_dir=classes),), template=tmp_path / "x.txt")
    notes = run(asked, tmp_path / "out").notes
    assert "The class pictures are not used, as with_prior_preservation is off." in notes
    assert "The template is not used, as caption_source is prompt." in notes
    weightless = replace(asked, with_prior_preservation=True, num_class_images=0, prior_loss_weight=0.0)
    assert "The class pictures have no effect, as prior_loss_weight is 0." in run(weightless, tmp_path / "b").notes


def test_class_pictures_are_drawn_until_there_are_enough_or_taken_as_they_are(
    plan: TrainingPlan, tmp_path: Path
) -> None:
    classes = folder_of(tmp_path / "class", "a.png")
    [concept] = plan.concepts
    asked = replace(plan, concepts=(replace(concept, class_data_dir=classes),), with_prior_preservation=True)
    report = run(replace(asked, num_class_images=0), tmp_path / "kept")
    assert [path.name for path in classes.iterdir()] == ["a.png"]
    assert report.notes[:2] == ("3 pictures were used.", "1 class picture was used.")
    face = Recorder()
    run(replace(asked, num_class_images=3), tmp_path / "drawn", face)
    assert sorted(path.name for path in classes.iterdir()) == ["0000.png", "0000.txt", "0001.png", "0001.txt", "a.png"]
    assert "Drawing cat" in face.prepared
    run(replace(plan, with_prior_preservation=True, num_class_images=2), tmp_path / "own")
    assert len(list((tmp_path / "own" / "class_images-1").glob("*.png"))) == 2


def test_the_delta_goes_where_the_host_wants_it_with_copies_and_previews_beside_the_saves(
    plan: TrainingPlan, tmp_path: Path
) -> None:
    face, target = Recorder(), tmp_path / "deltas" / DELTA
    asked = replace(plan, validation_prompt="a <new1>", validation_steps=4, num_validation_images=2)
    report = run(asked, tmp_path / "log", face, delta=target, copies=True, picture_suffix="jpg")
    assert report.delta == target and target.read_bytes() == (tmp_path / "log" / DELTA).read_bytes()
    assert face.copies == ["new1-2.delta.safetensors", "new1-4.delta.safetensors"]
    assert sorted(path.name for path in (tmp_path / "log" / "embeddings").iterdir()) == [
        "new1-2.delta.safetensors", "new1-2.pt", "new1-4.delta.safetensors", "new1-4.pt",
    ]  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "log" / "images").iterdir()) == ["new1-4-0.jpg", "new1-4-1.jpg"]
    assert face.previews == 2 and report.preview is not None


def test_copies_are_kept_as_often_as_was_asked_and_not_of_the_end(plan: TrainingPlan, tmp_path: Path) -> None:
    face = Recorder()
    run(replace(plan, max_train_steps=3), tmp_path / "out", face, copies=True)
    assert face.copies == ["new1-2.delta.safetensors"]


def captioned_cats(folder: Path) -> Path:
    for name in ("a", "b"):
        folder_of(folder, f"{name}.png")
        (folder / f"{name}.txt").write_text("a cat")
    return folder


def with_classes(plan: TrainingPlan, source: Path, **more: Any) -> TrainingPlan:
    [concept] = plan.concepts
    return replace(plan, concepts=(replace(concept, class_data_dir=source),), with_prior_preservation=True, **more)


def test_all_real_class_pictures_are_picked_where_no_number_is_given(plan: TrainingPlan, tmp_path: Path) -> None:
    asked = with_classes(plan, captioned_cats(tmp_path / "cats"), real_prior=True, num_class_images=0)
    assert "2 class pictures were used." in run(asked, tmp_path / "out").notes


def test_class_pictures_that_a_file_lists_are_taken_though_more_could_be_drawn(
    plan: TrainingPlan, tmp_path: Path
) -> None:
    cats = captioned_cats(tmp_path / "cats")
    (cats / "list.txt").write_text("a.png\nb.png")
    asked = with_classes(plan, cats / "list.txt", num_class_images=5)
    assert "2 class pictures were used." in run(asked, tmp_path / "out").notes


def test_a_training_goes_on_with_the_real_class_pictures_that_it_had(plan: TrainingPlan, tmp_path: Path) -> None:
    cats = captioned_cats(tmp_path / "cats")
    asked = with_classes(plan, cats, real_prior=True, num_class_images=2)
    run(asked, tmp_path / "whole")
    run(asked, tmp_path / "cut", stop_at(1))
    folder_of(cats, "0.png")
    (cats / "0.txt").write_text("cat")  # the class prompt itself, which nothing is nearer to
    run(replace(asked, resume_from_checkpoint="latest"), tmp_path / "cut")
    assert (tmp_path / "cut" / DELTA).read_bytes() == (tmp_path / "whole" / DELTA).read_bytes()


def test_a_save_of_another_training_is_refused_before_class_pictures_are_drawn(
    plan: TrainingPlan, tmp_path: Path
) -> None:
    run(plan, tmp_path / "out", stop_at(1))
    asked = replace(plan, resume_from_checkpoint="latest", hflip=True)
    with pytest.raises(UserError, match="hflip was False, is True"):
        TrainingJob(asked, Host(TinyBackend(), tmp_path / "out"), Recorder())


def test_a_compressed_result_says_so_and_the_whole_stays(plan: TrainingPlan, tmp_path: Path) -> None:
    report = run(replace(plan, energy=0.5), tmp_path / "out")
    assert not any(isinstance(entry, torch.Tensor) for entry in Delta.load(report.delta).entries.values())
    whole = Delta.load(tmp_path / "out" / "checkpoint-4" / DELTA)
    assert all(isinstance(entry, torch.Tensor) for entry in whole.entries.values())
    assert report.notes[-1].startswith("Compressed to ")
    impossible = run(replace(plan, max_size="10B"), tmp_path / "too-small")
    assert impossible.notes[-1].startswith("It is not compressed: ")
    assert impossible.delta.read_bytes() == (tmp_path / "too-small" / "checkpoint-4" / DELTA).read_bytes()


def test_a_full_disk_costs_copies_and_settings_and_not_the_training(
    plan: TrainingPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise UserError("cannot save it: No space left on device")

    monkeypatch.setattr(job, "write_atomically", full)
    assert run(plan, tmp_path / "out", copies=True).step == 4
    assert "No space left on device. The training continues" in caplog.text


def test_pictures_that_are_not_kept_are_told_at_the_end(plan: TrainingPlan, tmp_path: Path) -> None:
    class Offline(TinyBackend):
        def generate(self, *_: object) -> list[Image.Image]:
            raise OSError("no network")

    report = run(replace(plan, validation_prompt="a <new1>"), tmp_path / "out", backend=Offline())
    assert report.notes[-1] == "The pictures of step 4 are not kept: no network." and report.preview is None


def test_a_kind_that_is_missing_is_told_at_the_end(plan: TrainingPlan, tmp_path: Path) -> None:
    [concept] = plan.concepts
    without = replace(plan, concepts=(replace(concept, instance_prompt="photo of a [name]", class_prompt=""),))
    report = run(replace(without, modifier_token=("<new1>",)), tmp_path / "out")
    assert any("captions have the new word alone" in note for note in report.notes)


def test_a_full_disk_leaves_no_half_of_a_preview(
    plan: TrainingPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise UserError("cannot save it: No space left on device")

    monkeypatch.setattr(job, "write_atomically", full)
    run(replace(plan, validation_prompt="a <new1>", validation_steps=2), tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.png"))


def test_a_full_disk_where_the_delta_is_used_says_where_it_is(
    plan: TrainingPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, target = job.write_atomically, tmp_path / "deltas" / DELTA

    def full_there(path: Path, content: bytes) -> None:
        if path == target:
            raise NotSaved(path, "No space left on device")
        write(path, content)

    monkeypatch.setattr(job, "write_atomically", full_there)
    with pytest.raises(UserError, match=re.escape(f"What was learned is in {tmp_path / 'out' / DELTA}")):
        run(plan, tmp_path / "out", delta=target)


def test_a_folder_for_tensorboard_that_cannot_be_written_is_refused(plan: TrainingPlan, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "logs").touch()
    with pytest.raises(UserError, match=r"cannot write to \S+logs: it is not a folder"):
        run(replace(plan, report_to="tensorboard"), tmp_path / "out", logging_dir=tmp_path / "logs")
    assert not (tmp_path / "out").exists()


def test_a_resolution_that_the_unet_cannot_halve_is_refused_by_name(
    plan: TrainingPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "size_multiple", lambda unet: 64)
    with pytest.raises(
        UserError,
        match=r"resolution must be a multiple of 64 pixels for the model tiny, .* not 520; the nearest is 512",
    ):
        run(replace(plan, resolution=520), tmp_path / "out")


def test_a_concept_without_any_usable_picture_is_refused_before_the_others_are_encoded(
    plan: TrainingPlan, tmp_path: Path
) -> None:
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "a.png").write_bytes(b"no picture")
    other, backend = Concept("photo of a <new2> dog", tmp_path / "others", "dog"), TinyBackend()
    with pytest.raises(UserError, match=r"none of the pictures can be used; the last was .*a\.png: it is not"):
        run(replace(plan, concepts=(*plan.concepts, other)), tmp_path / "out", backend=backend)
    assert backend.pictures_encoded == 0


def test_class_pictures_may_be_added_to_a_training_that_goes_on_into_a_folder_that_is_empty(
    plan: TrainingPlan, tmp_path: Path
) -> None:
    run(plan, tmp_path / "out", stop_at(1))
    [concept] = plan.concepts
    classes = folder_of(tmp_path / "class")
    asked = replace(plan, resume_from_checkpoint="latest", with_prior_preservation=True, num_class_images=2)
    asked = replace(asked, concepts=(replace(concept, class_data_dir=classes),), allow_changes=True)
    assert run(asked, tmp_path / "out").step == 4 and len(list(classes.glob("*.png"))) == 2


def test_an_optimizer_that_does_not_work_here_is_refused_before_encoding(
    plan: TrainingPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel for this device")

    monkeypatch.setattr(torch.optim, "SGD", broken)
    backend = TinyBackend()
    with pytest.raises(UserError, match="does not work here"):
        run(replace(plan, optimizer="sgd"), tmp_path / "out", backend=backend)
    assert backend.pictures_encoded == 0


@pytest.mark.parametrize(
    ("change", "said"), [({"rank": 2}, "started again: the layers"), ({"modifier_token": ()}, "started again: <new2>")]
)
def test_what_a_save_does_not_have_is_said_to_begin_anew(
    plan: TrainingPlan, tmp_path: Path, caplog: pytest.LogCaptureFixture, change: dict[str, Any], said: str
) -> None:
    run(replace(plan, name="x", max_train_steps=2), tmp_path / "out")
    concept = replace(plan.concepts[0], instance_prompt="photo of a <new1> <new2> cat")
    words = replace(plan, name="x", concepts=(concept,), modifier_token=("<new1>",))
    more = replace(words, resume_from_checkpoint="latest", allow_changes=True, **change)
    run(more, tmp_path / "out")
    assert said in caplog.text


def test_captions_of_the_model_that_cannot_be_read_are_told_before_encoding(plan: TrainingPlan, tmp_path: Path) -> None:
    (tmp_path / "model.captions.txt").write_text("\n")
    backend = TinyBackend()
    backend.captions = tmp_path / "model.captions.txt"
    with pytest.raises(UserError, match=r"model\.captions\.txt has no captions"):
        run(replace(plan, prior="text"), tmp_path / "out", backend=backend)
    assert backend.pictures_encoded == 0
    assert run(plan, tmp_path / "out", backend=backend).step == 4  # without the prior nobody reads them


class Service:
    """What a training may be followed by."""

    def __init__(self) -> None:
        self.told: list[int] = []
        self.closed = 0

    def add(self, step: int, numbers: Any) -> None:
        self.told.append(step)

    def add_pictures(self, step: int, pictures: Any) -> None:
        pytest.fail("there are none")

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("ends", ["done", "while encoding", "before the first step"])
def test_a_service_is_told_of_the_end_however_the_training_ends(
    plan: TrainingPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    service, face = Service(), Recorder(lambda face: ends == "while encoding")

    def fails(*_: Any) -> None:
        raise UserError("the GPU's memory is full")

    if ends == "before the first step":
        monkeypatch.setattr(Trainer, "_text_prior", fails)
    with nullcontext() if ends == "done" else pytest.raises(UserError):
        run(plan, tmp_path / "out", face, recorder=lambda: service)
    assert service.told == ([1, 2, 3, 4] if ends == "done" else []) and service.closed == 1
    assert not list((tmp_path / "out").glob(".*"))
