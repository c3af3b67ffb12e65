"""Deltas are found by name wherever they lie in the folder, and new ones go nowhere else."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from lib_custom_diffusion import deltas_folder
from lib_custom_diffusion.deltas_folder import files_below, find_delta, named_deltas, new_file
from lib_custom_diffusion.errors import UserError


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_the_nearest_file_of_a_stem_has_its_name_and_others_are_called_by_their_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(
        tmp_path, "pets/cat.delta.safetensors", "cat.delta.safetensors", "pets/dog.delta.safetensors", "cat.safetensors"
    )
    assert named_deltas(tmp_path) == {
        "cat": tmp_path / "cat.delta.safetensors",
        "dog": tmp_path / "pets" / "dog.delta.safetensors",
        "pets/cat": tmp_path / "pets" / "cat.delta.safetensors",
    }
    assert find_delta(tmp_path, "pets/cat") == tmp_path / "pets" / "cat.delta.safetensors"
    assert find_delta(tmp_path, "pets/dog") == tmp_path / "pets" / "dog.delta.safetensors"
    with pytest.raises(UserError, match=r"there is no delta 'bird' in .* which has cat, dog, pets/cat$"):
        find_delta(tmp_path, "bird")
    with pytest.raises(UserError, match=r"\. Did you mean cat\? The folder has cat, dog, pets/cat$"):
        find_delta(tmp_path, "Cart")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"in {re.escape(str(tmp_path))}\. Did you mean cat\?"):
        find_delta(Path("."), "Cart")
    with pytest.raises(UserError, match="choose a delta"):
        find_delta(tmp_path, "")


def test_hidden_files_and_other_endings_are_left_out_and_links_are_followed(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere", "far.delta.safetensors")
    put(tmp_path / "deltas", ".half.delta.safetensors", "a.bin", "b.txt")
    put(tmp_path / "deltas" / ".venv", "hidden.delta.safetensors")
    try:
        (tmp_path / "deltas" / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    except OSError:
        pytest.skip("this system makes no links")
    assert list(named_deltas(tmp_path / "deltas")) == ["far"]
    assert [path.name for path in files_below(tmp_path / "deltas", (".bin",))] == ["a.bin"]
    assert named_deltas(tmp_path / "nowhere") == {}


def test_a_link_to_the_folder_itself_and_a_name_that_no_page_can_show_do_no_harm(tmp_path: Path) -> None:
    put(tmp_path, "cat.delta.safetensors")
    try:
        (tmp_path / "again").symlink_to(tmp_path, target_is_directory=True)
        Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.delta.safetensors")).touch()
    except OSError:
        pytest.skip("this system makes no links, or no such names")
    assert files_below(tmp_path) == [tmp_path / "cat.delta.safetensors"]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cat", "cat.delta.safetensors"),
        (" cat.delta.safetensors ", "cat.delta.safetensors"),
        ("../../etc/cat", "etccat.delta.safetensors"),
        ("C:\\cat", "Ccat.delta.safetensors"),
        ("a b.1", "a b.1.delta.safetensors"),
    ],
)
def test_a_new_file_lies_directly_in_the_folder_whatever_its_name(tmp_path: Path, name: str, file: str) -> None:
    assert new_file(tmp_path, name, overwrite=False) == tmp_path / file


def test_a_name_that_is_taken_or_empty_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "cat.delta.safetensors")
    with pytest.raises(UserError, match=r"there is a file cat\.delta\.safetensors already"):
        new_file(tmp_path, "cat", overwrite=False)
    assert new_file(tmp_path, "cat", overwrite=True) == tmp_path / "cat.delta.safetensors"
    assert new_file(tmp_path, "cat", overwrite=False, suffix=".pt") == tmp_path / "cat.pt"
    with pytest.raises(UserError, match="no letter or digit"):
        new_file(tmp_path, "../..", overwrite=True)


def test_endings_count_in_any_case_and_names_that_differ_by_case_alone_are_one(tmp_path: Path) -> None:
    put(tmp_path, "Cat.DELTA.SAFETENSORS", "a:b.delta.safetensors")
    assert set(named_deltas(tmp_path)) == {"Cat", "a:b"}
    for overwrite in (False, True):
        with pytest.raises(UserError, match="there is a file Cat"):
            new_file(tmp_path, "cat", overwrite)


def test_a_file_elsewhere_is_found_only_where_paths_are_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    put(tmp_path, "elsewhere/x.delta.safetensors", "deltas/y.delta.safetensors")
    path = tmp_path / "elsewhere" / "x.delta.safetensors"
    for name in (str(path), "~/elsewhere/x.delta.safetensors"):
        assert find_delta(tmp_path / "deltas", name, by_path=True) == path
        with pytest.raises(UserError, match="there is no delta"):
            find_delta(tmp_path / "deltas", name)


def test_a_name_is_not_looked_for_in_a_whole_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deltas_folder, "_LOOKED_AT", 5)
    put(tmp_path, "many/a.png", "many/b.png", "many/c.png", "cat.delta.safetensors")  # five, with the folder
    assert find_delta(tmp_path, "cat", by_path=True) == tmp_path / "cat.delta.safetensors"
    put(tmp_path, "many/d.png")
    with pytest.raises(UserError, match="has more than 5 files and folders, too many to look for deltas in"):
        find_delta(tmp_path, "nope", by_path=True)
    path = tmp_path / "cat.delta.safetensors"
    assert find_delta(tmp_path, str(path), by_path=True) == path


def test_of_many_deltas_some_are_named(tmp_path: Path) -> None:
    put(tmp_path, *(f"cat{number:02}.delta.safetensors" for number in range(23)))
    with pytest.raises(UserError, match=r"which has cat00, cat01, cat02, cat03, cat04 and 18 more$"):
        find_delta(tmp_path, "nope")
