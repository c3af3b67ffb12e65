"""Damaged and hostile files of every format: each is read, or refused with one line, soon, and without being executed.

A few hundred here; `tests/benchmarks/fuzz.py` tries as many thousand as one likes.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from damaged_files import BASE, MUTATIONS, READERS, TRAP, truncated, valid_files
from lib_custom_diffusion import formats
from lib_custom_diffusion.errors import UserError

COUNT = 240
SECONDS_EACH = 5.0  # a bound on one file; all together take milliseconds each


@pytest.fixture
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_files_are_valid_before_they_are_damaged(somewhere: Path) -> None:
    for kind, content in valid_files().items():
        (somewhere / "file").write_bytes(content)
        found = formats.read(somewhere / "file", BASE)
        assert found.delta.entries or found.delta.embeddings, kind


def test_bad_files_are_refused_with_one_line_and_nothing_else(somewhere: Path) -> None:
    pytest.importorskip("lib_custom_diffusion.standalone.info")
    rng = random.Random(20260001)
    files, readers = list(valid_files().items()), list(READERS)
    before = peak_memory()
    refused = 0
    for number in range(COUNT):
        kind, content = files[number % len(files)]
        mutation = rng.choice(MUTATIONS)
        (somewhere / "file").write_bytes(mutation(content, rng))
        for reader in ("formats with a model", "delta", readers[number % len(readers)]):
            started = time.monotonic()
            try:
                READERS[reader](Path("file"))
            except UserError as error:
                refused += 1
                assert str(error).strip() and "\n" not in str(error)
                str(error).encode()
            except Exception as error:
                raise AssertionError(f"{reader}: {mutation.__name__} of {kind}, number {number}: {error!r}") from error
            assert time.monotonic() - started < SECONDS_EACH, (mutation.__name__, kind, number)
            assert not TRAP.exists(), (mutation.__name__, kind, number)
    assert refused > COUNT
    assert peak_memory() - before < 300e6


def peak_memory() -> float:
    """Most memory this process has had, in bytes; 0 where that cannot be told."""
    try:
        import resource
    except ImportError:
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def test_the_command_line_prints_one_line_and_exits_2(somewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli = pytest.importorskip("lib_custom_diffusion.standalone.cli")
    rng = random.Random(5)
    for number, (_, content) in enumerate(valid_files().items()):
        path = somewhere / "file.bin"
        path.write_bytes(truncated(content[: len(content) // 2], rng))
        for command in (["convert", "file.bin", "--output", "out"], ["compress", "file.bin", "--rank", "1"]):
            assert cli.main(command) == 2, number
            printed = capsys.readouterr()
            assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
            assert [found.name for found in somewhere.iterdir()] == ["file.bin"]
