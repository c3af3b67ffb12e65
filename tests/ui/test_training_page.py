"""What a page says of a training that is over."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from lib_custom_diffusion.ui.training_face import PageFace
from lib_custom_diffusion.ui.training_page import Outcome, outcome_html


def test_files_are_named_by_full_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = outcome_html(Outcome(3, False, Path("mug.delta.safetensors"), [Path("log/mug.pt")], Path("log"), "a mug"))
    for before, path in (("Delta: ", "mug.delta.safetensors"), ("Embedding: ", "log/mug.pt"), ("are in ", "log")):
        assert f"{before}<code>{tmp_path / path}</code>" in told


def test_once_all_pictures_are_encoded_it_is_said_that_more_is_to_come() -> None:
    told = []
    screen = SimpleNamespace(show=lambda text, step: told.append(text))
    face = PageFace(screen, name="mug")
    for done in (1, 2):
        face.preparing("Encoding <pictures>", done, 2)
    assert told == [
        "Training mug. Encoding &lt;pictures&gt;: 1 of 2",
        "Training mug. Encoding &lt;pictures&gt;: 2 of 2. Preparing the steps…",
    ]
    face.page = "steps"
    face.preparing("Compressing", 2, 2)
    assert told[-1] == "steps\n<p>Compressing: 2 of 2</p>"
