"""A training from the form to the files, with the host the same afterwards, however it ends."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from modules import sd_hijack, shared
from PIL import Image
from test_extra_network import predict

from lib_custom_diffusion import training
from lib_custom_diffusion.backend import Sampling
from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.tokens import load_embedding
from lib_custom_diffusion.ui.training_form import PRESETS, ConceptForm, TrainingForm
from lib_custom_diffusion.ui.training_job import TrainingJob
from lib_custom_diffusion.webui.library import library
from lib_custom_diffusion.webui.new_embedding import create_embedding
from lib_custom_diffusion.webui.training_job import train


@pytest.fixture
def form(host, tmp_path: Path, monkeypatch) -> TrainingForm:
    """A training of 6 steps on three small pictures."""
    monkeypatch.setattr(library, "folder", tmp_path / "deltas")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(3):
        Image.new("RGB", (16, 16), (80 * index, 40, 200)).save(pictures / f"{index}.png")
    create_embedding("mycat", "ktn", 2, overwrite=False)
    return TrainingForm([ConceptForm("mycat", str(pictures), "cat")], steps=6, batch_size=2, learning_rate="1e-2")


def same_as_before(host, before: torch.Tensor) -> bool:
    """Whether the host is as it was: answers, hooks, flags, attention."""
    return (
        torch.equal(predict(host), before)
        and not any(module._forward_hooks for module in host.modules())
        and all(parameter.requires_grad and parameter.grad is None for parameter in host.parameters())
        and sd_hijack.model_hijack.optimizations[-1:] in ([], [None])
        and shared.parallel_processing_allowed
    )


def test_it_leaves_what_the_host_looks_for(host, form, tmp_path):
    before = predict(host)
    done = train(replace(form, save_every=3), str(tmp_path / "log"))
    assert (done.step, done.interrupted) == (6, False)
    delta = Delta.load(tmp_path / "deltas" / "mycat.delta.safetensors")
    assert done.delta == tmp_path / "deltas" / "mycat.delta.safetensors"
    assert all(entry.abs().sum() > 0 for entry in delta.entries.values())
    assert delta.provenance.tokens == {"mycat": "cat"}
    trained = load_embedding(tmp_path / "embeddings" / "mycat.pt")
    assert torch.allclose(trained, delta.embeddings["mycat"].float(), atol=1e-2)
    assert torch.equal(sd_hijack.model_hijack.embedding_db.word_embeddings["mycat"].vec, trained)
    folder = done.log_directory
    assert folder.parent.parent == tmp_path / "log" and folder.name == "mycat"
    copies = sorted(path.name for path in (folder / "embeddings").iterdir())
    assert copies == ["mycat-3.delta.safetensors", "mycat-3.pt", "mycat-6.delta.safetensors", "mycat-6.pt"]
    assert len((folder / "loss.csv").read_text().splitlines()) == 7
    assert json.loads((folder / "config.json").read_text())["form"]["steps"] == 6
    assert list(folder.glob("settings-*.json"))
    assert not list(folder.glob("checkpoint-*"))
    assert done.prompt == "photo of a mycat cat <delta:mycat:1>"
    assert same_as_before(host, before)


def test_only_the_new_word_has_moved(host, form, tmp_path):
    create_embedding("other", "red", 1, overwrite=False)
    start = load_embedding(tmp_path / "embeddings" / "mycat.pt")
    other = (tmp_path / "embeddings" / "other.pt").read_bytes()
    train(form, str(tmp_path / "log"))
    assert not torch.equal(load_embedding(tmp_path / "embeddings" / "mycat.pt"), start)
    assert (tmp_path / "embeddings" / "other.pt").read_bytes() == other


def test_interrupt_saves_and_says_so(host, form, tmp_path, monkeypatch):
    before = predict(host)
    show = TrainingJob.show

    def stop_after_two(job, progress):
        show(job, progress)
        if progress.step == 2:
            shared.state.interrupt()

    monkeypatch.setattr(TrainingJob, "show", stop_after_two)
    done = train(form, str(tmp_path / "log"))
    assert done.interrupted and done.step == 3
    assert Delta.load(done.delta).provenance.steps == 3
    assert same_as_before(host, before)


def test_an_error_in_the_middle_leaves_the_host_as_it_was_and_the_next_training_runs(host, form, tmp_path, monkeypatch):
    before = predict(host)
    with monkeypatch.context() as broken:
        broken.setattr(training, "masked_errors", lambda *tensors: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(form, str(tmp_path / "log"))
    assert same_as_before(host, before)
    assert not (tmp_path / "deltas" / "mycat.delta.safetensors").exists()
    assert train(form, str(tmp_path / "log")).step == 6


def test_the_page_shows_the_step_the_loss_and_its_curve(host, form, tmp_path):
    train(replace(form, steps=30), str(tmp_path / "log"))
    assert shared.state.job_count == 30 and shared.state.job_no == 30
    for expected in ("30 of 30", "<svg", 'class="smooth"', "Time left"):
        assert expected in shared.state.textinfo


def test_previews_are_saved_and_shown(host, form, tmp_path):
    asked = replace(form, preview_every=3, preview_prompt="mycat on the moon")
    done = train(asked, str(tmp_path / "log"), preview=Sampling(size=(24, 16)))
    pictures = sorted((done.log_directory / "images").iterdir())
    assert [path.name for path in pictures] == ["mycat-3.png", "mycat-6.png"]
    assert Image.open(pictures[0]).size == (24, 16)
    assert shared.state.current_image is not None


def test_a_delta_of_that_name_is_kept_unless_overwriting_was_asked_for(host, form, tmp_path):
    target = tmp_path / "deltas" / "mycat.delta.safetensors"
    target.write_bytes(b"precious")
    with pytest.raises(UserError, match="there is a delta mycat already"):
        train(form, str(tmp_path / "log"))
    assert target.read_bytes() == b"precious"
    train(replace(form, overwrite=True), str(tmp_path / "log"))
    assert Delta.load(target).entries


def test_the_optimizer_state_is_kept_if_the_host_is_set_to(host, form, tmp_path, monkeypatch):
    monkeypatch.setattr(shared.opts, "save_optimizer_state", True)
    done = train(form, str(tmp_path / "log"))
    assert (done.log_directory / "checkpoint-6" / "state.safetensors").is_file()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"concepts": []}, "1 to 4 concepts"),
        ({"concepts": [ConceptForm("", "x")]}, "concept 1 has no word"),
        ({"concepts": [ConceptForm("mycat", " ")]}, "concept 1 has no folder"),
        ({"concepts": [ConceptForm("mycat", "x"), ConceptForm("mycat", "y")]}, "the same word"),
        ({"concepts": [ConceptForm("nobody", "x")]}, "no embedding 'nobody'"),
        ({"concepts": [ConceptForm("mycat", "/no/such/folder")]}, "no folder /no/such/folder"),
        ({"name": "///"}, "no letter or digit"),
        ({"clip_mode": "hard"}, "by norm, value or disabled"),
        ({"captions": "template", "template": "none.txt"}, "no prompt template 'none.txt'"),
        ({"steps": 0}, "max_train_steps"),
        ({"learning_rate": "fast"}, "no learning rate"),
        ({"prompt": "a photo"}, "modifier token mycat"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(host, form, tmp_path, change, said):
    before = predict(host)
    with pytest.raises(UserError, match=said):
        train(replace(form, **change), str(tmp_path / "log"))
    assert same_as_before(host, before)
    assert not list((tmp_path / "deltas").iterdir())


def test_names_cannot_leave_their_folder(form):
    assert replace(form, name="../../evil").file_name == "evil"
    assert replace(form, name="a/b\\c").file_name == "abc"


def test_every_preset_can_be_trained_with(host, form):
    for values in PRESETS.values():
        replace(form, **values).core_config(["mycat"], 1).check()
