"""What a person looks at after a demo: before_after.png and report.html."""

from __future__ import annotations

import csv
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..ui.loss_plot import loss_svg
from ..ui.training_page import picture_html
from .follow_up import app, of_model
from .prompts import to_draw

CELL = 128  # pixels of one picture, where a row doesn't say otherwise
GAP = 8
ARROW = 40  # pixels between before and after
LABEL = 22  # pixels of a line of text above a row


@dataclass(frozen=True)
class Row:
    """A line of pictures, `side` pixels each, under a heading: alone, or as they were before beside those `after`."""

    heading: str
    pictures: list[Image.Image]
    after: list[Image.Image] | None = None
    sentence: str = ""
    side: int = CELL

    @property
    def width(self) -> int:
        """Of all its pictures side by side, in pixels."""
        count = len(self.pictures) + len(self.after or ())
        return count * (self.side + GAP) + (ARROW if self.after else 0)


@dataclass(frozen=True)
class DemoResult:
    """All that the report of one concept shows. model: the toy's name."""

    model: str
    name: str
    description: str
    rows: list[Row]
    metrics: dict[str, float]
    prompt: str
    class_prompt: str
    files: list[Path]
    loss_csv: Path


def contact_sheet(rows: Sequence[Row]) -> Image.Image:
    """The rows below each other, each under its heading and sentence; before and after with an arrow between them."""
    heights = [LABEL * (2 if row.sentence else 1) + row.side + 2 * GAP for row in rows]
    sheet = Image.new("RGB", (GAP + max(row.width for row in rows), GAP + sum(heights)), "white")
    draw, top = ImageDraw.Draw(sheet), GAP
    for row, height in zip(rows, heights):
        draw.text((GAP, top), row.heading, "black", ImageFont.load_default(16))
        if row.sentence:
            draw.text((GAP, top + LABEL), row.sentence, (96, 96, 96), ImageFont.load_default(14))
        pictures_top = top + height - row.side - 2 * GAP
        left = _paste_all(sheet, row.pictures, GAP, pictures_top, row.side)
        if row.after:
            _draw_arrow(draw, left, pictures_top + row.side // 2)
            _paste_all(sheet, row.after, left + ARROW, pictures_top, row.side)
        top += height
    return sheet


def _paste_all(sheet: Image.Image, pictures: Sequence[Image.Image], left: int, top: int, side: int) -> int:
    """Put pictures side by side; returns where the next one would begin."""
    for picture in pictures:
        sheet.paste(picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS), (left, top))
        left += side + GAP
    return left


def _draw_arrow(draw: ImageDraw.ImageDraw, left: int, middle: int) -> None:
    start, end = left, left + ARROW - GAP
    draw.line((start, middle, end - 8, middle), "black", 3)
    draw.polygon(((end, middle), (end - 12, middle - 8), (end - 12, middle + 8)), "black")


def _row_html(row: Row) -> str:
    sentence = f"<p>{html.escape(row.sentence)}</p>" if row.sentence else ""
    after = f"<span class=arrow>→</span>{''.join(map(picture_html, row.after))}" if row.after else ""
    pictures = "".join(map(picture_html, row.pictures))
    return f"""<h3>{html.escape(row.heading)}</h3>{sentence}
<div class=row style="--side: {row.side}px">{pictures}{after}</div>"""


_STYLE = """<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
.row { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; }
.row img { width: var(--side); height: var(--side); border-radius: 4px; }
.arrow { font-size: 2rem; padding: 0 .3rem; }
h3 { font-size: 1rem; font-weight: 600; margin: 1.4rem 0 0; }
h3 + p { margin: 0 0 .4rem; color: #555; }
h3 + .row { margin-top: .4rem; }
table { border-collapse: collapse; } td, th { padding: .3rem 1rem .3rem 0; text-align: left; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
code { background: #f2f2f2; padding: .1rem .3rem; border-radius: 3px; }
.cd-loss { width: 100%; font-size: 9px; } .cd-loss text { fill: #666; }
.cd-loss path, .cd-loss polyline { fill: none; stroke: #888; }
.cd-loss .raw { stroke: #bcd; } .cd-loss .smooth { stroke: #247; stroke-width: 2; }
</style>
"""


def report_html(result: DemoResult) -> str:
    """One self-contained page: pictures, figures, loss curve, and what to do next."""
    m, esc = result.metrics, html.escape
    model, delta = of_model(result.model), result.files[0]
    draw = to_draw(result.prompt, delta, *model, "--output", "pictures")
    page = app(*model, "--deltas_dir", delta.parent)
    rows = "\n".join(map(_row_html, result.rows))
    files = "".join(
        f"<li><code>{esc(path.name)}</code> ({path.stat().st_size / 1e3:,.0f} kB)</li>" for path in result.files
    )
    return f"""<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">
<title>Custom Diffusion: {esc(result.name)}</title>
{_STYLE}<h1>Custom Diffusion: {esc(result.name)}</h1>
<p>{esc(result.description)} It was learned in {m["steps"]:.0f} steps. Including all drawing, this took
{m["seconds"]:.0f} seconds and at most {m["peak_memory_mb"]:.0f} MB of memory.</p>
{rows}
<h2>Measured by the judge</h2>
<p>A small picture–text model that took no part in training looked at {m["asked"]:.0f} pictures of the prompts with
the new word. <strong>Recognised as the concept:
{m["recognised_before"]:.0f} of {m["asked"]:.0f} before,
{m["recognised_after"]:.0f} of {m["asked"]:.0f} after.</strong> The concept on the background that was asked for:
{m["both_right_after"]:.0f}; the background alone: {m["colour_right_after"] - m["both_right_after"]:.0f};
the concept alone: {m["recognised_after"] - m["both_right_after"]:.0f}.</p>
<table>
<tr><th></th><th>before</th><th>after</th><th>what is good</th></tr>
<tr><td>likeness to the concept's pictures, which are {m["likeness_ceiling"]:.3f} like each other</td>
<td class=n>{m["likeness_before"]:.3f}</td>
<td class=n>{m["likeness_after"]:.3f}</td><td>higher</td></tr>
<tr><td>agreement with the rest of the prompt</td><td class=n>{m["text_alignment_before"]:.3f}</td>
<td class=n>{m["text_alignment_after"]:.3f}</td><td>not lower</td></tr>
<tr><td>drift of the class: how far pictures of “{esc(result.class_prompt)}” have moved</td><td></td>
<td class=n>{m["drift"]:.3f}</td><td>near 0</td></tr>
<tr><td>change of pictures of unrelated prompts</td><td></td><td class=n>{m["unrelated_change"]:.3f}</td>
<td>near 0</td></tr>
</table>
<p>For likeness and agreement, 1 means the same and 0 nothing in common; for drift and change, 0 means as before.
Likeness
depends on colour more than recognition does.</p>
<h2>Loss</h2>
{_loss_curve(result.loss_csv)}
<h2>Use it</h2>
<ul>{files}</ul>
<p>Draw with it: <code>{esc(draw)}</code></p>
<p>Or open the app and choose {esc(result.name)} there: <code>{esc(page)}</code></p>
</html>
"""


def _loss_curve(path: Path) -> str:
    """The loss of every step, faint, and smoothed."""
    with path.open(newline="") as file:
        points = [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]
    return loss_svg(points, points[-1][0])
