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

CELL = 128  # pixels of one picture
GAP = 8
LABEL = 26  # pixels of a line of text above a row


@dataclass(frozen=True)
class Row:
    """A line of pictures under a heading."""

    heading: str
    pictures: list[Image.Image]


@dataclass(frozen=True)
class DemoResult:
    """All that the report of one concept shows."""

    name: str
    description: str
    rows: list[Row]
    metrics: dict[str, float]
    prompt: str
    class_prompt: str
    files: list[Path]
    loss_csv: Path


def contact_sheet(rows: Sequence[Row]) -> Image.Image:
    """The rows below each other, each under its heading; no pictures are scaled up."""
    width = GAP + max(len(row.pictures) for row in rows) * (CELL + GAP)
    sheet = Image.new("RGB", (width, GAP + len(rows) * (LABEL + CELL + GAP)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for number, row in enumerate(rows):
        top = GAP + number * (LABEL + CELL + GAP)
        draw.text((GAP, top), row.heading, "black", font)
        for column, picture in enumerate(row.pictures):
            thumbnail = picture.convert("RGB")
            thumbnail.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
            sheet.paste(thumbnail, (GAP + column * (CELL + GAP), top + LABEL))
    return sheet


def report_html(result: DemoResult) -> str:
    """One self-contained page: pictures, figures, loss curve, and what to do next."""
    m, esc = result.metrics, html.escape
    rows = "\n".join(
        f"<h3>{esc(row.heading)}</h3><div class=row>{''.join(map(picture_html, row.pictures))}</div>"
        for row in result.rows
    )
    files = "".join(
        f"<li><code>{esc(path.name)}</code> ({path.stat().st_size / 1e3:,.0f} kB)</li>" for path in result.files
    )
    return f"""<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">
<title>Custom Diffusion: {esc(result.name)}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
.row {{ display: flex; flex-wrap: wrap; gap: .5rem; }}
.row img {{ width: 128px; height: 128px; border-radius: 4px; }}
h3 {{ font-size: 1rem; font-weight: 600; margin: 1.2rem 0 .4rem; }}
table {{ border-collapse: collapse; }} td, th {{ padding: .3rem 1rem .3rem 0; text-align: left; }}
td.n {{ text-align: right; font-variant-numeric: tabular-nums; }}
code {{ background: #f2f2f2; padding: .1rem .3rem; border-radius: 3px; }}
.cd-loss {{ width: 100%; font-size: 9px; }} .cd-loss text {{ fill: #666; }}
.cd-loss path, .cd-loss polyline {{ fill: none; stroke: #888; }}
.cd-loss .raw {{ stroke: #bcd; }} .cd-loss .smooth {{ stroke: #247; stroke-width: 2; }}
</style>
<h1>Custom Diffusion: {esc(result.name)}</h1>
<p>{esc(result.description)} It was learned in {m["steps"]:.0f} steps and {m["seconds"]:.0f} seconds, with at most
{m["peak_memory_mb"]:.0f} MB of memory.</p>
{rows}
<h2>Measured by the judge</h2>
<p>A small picture–text model that took no part in training compares pictures with pictures and with captions
(1 = the same, 0 = nothing in common).</p>
<table>
<tr><th></th><th>before</th><th>after</th><th>good is</th></tr>
<tr><td>likeness to the concept's pictures</td><td class=n>{m["likeness_before"]:.3f}</td>
<td class=n>{m["likeness_after"]:.3f}</td><td>higher</td></tr>
<tr><td>agreement with the rest of the prompt</td><td class=n>{m["text_alignment_before"]:.3f}</td>
<td class=n>{m["text_alignment_after"]:.3f}</td><td>not lower</td></tr>
<tr><td>drift of the class: how far pictures of “{esc(result.class_prompt)}” have moved</td><td></td>
<td class=n>{m["drift"]:.3f}</td><td>near 0</td></tr>
<tr><td>change of pictures of unrelated prompts</td><td></td><td class=n>{m["unrelated_change"]:.3f}</td>
<td>near 0</td></tr>
</table>
<h2>Loss</h2>
{_loss_curve(result.loss_csv)}
<h2>Use it</h2>
<ul>{files}</ul>
<p>Draw with it: <code>python -m lib_custom_diffusion generate --prompt "{esc(result.prompt)}
&lt;delta:{esc(str(result.files[0]))}&gt;" --output pictures</code></p>
</html>
"""


def _loss_curve(path: Path) -> str:
    """The loss of every step, faint, and smoothed."""
    with path.open(newline="") as file:
        points = [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]
    return loss_svg(points, points[-1][0])
