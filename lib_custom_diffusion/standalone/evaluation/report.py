"""What an evaluation leaves: figures for programs, a page to look at, and pictures that other scripts can measure."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from ...deltas_folder import delta_name
from ...storage import write_atomically
from ..generate import png_of
from ..report import Row, contact_sheet
from .alignment import chance
from .measuring import Measured

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, MARGIN = 720, 300, 48, 30, 30, 20
COLUMNS = {
    "likeness": "image_alignment",
    "text alignment": "text_alignment",
    "DINO likeness": "dino_image_alignment",
    "KID ×10³": "kid",
    "score": "score",
}
"""Headings and the names of what is below them."""
_COLOURS = {"likeness": "#c33", "text alignment": "#247", "score": "#393"}
_MEANINGS = {
    "likeness": "how much the pictures look like the concept's own, from 0 to 1: higher is better",
    "text alignment": "how well they show the rest of the prompt: as high as with the model alone is best",
    "DINO likeness": "likeness as another model sees it: higher is better",
    "KID ×10³": "how far ordinary pictures of the class have moved: near that of the model alone is best",
    "score": "likeness and obedience to the prompt in one number, from 0 to 1: higher is better",
}
FIGURES = "evaluation.json"
_ALONE = "the model alone"
_SHOWN, _NAMED = 8, 3


def name_of(measured: Measured) -> str:
    return measured.candidate.name if measured.candidate else _ALONE


def best_of(measured: Sequence[Measured]) -> Measured:
    """The delta with the highest score; of equal ones the first."""
    return max((each for each in measured if each.score is not None), key=lambda each: each.score or 0.0)


def rivals(measured: Sequence[Measured]) -> list[Measured]:
    """The other deltas whose score is below the best one's by no more than two standard errors of the difference."""
    best = best_of(measured)
    return [
        each
        for each in measured
        if each is not best
        and each.score is not None
        and (best.score or 0.0) - each.score <= 2 * chance(best.scores_without, each.scores_without)
    ]


def verdict(measured: Sequence[Measured]) -> str:
    """Which of several deltas is best, and whether the pictures are enough to say so; "" for a single one."""
    if sum(each.candidate is not None for each in measured) < 2:
        return ""
    best, others = best_of(measured), [name_of(each) for each in rivals(measured)]
    told = f"{name_of(best)} scores highest."
    if not others:
        return told
    pictures = "one picture" if len(best.pictures) == 1 else f"{len(best.pictures)} pictures"
    if len(others) > _NAMED:
        others[_NAMED:] = [f"{len(others) - _NAMED} more"]
    named = " and ".join(filter(None, [", ".join(others[:-1]), others[-1]]))
    return (
        f"{told} But with {pictures} each, that may be chance: {named} could be just as good. Trust your eyes, or draw"
        " more with --num_images."
    )


def kid_note(measured: Sequence[Measured]) -> str:
    """What to say of a KID below 0; "" where there is none."""
    if not any(each.measures.kid is not None and each.measures.kid < 0 for each in measured):
        return ""
    return "A KID below 0 means no difference: KID is an estimate, and around 0 it comes out on either side."


def _path(measured: Measured) -> str | None:
    return str(measured.candidate.path) if measured.candidate else None


def figures(measured: Sequence[Measured], eyes: str, dino: str | None) -> dict[str, Any]:
    """All that was measured, in JSON's types."""
    return {
        "measured_by": {"clip": eyes, "dino": dino},
        "results": [
            {
                "name": name_of(each),
                "file": _path(each),
                "steps": each.candidate.delta.provenance.steps if each.candidate else None,
                **asdict(each.measures),
                "score": each.score,
            }
            for each in measured
        ],
        "best": _path(best_of(measured)),
        "as_good_within_chance": [_path(each) for each in rivals(measured)],
    }


def table(measured: Sequence[Measured]) -> list[list[str]]:
    """Headings and rows of figures, without the columns that were not asked for."""
    shown = [head for head in COLUMNS if any(_value(each, head) is not None for each in measured)]
    return [["", *shown], *([name_of(each), *(_cell(each, head) for head in shown)] for each in measured)]


def _cell(measured: Measured, head: str) -> str:
    value = _value(measured, head)
    return "" if value is None else f"{value:.{1 if COLUMNS[head] == 'kid' else 3}f}"


def _value(measured: Measured, head: str) -> float | None:
    if head == "score":
        return measured.score
    value = getattr(measured.measures, COLUMNS[head])
    return value * 1000 if value is not None and COLUMNS[head] == "kid" else value


def text_table(measured: Sequence[Measured]) -> str:
    """The table for a terminal."""
    rows = table(measured)
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows)


def write(
    folder: Path,
    measured: Sequence[Measured],
    own: Sequence[Image.Image],
    eyes: str,
    dino: str | None,
    told: Callable[[str, int, tuple[int, int]], str],
) -> None:
    """evaluation.json, evaluation.html, pictures.png, and NAME/samples with NAME/prompts.json of each delta.

    told: what a picture of a prompt, of a number among those of the prompt and of a size says of how it was made.
    """
    found = figures(measured, eyes, dino)
    write_atomically(folder / FIGURES, json.dumps(found, indent=2).encode())
    write_atomically(folder / "pictures.png", png_of(contact_sheet(_rows(measured, own))))
    write_atomically(folder / "evaluation.html", _page(measured, eyes).encode())
    for each in measured:
        _write_samples(folder / name_of(each).replace(" ", "-").replace("/", "-"), each, told)


