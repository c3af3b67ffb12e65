"""Regularization pictures from the WebUI: drawn with captions, gone on with, never half-drawn."""

from __future__ import annotations

import pytest
from modules import shared
from PIL import Image

from lib_custom_diffusion.backend import Sampling
from lib_custom_diffusion.captions import captioned_pictures
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.webui import regularization_job
from lib_custom_diffusion.webui.regularization_job import Interrupted, draw_captions, draw_class, pick

SAMPLING = Sampling(size=(16, 16), batch_size=2)


def test_a_class_is_drawn_with_captions_and_gone_on_with(host, tmp_path):
    folder = tmp_path / "cats"
    assert len(draw_class(folder, "photo of a cat", 3, SAMPLING, 1, "Euler a")) == 3
    first = (folder / "0000.png").read_bytes()
    assert [path.name for path in draw_class(folder, "photo of a cat", 5, SAMPLING, 1, "Euler a")] == [
        "0003.png",
        "0004.png",
    ]
    assert (folder / "0000.png").read_bytes() == first
    assert {caption for _, caption in captioned_pictures(folder)} == {"photo of a cat"}
    assert (shared.state.job_no, shared.state.textinfo) == (5, "5 of 5 pictures")


def test_interrupt_keeps_whole_batches_and_the_same_call_goes_on(host, tmp_path, monkeypatch):
    folder, draw = tmp_path / "cats", regularization_job.HostBackend.generate

    def interrupted_in_the_second_batch(backend, prompts, seeds, sampling, vectors):
        if seeds[0] == 3:
            shared.state.interrupt()
        return draw(backend, prompts, seeds, sampling, vectors)

    monkeypatch.setattr(regularization_job.HostBackend, "generate", interrupted_in_the_second_batch)
    with pytest.raises(Interrupted):
        draw_class(folder, "a cat", 4, SAMPLING, 1, "Euler a")
    assert sorted(path.name for path in folder.glob("*.png")) == ["0000.png", "0001.png"]
    monkeypatch.undo()
    shared.state.begin()


def test_captions_of_a_folder_are_drawn_as_often_as_asked(host, tmp_path):
    source, folder = tmp_path / "source", tmp_path / "drawn"
    source.mkdir()
    for name, caption in (("a", "red cat"), ("b", "a dog")):
        Image.new("RGB", (16, 16)).save(source / f"{name}.png")
        (source / f"{name}.txt").write_text(caption)
    assert len(draw_captions(folder, source, 2, SAMPLING, 1, "Euler a")) == 4
    captions = [caption for _, caption in captioned_pictures(folder)]
    assert captions == ["red cat", "a dog", "red cat", "a dog"]
    assert draw_captions(folder, source, 2, SAMPLING, 1, "Euler a") == []
    (source / "a.txt").write_text("blue cat")
    with pytest.raises(UserError, match="is a picture of 'red cat', not 'blue cat'"):
        draw_captions(folder, source, 3, SAMPLING, 1, "Euler a")


def test_captions_that_are_nearest_are_picked(host, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for index, caption in enumerate(("a red dog", "far away", "cat")):
        Image.new("RGB", (16, 16)).save(source / f"{index}.png")
        (source / f"{index}.txt").write_text(caption)
    assert pick(source, tmp_path / "picked", "cat", 1) == 1
    assert (tmp_path / "picked" / "caption.txt").read_text() == "cat\n"
