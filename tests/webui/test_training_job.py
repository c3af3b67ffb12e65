"""A training from the form to the files, with the host the same afterwards, however it ends."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from modules import devices, paths, sd_hijack, shared
from PIL import Image
from test_extra_network import predict

from lib_custom_diffusion.backend import Sampling
from lib_custom_diffusion.data.concepts import Concept
from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.formats import read_words
from lib_custom_diffusion.training import loop as training
from lib_custom_diffusion.training.checks import check_settings
from lib_custom_diffusion.training.plan import TrainingPlan
from lib_custom_diffusion.training.recipes import RECIPES
from lib_custom_diffusion.ui.timings import read_timings
from lib_custom_diffusion.ui.training_face import PageFace
from lib_custom_diffusion.ui.training_form import entered_plan
from lib_custom_diffusion.ui.training_page import outcome_html
from lib_custom_diffusion.webui import host_backend, training_job
from lib_custom_diffusion.webui.delta_library import library
from lib_custom_diffusion.webui.new_embedding import create_embedding
from lib_custom_diffusion.webui.training_job import estimate, logs_in, template_file, train

CONCEPT = {"modifier_token": "mycat", "class_prompt": "cat"}


@pytest.fixture
def plan(host, tmp_path: Path, monkeypatch) -> TrainingPlan:
    """A training of 6 steps on three small pictures."""
    monkeypatch.setattr(library, "folder", tmp_path / "deltas")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(3):
        Image.new("RGB", (16, 16), (80 * index, 40, 200)).save(pictures / f"{index}.png")
    create_embedding("mycat", "ktn", 2, overwrite=False)
    concept = {**CONCEPT, "instance_data_dir": str(pictures)}
    entered = {"max_train_steps": 6, "train_batch_size": 2, "learning_rate": "1e-2", "validation_steps": 0}
    return replace(
        entered_plan([concept], entered, template_file), embedding_learning_rate="8e-5", checkpointing_steps=0
    )


def same_as_before(host, before: torch.Tensor) -> bool:
    """Whether the host is as it was: answers, hooks, flags, attention."""
    return (
        torch.equal(predict(host), before)
        and not any(module._forward_hooks for module in host.modules())
        and all(parameter.requires_grad and parameter.grad is None for parameter in host.parameters())
        and sd_hijack.model_hijack.optimizations[-1:] in ([], [None])
        and shared.parallel_processing_allowed
    )


@pytest.mark.parametrize(
    ("entered", "folder"),
    [("logs", "logs"), ('"logs"', "logs"), ("", "textual_inversion"), (" ", "textual_inversion"), ("'/x y'", "/x y")],
)
def test_the_log_directory_may_be_quoted_as_it_was_copied_or_empty(entered, folder):
    assert logs_in(entered) == Path(paths.data_path, folder)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dtype_unet": torch.float16}, "started with --no-half"),
        ({"dtype_unet": torch.float16, "device": torch.device("mps")}, "started with --no-half"),
        ({"fp8": True}, "switch FP8 weight off"),
    ],
)
def test_a_precision_that_cannot_be_trained_in_is_refused(host, plan, monkeypatch, settings, said):
    for name, value in settings.items():
        monkeypatch.setattr(devices, name, value)
    with pytest.raises(UserError, match=said):
        train(plan)


def test_a_model_that_cannot_be_trained_is_refused_before_a_word_for_it_is_asked_for(host, plan):
    host.model.diffusion_model.in_channels = 9
    for word in Path(shared.cmd_opts.embeddings_dir).iterdir():
        word.unlink()
    with pytest.raises(UserError, match="takes 9 channels"):
        train(plan)


def test_weights_that_are_no_numbers_are_told_before_pictures_are_encoded(host, plan, monkeypatch):
    monkeypatch.setattr(host.first_stage_model, "encoder", None)
    texts_forward = host.cond_stage_model.forward
    monkeypatch.setattr(host.cond_stage_model, "forward", lambda texts: texts_forward(texts) * float("nan"))
    with pytest.raises(UserError, match=r"the text encoder of tiny is broken: .* NaN or infinite"):
        train(plan)
    with torch.no_grad():
        next(host.model.diffusion_model.parameters()).view(-1)[-1] = float("nan")
    with pytest.raises(UserError, match=r"the UNet of tiny is broken: .* NaN or infinite"):
        train(plan)


def test_in_forge_it_is_told_where_to_train_before_anything_is_read(host, plan, tmp_path):
    host.forge_objects = host.first_stage_model = None
    with pytest.raises(UserError, match=r"Forge .* cannot be trained here; train in AUTOMATIC1111's WebUI, in reForge"):
        train(plan, str(tmp_path / "log"))
    assert not (tmp_path / "log").exists()


def test_it_leaves_what_the_host_looks_for(host, plan, tmp_path):
    before = predict(host)
    done = train(replace(plan, checkpointing_steps=3), str(tmp_path / "log"))
    assert (done.step, done.interrupted) == (6, False)
    delta = Delta.load(tmp_path / "deltas" / "mycat.delta.safetensors")
    assert done.delta == tmp_path / "deltas" / "mycat.delta.safetensors"
    assert all(entry.abs().sum() > 0 for entry in delta.entries.values())
    assert delta.provenance.tokens == {"mycat": "cat"}
    trained = read_words(tmp_path / "embeddings" / "mycat.pt")["<mycat>"]
    assert torch.allclose(trained, delta.embeddings["mycat"].float(), atol=1e-2)
    assert torch.equal(sd_hijack.model_hijack.embedding_db.word_embeddings["mycat"].vec, trained)
    folder = done.log_directory
    assert folder.parent.parent == tmp_path / "log" and folder.name == "mycat"
    copies = sorted(path.name for path in (folder / "embeddings").iterdir())
    assert copies == ["mycat-3.delta.safetensors", "mycat-3.pt", "mycat-6.delta.safetensors", "mycat-6.pt"]
    assert json.loads((folder / "config.json").read_text())["max_train_steps"] == 6
    assert list(folder.glob("settings-*.json"))
    assert not list(folder.glob("checkpoint-*"))
    assert done.prompt == "photo of a mycat cat <delta:mycat:1>"
    assert same_as_before(host, before)


def test_only_the_new_word_has_moved(host, plan, tmp_path):
    create_embedding("other", "red", 1, overwrite=False)
    start = read_words(tmp_path / "embeddings" / "mycat.pt")["<mycat>"]
    other = (tmp_path / "embeddings" / "other.pt").read_bytes()
    train(plan, str(tmp_path / "log"))
    assert not torch.equal(read_words(tmp_path / "embeddings" / "mycat.pt")["<mycat>"], start)
    assert (tmp_path / "embeddings" / "other.pt").read_bytes() == other


def test_words_that_are_embeddings_in_captions_and_kinds_are_told_of(host, plan, tmp_path, caplog):
    for name in ("cat", "photo", "cats", "mycat2"):
        create_embedding(name, "red", 1, overwrite=False)
    done = train(plan, str(tmp_path / "log"))
    told = [f"In the captions and kinds, {name} means the embedding of that name, not the ordinary word."
            for name in ("cat", "photo")]  # fmt: skip
    assert done.note.endswith(" ".join(told)) and caplog.messages == told


def test_a_word_that_was_trained_already_is_not_trained_over_without_being_asked(host, plan, tmp_path):
    train(replace(plan, max_train_steps=2), str(tmp_path / "log"))
    learned = (tmp_path / "embeddings" / "mycat.pt").read_bytes()
    with pytest.raises(
        UserError,
        match=r"trained already \(2 steps\).*tick Overwrite in Advanced to start a new .*Saves Optim",
    ):
        train(replace(plan, name="another"), str(tmp_path / "log"))
    assert (tmp_path / "embeddings" / "mycat.pt").read_bytes() == learned
    assert train(replace(plan, name="another", overwrite=True), str(tmp_path / "log")).step == 6


def test_the_card_gets_the_last_preview_and_keeps_what_a_person_chose(host, plan, tmp_path):
    (tmp_path / "deltas" / "mycat.delta.png").write_bytes(b"chosen")
    train(replace(plan, validation_steps=3), str(tmp_path / "log"))
    assert Image.open(tmp_path / "deltas" / "mycat.delta.preview.png").size == (16, 16)
    assert (tmp_path / "deltas" / "mycat.delta.png").read_bytes() == b"chosen"


def test_a_training_shorter_than_the_hosts_interval_has_a_row_of_losses(host, plan, tmp_path):
    done = train(plan, str(tmp_path / "log"))  # the interval is 500
    header, row = (done.log_directory / "textual_inversion_loss.csv").read_text().splitlines()
    assert header.startswith("step,epoch") and row.startswith("6,")


def test_interrupt_saves_and_says_so(host, plan, tmp_path, monkeypatch):
    before = predict(host)
    stop_after(2, monkeypatch)
    done = train(plan, str(tmp_path / "log"))
    assert done.interrupted and done.step == 3
    assert Delta.load(done.delta).provenance.steps == 3
    assert same_as_before(host, before)


@pytest.mark.parametrize("button", ["interrupt", "stop_generating"])
def test_interrupt_during_a_preview_saves_at_that_step_and_keeps_no_half_drawn_picture(
    host, plan, tmp_path, monkeypatch, button
):
    draw = host_backend.processing.process_images

    def pressed(p):
        drawn = draw(p)
        getattr(shared.state, button)()  # the sampler gives what it has by then
        return drawn

    monkeypatch.setattr(host_backend.processing, "process_images", pressed)
    monkeypatch.setattr(shared.opts, "save_optimizer_state", True)
    done = train(replace(plan, validation_steps=2, num_validation_images=2), str(tmp_path / "log"))
    assert done.interrupted and done.step == Delta.load(done.delta).provenance.steps == 2
    assert [path.name for path in done.log_directory.glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (done.log_directory / "images").exists() and done.preview is None
    assert not list((tmp_path / "deltas").glob("*.preview.*"))


def test_skip_leaves_the_preview_out_and_the_training_goes_on(host, plan, tmp_path, monkeypatch):
    draw, pictures = host_backend.processing.process_images, []

    def skipped_once(p):
        pictures.append(draw(p))
        if len(pictures) == 1:
            shared.state.skip()
        return pictures[-1]

    monkeypatch.setattr(host_backend.processing, "process_images", skipped_once)
    done = train(replace(plan, validation_steps=3), str(tmp_path / "log"))
    assert (done.step, done.interrupted) == (6, False)
    assert [path.name for path in (done.log_directory / "images").iterdir()] == ["mycat-6.png"]


def test_pictures_that_vanish_once_they_are_encoded_cost_nothing(host, plan, tmp_path, monkeypatch):
    show = training_job._Face.progress

    def without_pictures(face, progress):
        if progress.step == 1:
            (tmp_path / "pictures").rename(tmp_path / "elsewhere")
        show(face, progress)

    monkeypatch.setattr(training_job._Face, "progress", without_pictures)
    done = train(plan, str(tmp_path / "log"))
    assert done.step == 6 and "3 pictures were used" in done.note
    trained = read_words(tmp_path / "embeddings" / "mycat.pt")["<mycat>"]
    assert torch.allclose(trained, Delta.load(done.delta).embeddings["mycat"].float(), atol=1e-2)


def test_an_error_in_the_middle_leaves_the_host_as_it_was_and_the_next_training_runs(host, plan, tmp_path, monkeypatch):
    before = predict(host)
    with monkeypatch.context() as broken:
        broken.setattr(training, "masked_errors", lambda *tensors: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(plan, str(tmp_path / "log"))
    assert same_as_before(host, before)
    assert not (tmp_path / "deltas" / "mycat.delta.safetensors").exists()
    assert train(plan, str(tmp_path / "log")).step == 6


def test_the_page_shows_the_step_the_loss_and_its_curve(host, plan, tmp_path):
    train(replace(plan, max_train_steps=30), str(tmp_path / "log"))
    assert shared.state.job_count == 30 and shared.state.job_no == 30
    for expected in ("30 of 30", "<svg", 'class="smooth"', "Time left"):
        assert expected in shared.state.textinfo and "\n" in shared.state.textinfo  # or it is on the bar as well


def test_previews_are_saved_and_shown(host, plan, tmp_path):
    asked = replace(plan, validation_steps=3, validation_prompt="mycat on the moon")
    done = train(asked, str(tmp_path / "log"), preview=Sampling(size=(24, 16)))
    pictures = sorted((done.log_directory / "images").iterdir())
    assert [path.name for path in pictures] == ["mycat-3.png", "mycat-6.png"]
    assert Image.open(pictures[0]).size == (24, 16)
    assert shared.state.current_image is not None and done.preview == shared.state.current_image
    assert '<img alt="the last preview" src="data:image/png;base64,' in outcome_html(done)
    assert "<img" not in outcome_html(replace(done, preview=None))


def test_a_delta_of_that_name_is_kept_unless_overwriting_was_asked_for(host, plan, tmp_path):
    target = tmp_path / "deltas" / "mycat.delta.safetensors"
    target.write_bytes(b"precious")
    with pytest.raises(UserError, match=r"there is already a training called mycat .*tick Overwrite"):
        train(plan, str(tmp_path / "log"))
    assert target.read_bytes() == b"precious"
    train(replace(plan, overwrite=True), str(tmp_path / "log"))
    assert Delta.load(target).entries


def test_the_optimizer_state_is_kept_if_the_host_is_set_to(host, plan, tmp_path, monkeypatch):
    monkeypatch.setattr(shared.opts, "save_optimizer_state", True)
    done = train(plan, str(tmp_path / "log"))
    assert (done.log_directory / "checkpoint-6" / "state.safetensors").is_file()
    (done.log_directory / "checkpoint-notes").mkdir()
    monkeypatch.setattr(shared.opts, "save_optimizer_state", False)
    again = train(replace(plan, overwrite=True), str(tmp_path / "log"))
    assert [path.name for path in again.log_directory.glob("checkpoint-*")] == ["checkpoint-notes"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"modifier_token": ("nobody",)}, "no embedding 'nobody'"),
        ({"concepts": (Concept("a mycat", Path("/no/such/folder")),)}, "no folder /no/such/folder"),
        ({"name": "///"}, "no letter or digit"),
        ({"max_size": "5MB", "energy": 0.9}, "give Maximum file size in MB, 0 to disable or energy, not both"),
        ({"max_train_steps": 0}, "Max steps must be 1 or more, not 0"),
        (
            {"checkpointing_steps": -1},
            "Save a copy to log directory every N steps, 0 to disable must be 0 or more, not -1",
        ),
        ({"train_batch_size": -4}, "Batch size must be 1 or more"),
        ({"learning_rate": "fast"}, "Learning rate: 'fast' is not a learning rate"),
        ({"resolution": 12}, "Width and height must be a multiple of 8 pixels"),
        ({"vectors_per_token": 3}, "Number of vectors per token is 2 here"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(host, plan, tmp_path, change, said):
    before = predict(host)
    with pytest.raises(UserError, match=said):
        train(replace(plan, **change), str(tmp_path / "log"))
    assert same_as_before(host, before)
    assert not list((tmp_path / "deltas").iterdir()) and not (tmp_path / "log").exists()


def test_a_caption_without_the_word_is_refused_with_the_caption(host, plan, tmp_path):
    [concept] = plan.concepts
    with pytest.raises(UserError, match="no caption or prompt has the modifier token mycat; the first is 'a photo'"):
        train(replace(plan, concepts=(replace(concept, instance_prompt="a photo"),)), str(tmp_path / "log"))


def test_a_word_that_cannot_be_written_is_refused_before_the_training(host, plan, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"no folder")
    monkeypatch.setattr(training_job, "home_of", lambda *_: tmp_path / "file" / "mycat.pt")
    with pytest.raises(UserError, match=r"cannot write to .*file: it is not a folder"):
        train(plan, str(tmp_path / "log"))
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(("chosen", "written"), [("jpg", "jpg"), ("nothing", "png"), ("psd", "png")])
def test_previews_are_as_the_hosts_pictures_or_png_where_there_are_none_such(
    host, plan, tmp_path, monkeypatch, chosen, written
):
    monkeypatch.setattr(shared.opts, "samples_format", chosen)
    outcome = train(replace(plan, validation_prompt="a mycat", validation_steps=6), str(tmp_path / "log"))
    assert {path.suffix for path in (outcome.log_directory / "images").iterdir()} == {f".{written}"}
    assert outcome.delta.with_suffix(f".preview.{written}").is_file()


def test_more_words_than_there_are_usual_initializers_start_from_what_they_are(host, plan, tmp_path):
    [concept] = plan.concepts
    words = ("mycat", "second", "third", "fourth")
    for word in words[1:]:
        create_embedding(word, "ktn", 2, overwrite=False)
    concepts = tuple(replace(concept, instance_prompt=f"photo of a {word} cat") for word in words)
    asked = replace(plan, concepts=concepts, modifier_token=words, max_train_steps=1)
    assert len(train(asked, str(tmp_path / "log")).embeddings) == 4


def test_there_must_be_a_template_of_that_name():
    with pytest.raises(UserError, match=r"no prompt template 'none\.txt'"):
        template_file("none.txt")


def test_the_loss_goes_to_the_hosts_own_file_as_often_as_the_host_is_set_to(host, plan, tmp_path, monkeypatch):
    monkeypatch.setattr(shared.opts, "training_write_csv_every", 2)
    folder = train(plan, str(tmp_path / "log")).log_directory
    with (folder / "textual_inversion_loss.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "epoch", "epoch_step", "loss", "learn_rate"]
    # three pictures, two a step: one step an epoch, as the host counts
    assert [(row["step"], row["epoch"], row["epoch_step"]) for row in rows] == [
        ("2", "1", "0"), ("4", "3", "0"), ("6", "5", "0")
    ]  # fmt: skip
    assert all(float(row["loss"]) > 0 and float(row["learn_rate"]) == 1e-2 for row in rows)
    monkeypatch.setattr(shared.opts, "training_write_csv_every", 0)
    folder = train(replace(plan, overwrite=True), str(tmp_path / "other")).log_directory
    assert not list(folder.glob("*.csv"))


def stop_after(steps: int, monkeypatch) -> None:
    """Have the person press Interrupt when so many steps are done."""
    show = PageFace.progress

    def stop(face, progress):
        show(face, progress)
        if progress.step == steps:
            shared.state.interrupt()

    monkeypatch.setattr(PageFace, "progress", stop)


def test_an_interrupted_training_goes_on_to_the_same_bytes(host, plan, tmp_path, monkeypatch):
    monkeypatch.setattr(shared.opts, "save_optimizer_state", True)
    monkeypatch.setattr(shared.opts, "training_write_csv_every", 1)
    embedding = (tmp_path / "embeddings" / "mycat.pt").read_bytes()
    whole = train(plan, str(tmp_path / "log"))
    expected, losses = whole.delta.read_bytes(), (whole.log_directory / "textual_inversion_loss.csv").read_bytes()
    (tmp_path / "embeddings" / "mycat.pt").write_bytes(embedding)
    with monkeypatch.context() as interrupting:
        stop_after(2, interrupting)
        stopped = train(replace(plan, overwrite=True), str(tmp_path / "log"))
    assert stopped.resumable and stopped.step == 3 and stopped.delta.read_bytes() != expected
    shared.state.begin()
    done = train(replace(plan, resume_from_checkpoint="latest"), str(tmp_path / "log"))
    assert (done.step, done.interrupted, done.log_directory) == (6, False, stopped.log_directory)
    assert done.delta.read_bytes() == expected
    assert (done.log_directory / "textual_inversion_loss.csv").read_bytes() == losses


def test_a_training_that_broke_off_goes_on_from_its_last_copy(host, plan, tmp_path, monkeypatch):
    asked = replace(plan, checkpointing_steps=2)
    with monkeypatch.context() as broken:
        taken = []
        draw = training.Trainer._draw

        def break_off(trainer):
            taken.append(trainer.step)
            return draw(trainer) if len(taken) < 6 else 1 / 0

        broken.setattr(training.Trainer, "_draw", break_off)
        with pytest.raises(ZeroDivisionError):
            train(asked, str(tmp_path / "log"))
    assert not (tmp_path / "deltas" / "mycat.delta.safetensors").exists()
    steps = []
    show = PageFace.progress
    monkeypatch.setattr(
        PageFace, "progress", lambda face, progress: (steps.append(progress.step), show(face, progress))
    )
    assert train(replace(asked, resume_from_checkpoint="latest"), str(tmp_path / "log")).step == 6
    assert steps == [5, 6]


def test_without_a_save_or_with_other_pictures_there_is_nothing_to_go_on_from(host, plan, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no save of a training mycat"):
        train(replace(plan, resume_from_checkpoint="latest"), str(tmp_path / "log"))
    train(plan, str(tmp_path / "log"))  # the host is set to keep no optimizer state
    with pytest.raises(UserError, match="no save of a training mycat"):
        train(replace(plan, resume_from_checkpoint="latest"), str(tmp_path / "log"))
    monkeypatch.setattr(shared.opts, "save_optimizer_state", True)
    train(replace(plan, overwrite=True), str(tmp_path / "log"))
    with pytest.raises(UserError, match=r"Width and height was 16, is 24.*Vary size and position was False, is True"):
        train(replace(plan, resume_from_checkpoint="latest", noaug=True, resolution=24), str(tmp_path / "log"))
    with pytest.raises(UserError, match="Learning rate was '1e-2', is '1e-3'"):
        train(replace(plan, resume_from_checkpoint="latest", learning_rate="1e-3"), str(tmp_path / "log"))
    assert train(replace(plan, resume_from_checkpoint="latest", max_train_steps=8), str(tmp_path / "log")).step == 8


def test_the_result_is_compressed_if_asked_and_what_was_learned_stays_whole(host, plan, tmp_path):
    done = train(replace(plan, energy=0.5), str(tmp_path / "log"))
    small, whole = Delta.load(done.delta), Delta.load(done.log_directory / "mycat.delta.safetensors")
    assert all(hasattr(entry, "us") for entry in small.entries.values())
    assert small.embeddings.keys() == whole.embeddings.keys() and not hasattr(next(iter(whole.entries.values())), "us")
    assert "Compressed to" in done.note and "differs by" in done.note
    assert "6 of 6" in shared.state.textinfo and "Compressing what was learned" in shared.state.textinfo


def test_a_result_that_cannot_be_made_so_small_is_saved_whole_and_says_so(host, plan, tmp_path):
    done = train(replace(plan, max_size="100B"), str(tmp_path / "log"))
    assert done.delta.read_bytes() == (done.log_directory / "mycat.delta.safetensors").read_bytes()
    assert "It is not compressed: this delta cannot be made as small as 100 bytes" in done.note


def test_pictures_as_they_are_are_trained_on(host, plan, tmp_path):
    Image.new("RGB", (32, 16), (80, 40, 200)).save(plan.concepts[0].instance_data_dir / "wide.png")
    before = predict(host)
    done = train(replace(plan, resize_mode="bucket", resolution=64, max_train_steps=8), str(tmp_path / "log"))
    assert done.step == 8 and same_as_before(host, before)


def test_captions_of_one_piece_and_of_two_are_trained_on_together(host, plan, tmp_path):
    folder = plan.concepts[0].instance_data_dir
    (folder / "0.txt").write_text("mycat cat, " + "red " * 80)
    (folder / "1.txt").write_text("red " * 80 + "mycat")
    done = train(replace(plan, caption_source="txt", prior="none"), str(tmp_path / "log"))
    assert done.step == 6 and "longer than" not in done.note


def test_the_time_is_measured_once_and_then_known(host, plan, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "data_path", str(tmp_path))
    before, embeddings = predict(host), (tmp_path / "embeddings" / "mycat.pt").read_bytes()
    first = estimate(plan)
    assert "few steps taken just now" in first and "for 6 steps" in first
    assert same_as_before(host, before) and (tmp_path / "embeddings" / "mycat.pt").read_bytes() == embeddings
    assert not list((tmp_path / "deltas").iterdir())
    monkeypatch.setattr(training, "Trainer", None)  # nothing is trained for the second answer
    assert "a training of" in estimate(replace(plan, max_train_steps=600))


def test_a_training_leaves_word_of_its_time(host, plan, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "data_path", str(tmp_path))
    train(plan, str(tmp_path / "log"))
    [timing] = read_timings(tmp_path / "custom-diffusion-timings.json")
    assert timing.training > 0 and timing.encoding > 0 and timing.circumstances.mixed_precision == "no"


@pytest.mark.parametrize("name", ["../../evil", "a/b", "a\\b", "a:b", "what?"])
def test_names_cannot_leave_their_folder(plan, tmp_path, name):
    with pytest.raises(UserError, match=r"Name of the delta .* has characters that file names cannot"):
        train(replace(plan, name=name), str(tmp_path / "log"))


def test_every_preset_can_be_trained_with(host, plan):
    concept = {**CONCEPT, "instance_data_dir": str(plan.concepts[0].instance_data_dir)}
    for values in RECIPES.values():
        check_settings(entered_plan([concept], values, template_file))
