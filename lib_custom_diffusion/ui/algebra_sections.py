"""The sections Compress, Blend, Merge and Rename."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from ..algebra.compression import Limit
from ..algebra.files import blend_files, compress_file, merge_files, parse_prompts, parse_weights, rename_file
from ..algebra.reports import Result, compressed_text, plain_word_note, renamed_lines
from ..delta import SUFFIX, Delta
from ..deltas_folder import find_delta, new_file
from ..errors import UserError
from ..formats import dropped_text
from ..storage import size_text
from .inspection import summarize
from .utilities import DELTA, Action, Answer, Host, Section, Show, chosen, delta_field, table

LIMITS = ("file size", "rank", "share of the effect")
"""What compression can keep to."""
_STAGES = 4  # the most that an operation of `algebra` tells of


def _compress(host: Host) -> list[Action]:
    gr.HTML(f"<p>Shrinks a {DELTA} to a tenth of its size or less, and says what that costs.</p>")
    name = delta_field(host, "Delta to compress", "cd_compress")
    to, values = _limit_fields()
    name.input(fn=lambda name: _tenth(host, name), inputs=[name], outputs=values[:1], queue=False, show_progress=False)
    with gr.Row():
        weighed = gr.Checkbox(
            label="Weigh errors by prompts", value=True, elem_id="cd_compress_weighed",
            info="Keeps best what prompts use; needs the loaded model",
        )  # fmt: skip
        float16 = gr.Checkbox(
            label="Readable by the first Custom Diffusion extension", value=False,
            info="Stores all numbers in float16, which makes the file larger",
            elem_id="cd_compress_float16",
        )  # fmt: skip
    result, overwrite = result_fields("cd_compress", "compressed delta", "NAME-small")
    button = gr.Button("Compress", variant="primary", elem_id="cd_compress")

    def run(
        show: Show, name: str, to: str, size: float, rank: float, energy: float, weighed: bool, float16: bool,
        result: str, overwrite: bool,
    ) -> Answer:  # fmt: skip
        source = find_delta(host.deltas_dir, name or "")
        output = new_file(host.deltas_dir, result or f"{source.name.removesuffix(SUFFIX)}-small", overwrite)
        limit = _limit(to, size, rank, energy)
        if not (result or "").strip() and limit.max_bytes and _size(source) <= limit.max_bytes:
            Delta.load(source)  # what is damaged is refused
            why = f"It is already small enough: {size_text(_size(source))}; give the result a name to copy it"
            return Answer(report("Not compressed", {"Why": why}, {}, []))
        done = compress_file(source, output, limit, host.loaded(weighed), quantized=not float16, tell=stages(show))
        if done.unchanged:
            return _delta_answer(host, "Not compressed", done, {"Why": compressed_text(done)})
        measured = "(on captions kept for measuring)" if done.weighed else "(in its numbers)"
        rows = {
            "Before": size_text(done.size_before),
            "Smaller": f"{done.size_before / done.size:.1f} times",
            "Differs from the original by": f"{done.error:.2%} {measured}",
            "Layers": f"{done.layers[0]} of {done.layers[1]}, ranks {done.ranks[0]} to {done.ranks[1]}",
            "In fewer bits": f"{done.quantized_layers} layers" if done.quantized_layers else "",
        }
        return _delta_answer(host, "Compressed", done, rows)

    return [Action(button, run, [name, to, *values, weighed, float16, result, overwrite])]


def _limit_fields() -> tuple[gr.Radio, list[Any]]:
    """What a compressed delta is to keep to, and how much of it, a field for each of LIMITS; the chosen one is seen."""
    to = gr.Radio(label="Limit", choices=list(LIMITS), value=LIMITS[0], elem_id="cd_compress_to")
    values = [
        gr.Number(
            label="Size of the file in MB", value=5, elem_id="cd_compress_size",
            info="Filled in with a tenth of the delta's; divided among all layers, for the least loss",
        ),
        gr.Slider(
            label="Rank of every layer", minimum=1, maximum=128, step=1, value=16, visible=False,
            info="How many independent changes each layer keeps; fewer make a smaller file", elem_id="cd_compress_rank",
        ),
        gr.Slider(
            label="Share of the effect to keep", minimum=0.5, maximum=0.999, step=0.001, value=0.99, visible=False,
            info="0.99 loses one hundredth", elem_id="cd_compress_energy",
        ),
    ]  # fmt: skip
    to.change(
        fn=lambda kind: [gr.update(visible=kind == each) for each in LIMITS],
        inputs=[to], outputs=values, queue=False, show_progress=False,
    )  # fmt: skip
    return to, values


def _tenth(host: Host, name: str) -> Any:
    """A tenth of a delta's size in MB, for a field; as it is, if there is no such delta."""
    try:
        return float(f"{max(_size(find_delta(host.deltas_dir, name or '')) / 1e7, 0.001):.2g}")
    except UserError:
        return gr.update()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _blend(host: Host) -> list[Action]:
    gr.HTML(
        f"<p>Adds {DELTA}s together, each with its weight; one alone is made stronger or weaker. The result"
        " includes all their words.</p>"
    )
    names = delta_field(host, "Deltas to blend", "cd_blend", several=True)
    weights = gr.Textbox(
        label="Weights",
        info="One per delta, in that order, such as 0.8, 0.5; leave empty for 1 each",
        max_lines=1,
        elem_id="cd_blend_weights",
    )
    size = gr.Number(label="Maximum size of the blend in MB", value=0, info="0 keeps it exact", elem_id="cd_blend_size")
    result, overwrite = result_fields("cd_blend", "blend")
    button = gr.Button("Blend", variant="primary", elem_id="cd_blend")

    def run(show: Show, names: list[str], weights: str, size: float, result: str, overwrite: bool) -> Answer:
        sources = chosen(host, names)
        output = new_file(host.deltas_dir, _given(result, "Name of the blend"), overwrite)
        limit = _limit(LIMITS[0], size, 0, 0) if size else None
        done = blend_files(
            sources, parse_weights(weights or "", len(sources)), output, limit, host.loaded(), stages(show)
        )
        rows = {"Differs from the sum by": "nothing: the sum is exact" if done.error is None else f"{done.error:.2%}"}
        return _delta_answer(host, "Blended", done, rows)

    return [Action(button, run, [names, weights, size, result, overwrite])]


