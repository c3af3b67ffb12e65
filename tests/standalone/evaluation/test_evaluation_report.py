"""What an evaluation says of its figures, on invented ones."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from PIL import Image

from lib_custom_diffusion.delta import Delta, Provenance
from lib_custom_diffusion.standalone.evaluation import report
from lib_custom_diffusion.standalone.evaluation.measuring import Candidate, Looks, Measured, Measures
from lib_custom_diffusion.standalone.evaluation.questions import Question

NOTHING = Looks(torch.zeros(0), torch.zeros(0), torch.zeros(0), [])


def measured(steps: int | None, score: float | None = None, without: tuple[float, ...] = (), kid: float | None = None):
    candidate = None
    if steps is not None:
        candidate = Candidate(
            f"step {steps}", Path(f"{steps}.delta.safetensors"), Delta({}, {}, Provenance(steps=steps))
        )
    pictures = [Image.new("RGB", (8, 8))] * max(1, len(without))
    measures = Measures(0.5, 0.6, None, None, kid)
    return Measured(candidate, [Question("a", "a")], pictures, NOTHING, measures, score, list(without))


ALONE = measured(None)


def test_a_difference_that_a_few_pictures_make_is_said_to_be_within_chance() -> None:
    close, clear = measured(10, 0.76, (0.70, 0.82)), measured(20, 0.77, (0.80, 0.74))
    assert report.rivals([ALONE, close, clear]) == [close]
    told = report.verdict([ALONE, close, clear])
    assert told.startswith("step 20 scores highest. But with 2 pictures each, that may be chance: step 10 could be")


def test_a_difference_that_no_picture_makes_alone_is_told_without_a_but() -> None:
    # each score swings by 0.06, both together
    low, high = measured(10, 0.50, (0.47, 0.53, 0.50)), measured(20, 0.70, (0.67, 0.73, 0.70))
    assert report.rivals([ALONE, low, high]) == []
    assert report.verdict([ALONE, low, high]) == "step 20 scores highest."


def test_of_one_picture_nothing_can_be_told_and_of_one_delta_nothing_is() -> None:
    ones = [measured(steps, steps / 100) for steps in (10, 20, 30, 40, 50)]
    assert "with one picture each" in (told := report.verdict([ALONE, *ones]))
    assert "step 10, step 20, step 30 and 1 more could be just as good" in told
    assert report.verdict([ALONE, ones[0]]) == ""


def test_a_kid_below_0_is_explained_and_no_other() -> None:
    below, above = measured(10, 0.5, kid=-0.02), measured(20, 0.6, kid=0.02)
    assert "below 0 means no difference" in report.kid_note([ALONE, below])
    assert report.kid_note([ALONE, above]) == report.kid_note([ALONE]) == ""


def test_figures_have_the_same_names_in_the_table_the_curve_and_the_pictures(tmp_path: Path) -> None:
    rows = [ALONE, measured(10, 0.5, kid=-0.02), measured(20, 0.6, kid=0.02), measured(40, 0.6, kid=0.02)]
    report.write(tmp_path, rows, [Image.new("RGB", (8, 8))], "a judge", None, lambda prompt, number, size: prompt)
    page = (tmp_path / "evaluation.html").read_text()
    table, curve = page.split("<svg")
    headings = re.findall("<th>([^<]+)", table)
    assert headings == ["likeness", "text alignment", "KID ×10³", "score"] == re.findall("<dt>([^<]+)", table)
    assert re.findall("● ([^<]+)<", curve) == [each for each in headings if "KID" not in each]
    assert re.findall(">(step [0-9]+)<", curve) == ["step 10", "step 20", "step 40"]
    assert "below 0" in table and "may be chance" in table and "One picture for each row." in table
