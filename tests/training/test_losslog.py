"""The record of a training outlives kills, torn rows and full disks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from lib_custom_diffusion.training.losslog import LOSS_CSV, NUMBERS, LossLog, LossTable


def numbers(value: float) -> dict[str, float]:
    return dict.fromkeys(NUMBERS, value)


def logged(folder: Path, resume_step: int, steps: range) -> list[str]:
    log = LossLog(folder, resume_step, None, LOSS_CSV)
    for step in steps:
        log.add(step, numbers(step))
    log.close()
    return (folder / "loss.csv").read_text().splitlines()


def test_a_resumed_run_keeps_the_rows_before_and_drops_those_after(tmp_path: Path) -> None:
    whole = logged(tmp_path / "whole", 0, range(1, 11))
    logged(tmp_path / "cut", 0, range(1, 8))
    assert logged(tmp_path / "cut", 5, range(6, 11)) == whole


@pytest.mark.parametrize(("every", "rows"), [(2, ["2", "4"]), (3, ["3"]), (0, None)])
def test_a_table_has_a_row_of_every_so_many_steps(tmp_path: Path, every: int, rows: list[str] | None) -> None:
    log = LossLog(tmp_path, 0, None, LossTable(every=every))
    for step in range(1, 6):
        log.add(step, numbers(step))
    log.close()
    file = tmp_path / "loss.csv"
    assert ([line.partition(",")[0] for line in file.read_text().splitlines()[1:]] if file.exists() else None) == rows


def test_a_training_that_takes_no_step_leaves_no_file_and_changes_none(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    LossLog(tmp_path / "new", 0, tmp_path / "new" / "logs", LOSS_CSV).close()
    assert not (tmp_path / "new").exists()
    lines = logged(tmp_path, 0, range(1, 4))
    assert logged(tmp_path, 2, range(0)) == lines


def test_a_table_without_a_row_yet_replaces_that_of_the_training_before(tmp_path: Path) -> None:
    logged(tmp_path, 0, range(1, 4))
    log = LossLog(tmp_path, 0, None, LossTable(every=500))
    log.add(1, numbers(1.0))
    log.replace_old()
    log.close()
    assert (tmp_path / "loss.csv").read_text() == ",".join(["step", *NUMBERS]) + "\n"


def test_rows_of_a_training_that_saved_nothing_leave_no_file_beside_the_old_one(tmp_path: Path) -> None:
    whole = logged(tmp_path, 0, range(1, 11))
    assert logged(tmp_path, 0, range(1, 3)) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["loss.csv"]


@pytest.mark.parametrize(
    "torn",
    ["3,0.5", "3,0.5,\0\0\0", "four,1,1,1,1,1,1", "\0", "4,1,1,1,1,1,1,1,1,1", "", '3,"0.5', "4" * 200_000,
     f"{'4' * 9000},1,1,1,1,1,1"],
    ids=lambda row: row[:9],
)  # fmt: skip
def test_torn_and_foreign_rows_are_dropped(tmp_path: Path, torn: str) -> None:
    lines = logged(tmp_path, 0, range(1, 3))
    (tmp_path / "loss.csv").write_text("\n".join([*lines[:-1], torn, lines[-1], torn]))
    assert logged(tmp_path, 5, range(6, 7)) == [*lines, "6,6,6,6,6,6,6"]


def test_rows_of_a_table_with_other_columns_keep_what_both_have(tmp_path: Path) -> None:
    (tmp_path / "loss.csv").write_text("step,loss,learning_rate\n1,0.5,1e-4\n")
    assert logged(tmp_path, 1, range(2, 3)) == [",".join(["step", *NUMBERS]), "1,0.5,,,,1e-4,", "2,2,2,2,2,2,2"]


@pytest.mark.parametrize("content", ["", "\n\n", "\0"])
def test_an_empty_file_is_begun_anew(tmp_path: Path, content: str) -> None:
    (tmp_path / "loss.csv").write_text(content)
    assert logged(tmp_path, 3, range(4, 5))[1:] == ["4,4,4,4,4,4,4"]


def test_a_training_that_goes_on_from_a_save_elsewhere_has_the_rows_of_that_and_not_of_its_folders_old_one(
    tmp_path: Path,
) -> None:
    whole, old = logged(tmp_path / "there", 0, range(1, 5)), logged(tmp_path / "here", 0, range(11, 19))
    log = LossLog(tmp_path / "here", 2, None, LOSS_CSV, before=tmp_path / "there")
    log.add(3, numbers(3))
    assert (tmp_path / "here" / "loss.csv").read_text().splitlines() == old
    log.replace_old()
    log.add(4, numbers(4))
    log.close()
    assert (tmp_path / "here" / "loss.csv").read_text().splitlines() == whole


def test_the_old_file_gives_way_to_rows_that_were_removed_meanwhile(tmp_path: Path) -> None:
    lines = logged(tmp_path / "whole", 0, range(1, 4))
    logged(tmp_path / "out", 0, range(1, 9))
    log = LossLog(tmp_path / "out", 0, None, LOSS_CSV)
    log.add(1, numbers(1))
    shutil.rmtree(tmp_path / "out")
    log.add(2, numbers(2))
    log.replace_old()
    log.add(3, numbers(3))
    log.close()
    assert (tmp_path / "out" / "loss.csv").read_text().splitlines() == lines
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["loss.csv"]


def test_history_is_on_the_disk_all_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while it begins, a resumed run has lost nothing."""
    lines = logged(tmp_path, 0, range(1, 4))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        LossLog(tmp_path, 3, None, LOSS_CSV).add(4, numbers(4))
    assert (tmp_path / "loss.csv").read_text().splitlines() == lines


