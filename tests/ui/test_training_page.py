"""What a page says of a training that is over."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_custom_diffusion.ui.training_page import Outcome, outcome_html


def test_files_are_named_by_full_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = outcome_html(Outcome(3, False, Path("mug.delta.safetensors"), [Path("log/mug.pt")], Path("log"), "a mug"))
    for before, path in (("Delta: ", "mug.delta.safetensors"), ("Embedding: ", "log/mug.pt"), ("are in ", "log")):
        assert f"{before}<code>{tmp_path / path}</code>" in told
