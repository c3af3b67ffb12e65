"""The demo's report: before beside after, what it is to show, and figures only then."""

from pathlib import Path

import pytest
from PIL import Image

from lib_custom_diffusion.standalone.report import DemoResult, Row, contact_sheet, report_html

RED, BLUE, WHITE, BLACK = (255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
METRICS = dict.fromkeys(
    ("likeness_before", "likeness_after", "likeness_ceiling", "text_alignment_before", "text_alignment_after", "drift",
     "unrelated_change", "steps", "seconds", "peak_memory_mb"),
    0.5,
) | dict(asked=16, recognised_before=2, recognised_after=14, colour_right_after=13, both_right_after=12)  # fmt: skip


def flat(colour: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", (16, 16), colour)


@pytest.fixture
def result(tmp_path: Path) -> DemoResult:
    losses, delta = tmp_path / "loss.csv", tmp_path / "new1.delta.safetensors"
    losses.write_text("step,loss\n1,0.5\n2,0.25\n")
    delta.write_bytes(b"x" * 2000)
    rows = [Row("a <new1> cat", [flat(RED)], [flat(BLUE)], "Look for blue & bold.", 100)]
    return DemoResult("toy-xl", "cat", "A cat.", rows, METRICS, "a <new1> cat", "a cat", [delta], losses)


def test_before_is_left_of_after_with_an_arrow_between_and_both_are_as_large_as_the_row_says() -> None:
    sheet = contact_sheet([Row("a cat", [flat(RED)], [flat(BLUE)], side=100)])
    line = [sheet.getpixel((x, sheet.height - 16 - 50)) for x in range(sheet.width)]
    assert line.count(RED) == line.count(BLUE) == 100
    assert max(x for x, colour in enumerate(line) if colour == RED) < line.index(BLACK) < line.index(BLUE)


def test_a_row_alone_has_no_arrow() -> None:
    sheet = contact_sheet([Row("", [flat(RED), flat(BLUE)])])
    assert {colour for _, colour in sheet.getcolors()} == {RED, BLUE, WHITE}


def test_a_sentence_stands_above_the_pictures_and_makes_room_for_itself() -> None:
    without, with_one = (contact_sheet([Row("a cat", [flat(RED)], sentence=text)]) for text in ("", "Look."))
    assert with_one.height - without.height == 22
    tops = [next(y for y in range(sheet.height) if sheet.getpixel((20, y)) == RED) for sheet in (without, with_one)]
    assert tops[1] - tops[0] == 22


def test_the_page_says_what_to_look_for_and_gives_figures_after_the_pictures(result: DemoResult) -> None:
    page = report_html(result)
    assert page.index("a &lt;new1&gt; cat") < page.index("Look for blue &amp; bold.") < page.index("data:image/png")
    assert page.rindex("data:image/png") < page.index("Measured by the judge")
    assert page.index("data:image/png") < page.index("→") < page.rindex("data:image/png")


def test_the_page_counts_what_is_recognised_and_what_is_on_the_ground_that_was_asked_for(result: DemoResult) -> None:
    page = " ".join(report_html(result).split())
    assert "Recognised as the concept: 2 of 16 before, 14 of 16 after." in page
    assert "on the background that was asked for: 12; the background alone: 1; the concept alone: 2." in page
