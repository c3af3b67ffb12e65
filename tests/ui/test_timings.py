"""The time of a training is told from one in the same circumstances, in proportion to its pictures and steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from lib_custom_diffusion.data.concepts import Concept, PictureSettings
from lib_custom_diffusion.training.config import TrainingConfig
from lib_custom_diffusion.ui.timings import (
    Amounts,
    Circumstances,
    Timing,
    comparable_timing,
    keep_timing,
    read_timings,
)
from lib_custom_diffusion.ui.training_page import duration, estimate_text
from tiny import TinyBackend

HERE = Circumstances("cpu", "sd1", "no", "crossattn_kv", False)
AMOUNTS = Amounts(encoded=100, steps=50, pictures_per_step=8, megapixels=0.25)


def test_twice_as_many_or_as_large_pictures_take_twice_as_long() -> None:
    timing = Timing.measured(HERE, AMOUNTS, encoding_seconds=20, seconds_per_step=3)
    assert timing.seconds(AMOUNTS) == pytest.approx((20, 150))
    assert timing.seconds(replace(AMOUNTS, pictures_per_step=16)) == pytest.approx((20, 300))
    assert timing.seconds(replace(AMOUNTS, megapixels=0.5)) == pytest.approx((40, 300))
    assert timing.seconds(replace(AMOUNTS, encoded=50, steps=500)) == pytest.approx((10, 1500))


def test_amounts_of_a_training_to_come(tmp_path: Path) -> None:
    for name, count in (("own", 3), ("other", 2), ("regularization", 5)):
        (tmp_path / name).mkdir()
        for index in range(count):
            Image.new("RGB", (8, 8)).save(tmp_path / name / f"{index}.png")
    alone = Concept("a <new1> cat", tmp_path / "own", "cat")
    kept = Concept("a <new2> dog", tmp_path / "other", "dog", tmp_path / "regularization")
    config = TrainingConfig(max_train_steps=70, train_batch_size=2, gradient_accumulation_steps=2)
    pictures = PictureSettings(variants=4, num_class_images=3)
    assert Amounts.of([alone, kept], TinyBackend(), pictures, config) == Amounts(
        encoded=(3 + 2) * 4 + 3, steps=70, pictures_per_step=2 * 2 + 2, megapixels=16 * 16 / 1e6
    )
    assert Amounts.of([kept], TinyBackend(), replace(pictures, resolution=512), config) == Amounts(
        encoded=2 * 4 + 3, steps=70, pictures_per_step=2 * 2 * 2, megapixels=512 * 512 / 1e6
    )


def test_the_last_timing_in_the_same_circumstances_counts(tmp_path: Path) -> None:
    path = tmp_path / "timings.json"
    old, new = (Timing(HERE, 1.0, seconds, "2026-01-01") for seconds in (2.0, 3.0))
    other = Timing(replace(HERE, freeze_model="crossattn"), 1.0, 9.0, "2026-01-02")
    for timing in (old, other, new):
        keep_timing(path, timing)
    assert comparable_timing(path, HERE) == new
    assert comparable_timing(path, replace(HERE, freeze_model="crossattn")) == other
    assert comparable_timing(path, replace(HERE, gradient_checkpointing=True)) is None
    assert len(read_timings(path)) == 2


@pytest.mark.parametrize("content", ["no json", "[1, 2]", '[{"circumstances": {}}]', '{"a": 1}'])
def test_a_damaged_file_counts_for_nothing_and_is_replaced(tmp_path: Path, content: str) -> None:
    path = tmp_path / "timings.json"
    path.write_text(content)
    assert comparable_timing(path, HERE) is None
    keep_timing(path, Timing(HERE, 1.0, 2.0, "2026-01-01"))
    assert len(read_timings(path)) == 1


def test_the_estimate_says_what_it_is_based_on() -> None:
    timing = Timing(HERE, 0.8, 1.5, "2026-01-01")  # 20 s for the pictures, 150 s for the steps
    told = estimate_text(timing, AMOUNTS, just_measured=False)
    assert told.startswith("About 3 min: 20 s to prepare 100 versions of the pictures, 2 min for 50 steps.")
    assert "a training of 2026-01-01 on this machine" in told
    assert "a few steps taken just now" in estimate_text(timing, AMOUNTS, just_measured=True)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "1 s"), (89, "89 s"), (91, "2 min"), (3000, "50 min"), (5390, "90 min"), (9000, "2.5 h")],
)
def test_durations_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said