def _rows(measured: Sequence[Measured], own: Sequence[Image.Image]) -> list[Row]:
    rows = [Row("The concept's own pictures", list(own[:_SHOWN]))]
    for each in measured:
        step = max(1, len(each.pictures) // _SHOWN)  # some of every prompt
        figures = ", ".join(f"{head} {value:.3f}" for head in _COLOURS if (value := _value(each, head)) is not None)
        rows.append(Row(f"{name_of(each)}: {figures}", each.pictures[::step][:_SHOWN]))
    return rows


def _write_samples(folder: Path, measured: Measured, told: Callable[[str, int, tuple[int, int]], str]) -> None:
    """Pictures and captions as CustomConcept101's evaluate.py reads them."""
    tag = f" <delta:{delta_name(measured.candidate.path)}:1>" if measured.candidate else ""
    count = len(measured.pictures) // len(measured.questions)
    captions = {}
    for number, picture in enumerate(measured.pictures):
        asked = measured.questions[number // count]
        captions[f"{number:05d}"] = asked.caption
        said = told(f"{asked.prompt}{tag}", number % count, picture.size)
        write_atomically(folder / "samples" / f"{number:05d}.png", png_of(picture, said))
    write_atomically(folder / "prompts.json", json.dumps(captions, indent=2, ensure_ascii=False).encode())


def curve(measured: Sequence[Measured]) -> str:
    """Likeness, text alignment and score over the steps, as SVG.

    "" for a single delta, and for several of one number of steps: these are of more than one training.
    """
    points = {each.candidate.delta.provenance.steps: each for each in measured if each.candidate}
    if len(points) < 2 or len(points) < sum(each.candidate is not None for each in measured):
        return ""
    lines = {head: [(steps, _value(points[steps], head) or 0.0) for steps in sorted(points)] for head in _COLOURS}
    values = [value for line in lines.values() for _, value in line]
    first, last, floor = min(points), max(points), HEIGHT - BOTTOM
    low, high = math.floor(min(values) * 10), math.ceil(max(values) * 10)  # in tenths
    high = max(high, low + 1)

    def x(steps: float) -> float:
        return LEFT + MARGIN + (WIDTH - LEFT - 3 * MARGIN) * (steps - first) / (last - first)

    def y(value: float) -> float:
        return floor - (floor - TOP) * (value * 10 - low) / (high - low)

    drawn = []
    for tenths in range(low, high + 1, math.ceil((high - low) / 6)):
        height = y(tenths / 10)
        drawn.append(f'<path d="M{LEFT} {height:.1f}H{WIDTH - MARGIN}" stroke="#ddd"/>')
        drawn.append(f'<text x="{LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{tenths / 10:.1f}</text>')
    for steps in sorted(points)[:: math.ceil(len(points) / 8)]:
        drawn.append(f'<text x="{x(steps):.1f}" y="{floor + 20}" text-anchor="middle">step {steps}</text>')
    for number, (head, line) in enumerate(lines.items()):
        colour = _COLOURS[head]
        places = " ".join(f"{x(steps):.1f},{y(value):.1f}" for steps, value in line)
        drawn.append(f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="2"/>')
        drawn += [
            f'<circle cx="{x(steps):.1f}" cy="{y(value):.1f}" r="4" fill="{colour}">'
            f"<title>step {steps}: {head} {value:.3f}</title></circle>"
            for steps, value in line
        ]
        drawn.append(f'<text x="{LEFT + MARGIN + 140 * number}" y="16" fill="{colour}">● {head}</text>')
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" font-size="13" role="img"'
        f' aria-label="figures over steps">{"".join(drawn)}</svg>'
    )


def _page(measured: Sequence[Measured], eyes: str) -> str:
    head, *body = [[html.escape(cell) for cell in row] for row in table(measured)]
    rows = "".join(f"<tr><td>{'<td>'.join(row)}</tr>" for row in body)
    told = "".join(f"<p>{html.escape(each)}</p>" for each in (verdict(measured), kid_note(measured)) if each)
    meanings = "".join(f"<dt>{each}<dd>{html.escape(_MEANINGS[each])}" for each in head[1:])
    return f"""<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width"><title>Evaluation</title>
<style>body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }}
td, th {{ padding: .2rem 1rem .2rem 0; text-align: right; font-variant-numeric: tabular-nums; }}
td:first-child {{ text-align: left; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; color: #555; font-size: .9rem; }}
dd {{ margin: 0; }} img, svg {{ max-width: 100%; height: auto; }}</style>
<h1>Evaluation</h1>
<p>{_drawn(measured)} Measured by {html.escape(eyes)}.</p>
{told}
<table><tr><th>{"<th>".join(head)}</tr>{rows}</table>
<dl>{meanings}</dl>
{curve(measured)}
<p><img src="pictures.png" alt="pictures of each delta"></p>
</html>
"""


def _drawn(measured: Sequence[Measured]) -> str:
    """How many pictures the figures are of."""
    count, prompts = len(measured[0].pictures), len(measured[0].questions)
    of = f"{count // prompts} of each of {prompts} prompts" if prompts > 1 else "all of one prompt"
    return "One picture for each row." if count == 1 else f"{count} pictures for each row, {of}."
