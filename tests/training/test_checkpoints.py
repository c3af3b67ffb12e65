"""The output folder: which checkpoint is resumed from, and what may be overwritten."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.training import checkpoints
from lib_custom_diffusion.training.checkpoints import TrainingState, claim_folder, save_checkpoint

SETTINGS = {"seed": 1, "train_blocks": ("mid",), "max_train_steps": 10}


def save(folder: Path, step: int) -> Path:
    delta = Delta({"model.diffusion_model.x": torch.ones(2, 2)}, {"<new1>": torch.ones(1, 2)})
    return checkpoints.save_checkpoint(folder, "cat", delta, TrainingState(step, {"x": torch.ones(2)}, {}, SETTINGS))


def test_latest_is_the_highest_step_not_the_last_name(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        save(tmp_path, step)
    latest = checkpoints.resolve_checkpoint(tmp_path, "latest")
    assert latest == tmp_path / "checkpoint-100"
    assert checkpoints.resolve_checkpoint(tmp_path, "checkpoint-9") == tmp_path / "checkpoint-9"
    assert checkpoints.resolve_checkpoint(tmp_path, None) is None


def test_latest_of_nothing_begins_anew_but_a_name_must_be_there(tmp_path: Path) -> None:
    assert checkpoints.resolve_checkpoint(tmp_path / "new", "latest") is None
    with pytest.raises(UserError, match="no checkpoint checkpoint-3"):
        checkpoints.resolve_checkpoint(tmp_path, "checkpoint-3")


def test_state_is_read_back_and_settings_are_compared(tmp_path: Path) -> None:
    state = checkpoints.load_state(save(tmp_path, 5), {**SETTINGS, "max_train_steps": 20})
    assert (state.step, state.tensors["x"].tolist()) == (5, [1.0, 1.0])
    with pytest.raises(UserError, match="seed was 1, is 2"):
        checkpoints.load_state(tmp_path / "checkpoint-5", {**SETTINGS, "seed": 2})


def test_damaged_state_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 5) / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="damaged"):
        checkpoints.load_state(path.parent, SETTINGS)


def test_another_training_is_never_overwritten_unasked(tmp_path: Path) -> None:
    save(tmp_path, 5)
    with pytest.raises(UserError, match="--overwrite"):
        checkpoints.claim_folder(tmp_path, "dog", resuming=False, overwrite=False)
    checkpoints.claim_folder(tmp_path, "dog", resuming=True, overwrite=False)
    assert (tmp_path / "checkpoint-5").is_dir()
    checkpoints.claim_folder(tmp_path, "dog", resuming=False, overwrite=True)
    assert not (tmp_path / "checkpoint-5").exists()


def test_folder_with_other_things_may_be_used_and_they_stay(tmp_path: Path) -> None:
    (tmp_path / "holiday.png").write_bytes(b"")
    (tmp_path / ".checkpoint-3.tmp").mkdir()
    checkpoints.claim_folder(tmp_path, "cat", resuming=False, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.png"]


def test_a_limit_never_removes_the_save_that_was_just_made(tmp_path: Path) -> None:
    """Saves of later steps are those of a run that is gone: they go first."""
    for step in (10, 50):
        save_checkpoint(tmp_path, "x", Delta({}), TrainingState(step, {}, {}, {}))
    save_checkpoint(tmp_path, "x", Delta({}), TrainingState(15, {}, {}, {}), keep=2)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-15"]
    save_checkpoint(tmp_path, "x", Delta({}), TrainingState(20, {}, {}, {}), keep=1)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-20"]
    save_checkpoint(tmp_path, "x", Delta({}), TrainingState(30, {}, {}, {}), keep=2)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-20", "checkpoint-30"]


def test_what_a_killed_run_has_left_is_cleared_away_and_a_save_it_was_replacing_comes_back(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "x", Delta({}), TrainingState(10, {}, {}, {}))
    (tmp_path / "checkpoint-10").rename(tmp_path / ".replaced-checkpoint-10")
    (tmp_path / ".checkpoint-10.tmp").mkdir()
    for name in (".x.delta.safetensors.abcd_123.tmp", ".loss.csv.abcd_123.tmp", ".new1.pt.abcd_123.tmp"):
        (tmp_path / name).write_bytes(b"half")
    for name in ("mine.tmp", ".mine.tmp", ".notes.txt.abcd_123.tmp"):
        (tmp_path / name).write_bytes(b"kept")
    (tmp_path / ".folder.tmp").mkdir()
    claim_folder(tmp_path, "x", resuming=True, overwrite=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".folder.tmp", ".mine.tmp", ".notes.txt.abcd_123.tmp", "checkpoint-10", "mine.tmp",
    ]  # fmt: skip


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
            claim_folder(tmp_path, "x", resuming=False, overwrite=True)
    finally:
        holder.kill()
        holder.wait()
    claim_folder(tmp_path, "x", resuming=False, overwrite=True)  # whoever is killed lets go
    assert list(tmp_path.iterdir()) == []
