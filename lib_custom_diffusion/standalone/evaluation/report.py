"""What an evaluation leaves: figures for programs, a page to look at, and pictures that other scripts can measure."""

from __future__ import annotations

import html
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from ...storage import write_atomically
from ..report import Row, contact_sheet
from .measuring import Measured

WIDTH, HEIGHT, LEFT, BOTTOM, MARGIN = 560, 240, 40, 24, 8
LINES = {"image_alignment": "#c33", "text_alignment": "#247", "score": "#393"}
_ALONE = "the model alone"
_SHOWN = 8


def name_of(measured: Measured) -> str:
    return measured.candidate.name if measured.candidate else _ALONE


def best_of(measured: Sequence[Measured]) -> Measured:
    """The delta with the highest score; of equal ones the first."""
    return max((each for each in measured if each.score is not None), key=lambda each: each.score or 0.0)


def figures(measured: Sequence[Measured], eyes: str, dino: str | None) -> dict[str, Any]:
    """All that was measured, in JSON's types."""
    return {
        "measured_by": {"clip": eyes, "dino": dino},
        "results": [
            {
                "name": name_of(each),
                "file": str(each.candidate.path) if each.candidate else None,
                "steps": each.candidate.delta.provenance.steps if each.candidate else None,
                **asdict(each.measures),
                "score": each.score,
            }
            for each in measured
        ],
        "best": str(candidate.path) if (candidate := best_of(measured).candidate) else None,
    }


def table(measured: Sequence[Measured]) -> list[list[str]]:
    """Headings and rows of figures, without the columns that were not asked for."""
    columns = {"image": "image_alignment", "text": "text_alignment", "DINO": "dino_image_alignment", "KID ×10³": "kid"}
    shown = {head: name for head, name in columns.items() if getattr(measured[0].measures, name) is not None}
    rows = [["", *shown, "score"]]
    for each in measured:
        values = [getattr(each.measures, name) * (1000 if name == "kid" else 1) for name in shown.values()]
        mark = "" if each.score is None else f"{each.score:.3f}"
        rows.append([name_of(each), *(f"{value:.3f}" for value in values), mark])
    return rows


def text_table(measured: Sequence[Measured]) -> str:
    """The table for a terminal."""
    rows = table(measured)
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows)


def write(folder: Path, measured: Sequence[Measured], own: Sequence[Image.Image], eyes: str, dino: str | None) -> None:
    """evaluation.json, evaluation.html, pictures.png, and NAME/samples with NAME/prompts.json of each delta."""
    found = figures(measured, eyes, dino)
    write_atomically(folder / "evaluation.json", json.dumps(found, indent=2).encode())
    write_atomically(folder / "pictures.png", _png(contact_sheet(_rows(measured, own))))
    write_atomically(folder / "evaluation.html", _page(measured, eyes).encode())
    for each in measured:
        _write_samples(folder / name_of(each).replace(" ", "-").replace("/", "-"), each)


def _rows(measured: Sequence[Measured], own: Sequence[Image.Image]) -> list[Row]:
    rows = [Row("The concept's own pictures", list(own[:_SHOWN]))]
    for each in measured:
        step = max(1, len(each.pictures) // _SHOWN)  # some of every prompt
        figures = f"image {each.measures.image_alignment:.3f}, text {each.measures.text_alignment:.3f}"
        rows.append(Row(f"{name_of(each)}: {figures}", each.pictures[::step][:_SHOWN]))
    return rows


def _write_samples(folder: Path, measured: Measured) -> None:
    """Pictures and captions as CustomConcept101's evaluate.py reads them."""
    count = len(measured.pictures) // len(measured.questions)
    captions = {}
    for number, picture in enumerate(measured.pictures):
        captions[f"{number:05d}"] = measured.questions[number // count].caption
        write_atomically(folder / "samples" / f"{number:05d}.png", _png(picture))
    write_atomically(folder / "prompts.json", json.dumps(captions, indent=2, ensure_ascii=False).encode())


def _png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "png")
    return content.getvalue()


def curve(measured: Sequence[Measured]) -> str:
    """Image alignment, text alignment and score over the steps, as SVG.

    "" for a single delta, and for several of one number of steps: these are of more than one training.
    """
    points = {
        each.candidate.delta.provenance.steps: {**asdict(each.measures), "score": each.score}
        for each in measured
        if each.candidate
    }
    if len(points) < 2 or len(points) < sum(each.candidate is not None for each in measured):
        return ""
    last = max(points)
    top = max(1.0, *(values[name] for values in points.values() for name in LINES))
    floor = HEIGHT - BOTTOM
    drawn = []
    for number, (name, colour) in enumerate(LINES.items()):
        line = " ".join(
            f"{LEFT + (WIDTH - LEFT - MARGIN) * steps / last:.1f},"
            f"{floor - (floor - MARGIN) * max(values[name], 0) / top:.1f}"
            for steps, values in sorted(points.items())
        )
        label = f'<text x="{LEFT + 8 + 130 * number}" y="{HEIGHT - 6}" fill="{colour}">{name.replace("_", " ")}</text>'
        drawn.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>{label}')
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" font-size="11" role="img" aria-label="measures over steps">'
        f'<path d="M{LEFT} {MARGIN}V{floor}H{WIDTH - MARGIN}" fill="none" stroke="#888"/>'
        f'<text x="{LEFT - 4}" y="{MARGIN + 9}" text-anchor="end">{top:.3g}</text>'
        f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - 6}" text-anchor="end">{last} steps</text>{"".join(drawn)}</svg>'
    )


def _page(measured: Sequence[Measured], eyes: str) -> str:
    head, *body = [[html.escape(cell) for cell in row] for row in table(measured)]
    rows = "".join(f"<tr><td>{'<td>'.join(row)}</tr>" for row in body)
    best = html.escape(name_of(best_of(measured)))
    told = f" The highest score has <b>{best}</b>." if sum(each.candidate is not None for each in measured) > 1 else ""
    return f"""<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width"><title>Evaluation</title>
<style>body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }}
td, th {{ padding: .2rem 1rem .2rem 0; text-align: right; }} td:first-child {{ text-align: left; }}
img, svg {{ max-width: 100%; }}</style>
<h1>Evaluation</h1>
<p>Measured by {html.escape(eyes)}.{told}</p>
<table><tr><th>{"<th>".join(head)}</tr>{rows}</table>
{curve(measured)}
<p><img src="pictures.png" alt="pictures of each delta"></p>
</html>
"""