def _merge(host: Host) -> list[Action]:
    gr.HTML(
        f"<p>Combines the {DELTA}s of concepts that were trained separately, so that each word keeps its effect and"
        " little else changes. One delta alone can be merged, too: then its word keeps its effect, and other prompts"
        " change less. Uses the loaded model.</p>"
    )
    names = delta_field(host, "Deltas to merge", "cd_merge", several=True)
    prompts = gr.Textbox(
        label="Prompts of the concepts", lines=2, elem_id="cd_merge_prompts",
        info="One line per delta, prompts separated by |; leave empty for photo of a <new1> cat|<new1> cat",
    )  # fmt: skip
    result, overwrite = result_fields("cd_merge", "merged delta")
    button = gr.Button("Merge", variant="primary", elem_id="cd_merge")

    def run(show: Show, names: list[str], prompts: str, result: str, overwrite: bool) -> Answer:
        sources = chosen(host, names)
        output = new_file(host.deltas_dir, _given(result, "Name of the merged delta"), overwrite)
        asked = [parse_prompts(line) for line in (prompts or "").splitlines() if line.strip()]
        done = merge_files(sources, output, lambda: host.backend(""), asked, tell=stages(show))
        told = done.report(names)
        return _delta_answer(host, "Merged", done, {"Result": told.pop("Result")}, told)

    return [Action(button, run, [names, prompts, result, overwrite])]


