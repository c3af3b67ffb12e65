"""Deltas are found by name, and read again exactly when their file has changed."""

from __future__ import annotations

import gc
import os
import weakref

import pytest
import torch

from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.webui import delta_library as library_module
from lib_custom_diffusion.webui.delta_library import DeltaLibrary


def delta(value: float = 1.0) -> Delta:
    return Delta(
        {"model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight": torch.full((8, 6), value)}
    )


@pytest.fixture
def library(tmp_path) -> DeltaLibrary:
    return DeltaLibrary(tmp_path)


def test_a_delta_of_nearly_that_name_is_suggested(tmp_path):
    (tmp_path / "my-cat.delta.safetensors").touch()
    with pytest.raises(UserError, match=r"there is no delta 'mycat' in .*\. Did you mean my-cat\?"):
        DeltaLibrary(tmp_path).find("mycat")


def test_a_delta_is_found_by_its_file_name_also_one_that_was_added_since(library, tmp_path):
    library.refresh()
    delta().save(tmp_path / "cat.delta.safetensors")
    assert library.find("cat").path == tmp_path / "cat.delta.safetensors"


def test_of_two_files_of_one_name_the_deeper_is_called_by_its_folder(library, tmp_path):
    delta().save(tmp_path / "cat.delta.safetensors")
    delta(2.0).save(tmp_path / "mine" / "cat.delta.safetensors")
    library.refresh()
    assert {each.name for each in library.all()} == {"cat", "mine/cat"}
    assert library.find("cat").path == tmp_path / "cat.delta.safetensors"


def test_an_unknown_name_says_where_it_was_looked_for(library, tmp_path):
    with pytest.raises(UserError, match=f"no delta 'dog' in {tmp_path}"):
        library.find("dog")


def test_a_file_is_read_once_until_it_changes(library, tmp_path):
    path = tmp_path / "cat.delta.safetensors"
    delta(1.0).save(path)
    first = library.load(library.find("cat"))
    assert library.load(library.find("cat")) is first
    delta(2.0).save(path)
    os.utime(path, ns=(1, 1))
    assert next(iter(library.load(library.find("cat")).entries.values()))[0, 0] == 2.0


def test_a_name_is_found_by_the_hash_of_its_file(library, tmp_path):
    delta().save(tmp_path / "cat.delta.safetensors")
    assert library.named_by_hash(library.find("cat").shorthash) == "cat"
    assert library.named_by_hash("ffffffffffff") is None
    assert library.named_by_hash("") is None


def test_hidden_and_other_files_are_no_deltas(library, tmp_path):
    (tmp_path / "lora.safetensors").write_bytes(b"")
    (tmp_path / ".cat.delta.safetensors").write_bytes(b"")
    library.refresh()
    assert library.all() == []


def test_few_deltas_are_kept_in_memory_and_few_bytes(library, tmp_path, monkeypatch):
    for number in range(10):
        delta(number).save(tmp_path / f"{number}.delta.safetensors")
    read = [weakref.ref(library.load(library.find(str(number)))) for number in range(10)]
    gc.collect()
    assert [each() is not None for each in read] == [False] * 2 + [True] * 8
    monkeypatch.setattr(library_module, "_BYTES_IN_MEMORY", 3 * 8 * 6 * 2)  # of three in float16
    again = library.load(library.find("9"))
    gc.collect()
    assert [each() is not None for each in read] == [False] * 7 + [True] * 3
    monkeypatch.setattr(library_module, "_BYTES_IN_MEMORY", 1)
    assert library.load(library.find("9")) is again


def test_another_file_of_the_same_size_and_time_in_its_place_is_read(library, tmp_path):
    path = tmp_path / "cat.delta.safetensors"
    delta(1.0).save(path)
    os.utime(path, ns=(1, 1))
    assert next(iter(library.load(library.find("cat")).entries.values()))[0, 0] == 1.0
    delta(2.0).save(tmp_path / "other")
    os.utime(tmp_path / "other", ns=(1, 1))
    os.replace(tmp_path / "other", path)
    assert next(iter(library.load(library.find("cat")).entries.values()))[0, 0] == 2.0


def test_saves_in_a_log_directory_that_was_named_once_are_found_after_a_restart(tmp_path):
    def started() -> DeltaLibrary:
        return DeltaLibrary(tmp_path / "deltas", tmp_path / "usual", other_logs=tmp_path / "logs.txt")

    for name in ("first", "die zweite"):
        delta().save(tmp_path / name / "2026-01-02" / "cat" / "embeddings" / f"cat-{len(name)}.delta.safetensors")
        library = started()
        library.look_into(tmp_path / name)
        library.look_into(tmp_path / name)
        library.look_into(tmp_path / "usual")
    library = started()
    assert list(library.by_steps("cat-5")) == [5, 10]
    assert library.logs == [tmp_path / "usual", tmp_path / "first", tmp_path / "die zweite"]


def test_a_log_directory_that_cannot_be_remembered_is_searched_until_the_host_ends(tmp_path):
    (tmp_path / "no folder").touch()
    library = DeltaLibrary(tmp_path / "deltas", other_logs=tmp_path / "no folder" / "logs.txt")
    delta().save(tmp_path / "mine" / "2026-01-02" / "cat" / "embeddings" / "cat-5.delta.safetensors")
    library.look_into(tmp_path / "mine")
    assert list(library.by_steps("cat-5")) == [5]


def test_folders_beside_the_trainings_are_not_searched(library, tmp_path):
    """A log directory may be a home folder."""
    delta().save(tmp_path / "home" / "pictures" / "cat" / "cat-5.delta.safetensors")
    library.look_into(tmp_path / "home")
    library.refresh()
    assert library.saves() == []
