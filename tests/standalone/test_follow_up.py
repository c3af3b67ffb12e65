"""Commands that are printed run as printed."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lib_custom_diffusion.standalone.follow_up import command
from lib_custom_diffusion.standalone.prompts import split_deltas

ARGUMENTS = [
    "plain", "photo of a <new1> cat", 'a "quoted" cat', "it's $HOME & more; `x`", "C:\\my pets\\", 'back\\"slash', "",
]  # fmt: skip


@pytest.fixture(autouse=True)
def python_is_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: sys.executable)


@pytest.mark.skipif(sys.platform == "win32", reason="paths as elsewhere")
def test_where_python_is_another_one_its_path_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder's .venv/bin/python is by its links the system's, which lacks the libraries."""
    own = tmp_path / "a folder" / ".venv" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.symlink_to(sys.executable)
    monkeypatch.setattr("sys.executable", str(own))
    for found in (None, str(own.resolve())):
        monkeypatch.setattr("shutil.which", lambda name, found=found: found)
        monkeypatch.chdir(tmp_path)
        assert shlex.split(command("info"))[0] == "a folder/.venv/bin/python"
        monkeypatch.chdir(tmp_path.parent)
        assert shlex.split(command("info"))[0] == f"{tmp_path.name}/a folder/.venv/bin/python"
        monkeypatch.chdir(own.parent)
        assert Path(shlex.split(command("info"))[0]).name == "python"


def test_a_python_without_the_libraries_is_told_of_the_one_that_has_them(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    (tmp_path / "lib_custom_diffusion").symlink_to(root / "lib_custom_diffusion")
    done = subprocess.run(
        [sys.executable, "-S", "-m", "lib_custom_diffusion", "info", "a"],
        cwd=tmp_path, env={}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert " has no " in done.stderr
    assert "-m lib_custom_diffusion info a" in done.stderr or "install.py" in done.stderr


def test_a_shell_reads_what_was_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    assert shlex.split(command(*ARGUMENTS)) == ["python", "-m", "lib_custom_diffusion", *ARGUMENTS]


@pytest.mark.parametrize(
    ("argument", "quoted"),
    [
        ("plain", "plain"),
        ("C:\\pets\\cat", "C:\\pets\\cat"),
        ("photo of a <new1> cat", '"photo of a <new1> cat"'),
        ('a "quoted" cat', '"a \\"quoted\\" cat"'),
        ("C:\\my pets\\", '"C:\\my pets\\\\"'),
        ('back\\"slash', '"back\\\\\\"slash"'),
        ("", '""'),
    ],
)
def test_windows_reads_what_was_meant(monkeypatch: pytest.MonkeyPatch, argument: str, quoted: str) -> None:
    """The rules of Microsoft's C runtime: 2n backslashes before a quote are n, and one more makes it a letter."""
    monkeypatch.setattr("sys.platform", "win32")
    assert command(argument) == f"python -m lib_custom_diffusion {quoted}"


@pytest.mark.parametrize("path", ["a b/c:d.delta.safetensors", "C:\\x y\\c.delta.safetensors"])
def test_a_printed_tag_names_the_whole_path(path: str) -> None:
    assert split_deltas(f"<delta:{path}:1>")[1] == [(path, 1.0)]