def _rename(host: Host) -> list[Action]:
    gr.HTML(
        f"<p>Renames a word of a {DELTA}: a prompt can use only one of two words that are both called &lt;new1&gt;.</p>"
    )
    name = delta_field(host, "Delta with the word", "cd_rename")
    with gr.Row():
        old = gr.Textbox(
            label="Current word", placeholder="<new1>", info="Filled in when you choose a delta", max_lines=1,
            elem_id="cd_rename_old",
        )  # fmt: skip
        new = gr.Textbox(label="New word", info="Such as <my-cat>", max_lines=1, elem_id="cd_rename_new")
    name.input(fn=lambda name: _first_word(host, name), inputs=[name], outputs=[old], queue=False, show_progress=False)
    result, overwrite = result_fields("cd_rename", "renamed delta", "NAME-renamed")
    button = gr.Button("Rename", variant="primary", elem_id="cd_rename")

    def run(show: Show, name: str, old: str, new: str, result: str, overwrite: bool) -> Answer:
        source = find_delta(host.deltas_dir, name or "")
        output = new_file(host.deltas_dir, result or f"{source.name.removesuffix(SUFFIX)}-renamed", overwrite)
        note = plain_word_note(new.strip())
        if not (old or "").strip():
            raise UserError("Current word is empty; give the word of the delta that is to be renamed")
        done = rename_file(source, old.strip(), new.strip(), output)
        return _delta_answer(host, "Renamed", done, {"Note": note} if note else {})

    return [Action(button, run, [name, old, new, result, overwrite])]


def _first_word(host: Host, name: str) -> Any:
    """The word of a delta, or the first of several, for a field; as it is, if that cannot be read."""
    try:
        words = summarize(find_delta(host.deltas_dir, name or "")).tokens
    except UserError:
        return gr.update()
    return next(iter(words), "")


def result_fields(part: str, what: str, default: str = "") -> tuple[gr.Textbox, gr.Checkbox]:
    """The name of a result and whether it may take another's place."""
    with gr.Row():
        name = gr.Textbox(
            label=f"Name of the {what}", info=f"Leave empty for {default}" if default else "In the folder of deltas",
            max_lines=1, elem_id=f"{part}_result",
        )  # fmt: skip
        overwrite = gr.Checkbox(
            label=f"Overwrite an existing {what}", value=False, info="The old file is lost",
            elem_id=f"{part}_overwrite",
        )  # fmt: skip
    return name, overwrite


def _given(name: str, label: str) -> str:
    if not (name or "").strip():
        raise UserError(f"{label} is empty; give one, such as both")
    return name


def _limit(to: str, size: float, rank: float, energy: float) -> Limit:
    if to == LIMITS[0]:
        if not size or size <= 0:
            raise UserError("give the size of the file in MB, such as 5")
        return Limit(max_bytes=int(size * 1e6))
    return Limit(rank=int(rank)) if to == LIMITS[1] else Limit(energy=energy)


class stages:
    """Shows what an operation of `algebra` tells, stage by stage."""

    def __init__(self, show: Show) -> None:
        self.show, self.stage = show, 0

    def __call__(self, what: str) -> None:
        self.show(self.stage, _STAGES, what)
        self.stage += 1


def _delta_answer(
    host: Host, verb: str, done: Result, rows: Mapping[str, str], details: Mapping[str, str] | None = None
) -> Answer:
    shared = {"File": str(done.path.absolute()), "Size": size_text(done.size), "Words": ", ".join(done.words)}
    told = report(verb, {**shared, **rows}, done.dropped, renamed_lines(done.renamed))
    if details:
        told += f"<details><summary>Details</summary>{table(details)}</details>"
    return Answer(told, delta=done.path.name.removesuffix(SUFFIX))


def report(verb: str, rows: Mapping[str, str], dropped: Mapping[Path, Sequence[str]], notes: Sequence[str]) -> str:
    """What was done, what it cost, and what people must be told of besides."""
    told = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    for path, names in dropped.items():
        told += f"<p>{html.escape(path.name)}: left out {html.escape(dropped_text(names))}</p>"
    return f"<h3>{verb}</h3>{table(rows)}{told}"


SECTIONS = (
    Section("Compress", "cd_compress_section", _compress),
    Section("Blend", "cd_blend_section", _blend),
    Section("Merge", "cd_merge_section", _merge),
    Section("Rename", "cd_rename_section", _rename),
)