class FullDisk:
    def write(self, text: object) -> int:
        raise OSError(28, "No space left on device")

    def flush(self) -> None:
        raise OSError(28, "No space left on device")

    close = flush


def test_a_full_disk_costs_the_log_and_not_the_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = LossLog(tmp_path, 0, None, LOSS_CSV)
    log.add(1, numbers(1.0))
    assert log._rows.part is not None
    log._rows.part._file = FullDisk()  # type: ignore[assignment]
    for step in (2, 3, 4):
        log.add(step, numbers(1.0))
        log.flush()
    log.close()
    assert caplog.text.count("No space left on device") == 1


class Deaf:
    """A service whose network is gone."""

    def add(self, *_: object) -> None:
        raise RuntimeError("no route to host")

    add_pictures = add

    def close(self) -> None:
        raise AssertionError("it was left out")


def test_a_service_that_fails_costs_only_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = LossLog(tmp_path, 0, None, LOSS_CSV, Deaf())
    log.add(1, numbers(1.0))
    log.add_pictures(1, [])
    log.add(2, numbers(2.0))
    log.close()
    assert len((tmp_path / "loss.csv").read_text().splitlines()) == 3
    assert caplog.text.count("no route to host") == 1


def test_tensorboard_that_cannot_be_written_costs_only_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("tensorboard")
    log = LossLog(tmp_path, 0, tmp_path / "logs", LOSS_CSV)
    log.add(1, numbers(1.0))
    events = log._events.part
    assert events is not None
    events.close()
    events._file = events._records._writer = FullDisk()  # type: ignore[assignment]
    for step in (2, 3):
        log.add(step, numbers(1.0))
        log.flush()
    log.close()
    assert len((tmp_path / "loss.csv").read_text().splitlines()) == 4
    assert caplog.text.count("TensorBoard's log is no longer written: [Errno 28]") == 1


def test_tensorboards_file_is_written_again_where_it_was_removed(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = LossLog(tmp_path, 0, tmp_path / "logs", LOSS_CSV)
    for step in range(1, 4):
        log.add(step, numbers(step))
        log.flush()
        shutil.rmtree(tmp_path / "logs")
    log.close()
    events = reader.EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    assert [each.step for each in events.Scalars("loss")] == [1, 2, 3]


def test_tensorboard_reads_what_is_written(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for resume_step, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        log = LossLog(tmp_path, resume_step, tmp_path / "logs", LOSS_CSV)
        for step in steps:
            log.add(step, numbers(step + resume_step))
        log.add_pictures(steps[-1], [Image.new("RGB", (8, 6), "red")] * 2)
        log.close()
    events = reader.EventAccumulator(str(tmp_path / "logs"), {"images": 0})
    events.Reload()
    assert [(each.step, each.value) for each in events.Scalars("loss")] == [(1, 1), (2, 2), (3, 5), (4, 6)]
    assert (events.Images("validation")[-1].width, events.Images("validation")[-1].height) == (16, 6)
