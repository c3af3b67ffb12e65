"""Commands that are printed run as printed."""

from __future__ import annotations

import shlex

import pytest

from lib_custom_diffusion.standalone.follow_up import command
from lib_custom_diffusion.standalone.prompts import split_deltas

ARGUMENTS = [
    "plain", "photo of a <new1> cat", 'a "quoted" cat', "it's $HOME & more; `x`", "C:\\my pets\\", 'back\\"slash', "",
]  # fmt: skip


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
