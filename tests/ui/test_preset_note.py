"""A preset says what it is for, and what it costs on this machine once that is known."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lib_custom_diffusion.training.recipes import RECIPES, TOY_RECIPES
from lib_custom_diffusion.ui.preset_note import PURPOSES, Loaded, amended, preset_note
from lib_custom_diffusion.ui.timings import Circumstances, Timing, keep_timing

PET = RECIPES["thing or pet"]


@pytest.fixture
def timings(tmp_path: Path) -> Path:
    """A step of one megapixel takes 4 s, its encoding nothing."""
    here = Circumstances("cpu", "sd1", "no", "crossattn_kv", False)
    keep_timing(tmp_path / "timings.json", Timing(here, 0.0, 4.0, "2026-01-01", "5.5 GB"))
    return tmp_path / "timings.json"


def test_every_preset_says_what_it_is_for() -> None:
    assert set(PURPOSES) == {*RECIPES, *TOY_RECIPES}


def test_the_cost_is_that_of_the_machine_the_model_and_the_pictures(timings: Path, tmp_path: Path) -> None:
    # 250 steps of 4 pictures of 1000 x 1000 pixels: 4000 s
    told = preset_note("thing or pet", PET, "", Loaded("sd1", 1000), timings)
    assert "A thing or a pet" in told and "About 67 min for 250 steps on this machine. Memory: 5.5 GB." in told
    for number in range(2):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    assert "About 33 min" in preset_note("thing or pet", PET, f'"{tmp_path}"', Loaded("sd1", 1000), timings)


def test_what_the_form_has_by_now_counts_and_what_it_lacks_is_the_presets(timings: Path) -> None:
    def told(*entered: object) -> str:
        return preset_note("thing or pet", amended(PET, *entered), "", Loaded("sd1", 1000), timings)

    assert "About 33 min for 125 steps" in told(125, 4, "crossattn_kv")
    assert "About 50 min for 250 steps" in told(250, 3, "crossattn_kv")
    assert "250 steps; how long they take is known after" in told(250, 4, "crossattn")
    assert told(None, 0, None) == told() and "About 67 min for 250 steps" in told()


@pytest.mark.parametrize(
    ("preset", "loaded"),
    [("thing or pet", None), ("thing or pet", Loaded("sd2", 768)), ("face", Loaded("sd1", 512))],
)
def test_what_was_not_measured_is_not_guessed(timings: Path, preset: str, loaded: Loaded | None) -> None:
    told = preset_note(preset, RECIPES[preset], "", loaded, timings)
    assert "is known after the first training" in told and "About" not in told
