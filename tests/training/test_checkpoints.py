"""The output folder: which checkpoint is resumed from, and what may be overwritten."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lib_custom_diffusion import __version__
from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.storage import FolderLock, safetensors_bytes
from lib_custom_diffusion.training import checkpoints
from lib_custom_diffusion.training.checkpoints import TrainingState, clean_up, save_checkpoint
from lib_custom_diffusion.training.identity import Identity, differences

IDENTITY = Identity({"seed": 1, "train_blocks": ("mid",), "max_train_steps": 10})


def save(folder: Path, step: int) -> Path:
    delta = Delta({"model.diffusion_model.x": torch.ones(2, 2)}, {"<new1>": torch.ones(1, 2)})
    return checkpoints.save_checkpoint(folder, "cat", delta, TrainingState(step, {"x": torch.ones(2)}, {}, IDENTITY))


def test_latest_is_the_highest_step_not_the_last_name(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        save(tmp_path, step)
    latest = checkpoints.resolve_checkpoint(tmp_path, "latest")
    assert latest == tmp_path / "checkpoint-100"
    assert checkpoints.resolve_checkpoint(tmp_path, "checkpoint-9") == tmp_path / "checkpoint-9"
    assert checkpoints.resolve_checkpoint(tmp_path, None) is None


def test_what_is_merely_called_like_a_save_is_none_and_stays(tmp_path: Path) -> None:
    save(tmp_path, 5)
    for name in ("checkpoint-mine", "checkpoint-007", "checkpoint-\u0663", "checkpoint-9.bak"):
        (tmp_path / name).mkdir()
    assert checkpoints.resolve_checkpoint(tmp_path, "latest") == tmp_path / "checkpoint-5"
    assert checkpoints.results_in(tmp_path, "cat") == [tmp_path / "checkpoint-5"]


def test_latest_of_nothing_begins_anew_but_a_name_must_be_there(tmp_path: Path) -> None:
    assert checkpoints.resolve_checkpoint(tmp_path / "new", "latest") is None
    with pytest.raises(UserError, match="no save checkpoint-3"):
        checkpoints.resolve_checkpoint(tmp_path, "checkpoint-3")


def test_state_is_read_back_with_what_it_belongs_to(tmp_path: Path) -> None:
    state = checkpoints.load_state(save(tmp_path, 5))
    assert (state.step, state.tensors["x"].tolist()) == (5, [1.0, 1.0])
    assert checkpoints.read_identity(tmp_path / "checkpoint-5") == (5, state.identity)
    assert differences(state.identity, IDENTITY) == []


def test_saves_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """Which had the settings alone for an identity, and AdamW alone, all of whose state are tensors."""
    path = save(tmp_path, 5) / "state.safetensors"
    old = {"step": 5, "scaler": {}, "settings": {"seed": 1}}
    path.write_bytes(safetensors_bytes({"x": torch.ones(2)}, {"training": json.dumps(old)}))
    state = checkpoints.load_state(path.parent)
    assert (state.identity, state.optimizer_numbers, state.optimizer_groups) == (Identity({"seed": 1}), {}, [])
    assert checkpoints.read_identity(path.parent) == (5, Identity({"seed": 1}))


@pytest.mark.parametrize("read", [checkpoints.load_state, checkpoints.read_identity, checkpoints.shapes_in])
@pytest.mark.parametrize("version", ["0.2.0", "0.1.1", "1", "12.0.0rc1"])
def test_a_save_of_a_newer_version_names_it_and_says_what_to_do(
    tmp_path: Path, read: Callable[[Path], object], version: str
) -> None:
    path = save(tmp_path, 5) / "state.safetensors"
    newer = {"library_version": version, "steps": [5]}  # as only that version understands it
    path.write_bytes(safetensors_bytes({"x": torch.ones(2)}, {"training": json.dumps(newer)}))
    wrote = f"version {version.removesuffix('rc1')} of Custom Diffusion wrote it, and this is 0.1.0"
    with pytest.raises(UserError, match=f"cannot be resumed from: {re.escape(wrote)}; update this one, or start again"):
        read(path.parent)


def test_a_save_names_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, 5)
    monkeypatch.setattr("lib_custom_diffusion.versions.__version__", "0.0.9")
    with pytest.raises(UserError, match=rf"version {re.escape(__version__)} of Custom Diffusion wrote it"):
        checkpoints.load_state(path)


def test_a_save_may_be_named_by_a_path_from_the_working_or_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = save(tmp_path / "there", 5)
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    for asked in ("there/checkpoint-5", "~/there/checkpoint-5", str(there)):
        found = checkpoints.resolve_checkpoint(tmp_path / "here", asked)
        assert found is not None and found.resolve() == there.resolve()


def test_damaged_state_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 5) / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="damaged"):
        checkpoints.load_state(path.parent)
    with pytest.raises(UserError, match="damaged"):
        checkpoints.read_identity(path.parent)


def test_what_a_training_has_left_is_found_and_removed_and_other_things_stay(tmp_path: Path) -> None:
    save(tmp_path, 5)
    for name in ("holiday.png", "cat.delta.safetensors", "dog.delta.safetensors"):
        (tmp_path / name).write_bytes(b"")
    found = checkpoints.results_in(tmp_path, "cat")
    assert [path.name for path in found] == ["checkpoint-5", "cat.delta.safetensors"]
    checkpoints.remove(found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dog.delta.safetensors", "holiday.png"]


def test_a_limit_never_removes_the_save_that_was_just_made(tmp_path: Path) -> None:
    """Saves of later steps are those of a run that is gone: they go first."""
    for step in (10, 50):
        save_checkpoint(tmp_path, "x", Delta({}), TrainingState(step, {}, {}, IDENTITY))
    save_checkpoint(tmp_path, "x", Delta({}), TrainingState(15, {}, {}, IDENTITY), keep=2)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-15"]
    save_checkpoint(tmp_path, "x", Delta({}), TrainingState(20, {}, {}, IDENTITY), keep=1)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-20"]
    save_checkpoint(tmp_path, "x", Delta({}), TrainingState(30, {}, {}, IDENTITY), keep=2)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-20", "checkpoint-30"]


def test_what_a_killed_run_has_left_is_cleared_away_and_a_save_it_was_replacing_comes_back(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "x", Delta({}), TrainingState(10, {}, {}, IDENTITY))
    (tmp_path / "checkpoint-10").rename(tmp_path / ".replaced-checkpoint-10")
    (tmp_path / ".checkpoint-10.tmp").mkdir()
    for name in (".x.delta.safetensors.abcd_123.tmp", ".loss.csv.abcd_123.tmp", ".new1.pt.abcd_123.tmp",
                 ".loss.csv.new.tmp"):  # fmt: skip
        (tmp_path / name).write_bytes(b"half")
    for name in ("mine.tmp", ".mine.tmp", ".notes.txt.abcd_123.tmp"):
        (tmp_path / name).write_bytes(b"kept")
    (tmp_path / ".folder.tmp").mkdir()
    clean_up(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".folder.tmp", ".mine.tmp", ".notes.txt.abcd_123.tmp", "checkpoint-10", "mine.tmp",
    ]  # fmt: skip


def test_what_another_user_has_left_keeps_no_training_from_going_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, "x", Delta({}), TrainingState(10, {}, {}, IDENTITY))
    (tmp_path / ".replaced-checkpoint-10").mkdir()
    for name in (".checkpoint-20.tmp", ".replaced-checkpoint-10"):
        (tmp_path / name).mkdir(exist_ok=True)
    (tmp_path / "x.delta.safetensors").write_bytes(b"theirs")
    (tmp_path / ".loss.csv.new.tmp").write_bytes(b"theirs")

    def not_ours(path: object, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    for name in ("unlink", "rmdir"):
        monkeypatch.setattr(os, name, not_ours)
    monkeypatch.setattr(Path, "unlink", not_ours)
    clean_up(tmp_path)
    checkpoints.remove(checkpoints.results_in(tmp_path, "x"))
    assert (tmp_path / "x.delta.safetensors").read_bytes() == b"theirs"


def test_a_run_that_is_killed_while_it_removes_saves_leaves_none_that_lacks_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(folder: Path, **_: object) -> None:
        if folder.is_dir():
            next(folder.iterdir()).unlink()
            raise Killed

    for remove in (
        lambda: save_checkpoint(tmp_path, "x", Delta({}), TrainingState(20, {}, {}, IDENTITY), keep=1),
        lambda: checkpoints.remove(checkpoints.results_in(tmp_path, "x")),
    ):
        save_checkpoint(tmp_path, "x", Delta({}), TrainingState(10, {}, {}, IDENTITY))
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints.shutil, "rmtree", killed)
            with pytest.raises(Killed):
                remove()
        for save in tmp_path.glob("checkpoint-*"):
            checkpoints.load_state(save)
        clean_up(tmp_path)
        assert all(path.name.startswith("checkpoint-") for path in tmp_path.iterdir())


def test_a_folder_that_another_process_trains_into_is_refused(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from lib_custom_diffusion.storage import FolderLock\n"
        "with FolderLock(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="another training is writing into"):
            FolderLock(tmp_path).__enter__()
    finally:
        holder.kill()
        holder.wait()
    with FolderLock(tmp_path):  # whoever is killed lets go
        pass
    assert list(tmp_path.iterdir()) == []


def test_who_comes_into_a_folder_that_was_removed_and_made_again_stays_its_only_one(tmp_path: Path) -> None:
    first, second = FolderLock(tmp_path / "out"), FolderLock(tmp_path / "out")
    first.__enter__()
    shutil.rmtree(tmp_path / "out")
    second.__enter__()
    first.__exit__(None, None, None)
    with pytest.raises(UserError, match="another training is writing into"):
        FolderLock(tmp_path / "out").__enter__()
    second.__exit__(None, None, None)


def test_a_save_of_a_step_that_has_one_replaces_it_and_takes_nothing_of_a_killed_one(tmp_path: Path) -> None:
    other = TrainingState(5, {"x": torch.zeros(2)}, {}, IDENTITY)
    delta = Delta({"model.diffusion_model.x": torch.zeros(2, 2)}, {"<new1>": torch.zeros(1, 2)})
    names = {path.name for path in save(tmp_path, 5).iterdir()}
    (tmp_path / ".checkpoint-5.tmp").mkdir()
    (tmp_path / ".checkpoint-5.tmp" / "half.bin").write_bytes(b"of a killed run")
    again = checkpoints.save_checkpoint(tmp_path, "cat", delta, other)
    assert checkpoints.load_state(again).tensors["x"].tolist() == [0.0, 0.0]
    assert {path.name for path in again.iterdir()} == names and [path.name for path in tmp_path.iterdir()] == [
        again.name
    ]
