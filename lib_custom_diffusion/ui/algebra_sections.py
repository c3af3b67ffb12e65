"""The sections Compress, Blend, Merge, Rename and Convert."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from ..algebra.compression import Limit
from ..algebra.files import (
    LORA_ERROR,
    LORAS,
    Result,
    blend_files,
    compress_file,
    compressed_text,
    convert_files,
    merge_files,
    parse_prompts,
    parse_weights,
    plain_word_note,
    rename_file,
    renamed_lines,
)
from ..delta import SUFFIX, Delta
from ..deltas_folder import files_below, find_delta, new_file
from ..errors import UserError
from ..formats import KINDS, dropped_text, give_model, how_to_use
from ..storage import size_text, write_atomically
from ..tokens import file_name
from .inspection import summarize
from .utilities import DELTA, Action, Host, Outcome, Section, Show, chosen, delta_field, table

LIMITS = ("file size", "rank", "share of the effect")
"""What compression can keep to."""
_LORA = "lora"
_SUFFIXES = (".safetensors", ".pt", ".bin", ".ckpt")
_GIVE_MODEL = re.compile(rf"{re.escape(give_model())}.*")
_STAGES = 4  # the most that an operation of `algebra` tells of


def _compress(host: Host) -> list[Action]:
    gr.HTML(f"<p>Shrinks a {DELTA} to a tenth of its size or less, and says what that costs.</p>")
    name = delta_field(host, "Delta to compress", "cd_compress")
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
    result, overwrite = _result_fields("cd_compress", "compressed delta", "NAME-small")
    button = gr.Button("Compress", variant="primary", elem_id="cd_compress")

    def run(
        show: Show, name: str, to: str, size: float, rank: float, energy: float, weighed: bool, float16: bool,
        result: str, overwrite: bool,
    ) -> Outcome:  # fmt: skip
        source = find_delta(host.deltas_dir, name or "")
        output = new_file(host.deltas_dir, result or f"{source.name.removesuffix(SUFFIX)}-small", overwrite)
        limit = _limit(to, size, rank, energy)
        if not (result or "").strip() and limit.max_bytes and _size(source) <= limit.max_bytes:
            Delta.load(source)  # what is damaged is refused
            why = f"It is already small enough: {size_text(_size(source))}; give the result a name to copy it"
            return Outcome(_report("Not compressed", {"Why": why}, {}, []))
        done = compress_file(source, output, limit, host.loaded(weighed), quantized=not float16, tell=_stages(show))
        if done.unchanged:
            return _delta_outcome(host, "Not compressed", done, {"Why": compressed_text(done)})
        measured = "(on captions kept for measuring)" if done.weighed else "(in its numbers)"
        rows = {
            "Before": size_text(done.size_before),
            "Smaller": f"{done.size_before / done.size:.1f} times",
            "Differs from the original by": f"{done.error:.2%} {measured}",
            "Layers": f"{done.layers[0]} of {done.layers[1]}, ranks {done.ranks[0]} to {done.ranks[1]}",
            "In fewer bits": f"{done.quantized_layers} layers" if done.quantized_layers else "",
        }
        return _delta_outcome(host, "Compressed", done, rows)

    return [Action(button, run, [name, to, *values, weighed, float16, result, overwrite])]


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
    result, overwrite = _result_fields("cd_blend", "blend")
    button = gr.Button("Blend", variant="primary", elem_id="cd_blend")

    def run(show: Show, names: list[str], weights: str, size: float, result: str, overwrite: bool) -> Outcome:
        sources = chosen(host, names)
        output = new_file(host.deltas_dir, _given(result, "Name of the blend"), overwrite)
        limit = _limit(LIMITS[0], size, 0, 0) if size else None
        done = blend_files(
            sources, parse_weights(weights or "", len(sources)), output, limit, host.loaded(), _stages(show)
        )
        rows = {"Differs from the sum by": "nothing: the sum is exact" if done.error is None else f"{done.error:.2%}"}
        return _delta_outcome(host, "Blended", done, rows)

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
    result, overwrite = _result_fields("cd_merge", "merged delta")
    button = gr.Button("Merge", variant="primary", elem_id="cd_merge")

    def run(show: Show, names: list[str], prompts: str, result: str, overwrite: bool) -> Outcome:
        sources = chosen(host, names)
        output = new_file(host.deltas_dir, _given(result, "Name of the merged delta"), overwrite)
        asked = [parse_prompts(line) for line in (prompts or "").splitlines() if line.strip()]
        done = merge_files(sources, output, lambda: host.backend(""), asked, tell=_stages(show))
        told = done.report(names)
        return _delta_outcome(host, "Merged", done, {"Result": told.pop("Result")}, told)

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
    result, overwrite = _result_fields("cd_rename", "renamed delta", "NAME-renamed")
    button = gr.Button("Rename", variant="primary", elem_id="cd_rename")

    def run(show: Show, name: str, old: str, new: str, result: str, overwrite: bool) -> Outcome:
        source = find_delta(host.deltas_dir, name or "")
        output = new_file(host.deltas_dir, result or f"{source.name.removesuffix(SUFFIX)}-renamed", overwrite)
        note = plain_word_note(new.strip())
        if not (old or "").strip():
            raise UserError("Current word is empty; give the word of the delta that is to be renamed")
        done = rename_file(source, old.strip(), new.strip(), output)
        return _delta_outcome(host, "Renamed", done, {"Note": note} if note else {})

    return [Action(button, run, [name, old, new, result, overwrite])]


def _first_word(host: Host, name: str) -> Any:
    """The word of a delta, or the first of several, for a field; as it is, if that cannot be read."""
    try:
        words = summarize(find_delta(host.deltas_dir, name or "")).tokens
    except UserError:
        return gr.update()
    return next(iter(words), "")


def _convert(host: Host) -> list[Action]:
    gr.HTML(
        f"<p>Converts a {DELTA} to and from other programs' files; the content says what a file is. Put files into the"
        f" folder of deltas, or upload them here. Results go to that folder{_and_loras(host)}.</p>"
    )
    with gr.Row():
        names = gr.Dropdown(
            label="Files to convert", choices=_convertible(host), multiselect=True, elem_id="cd_convert_names",
            info="The file with the layers, and those with its words if they are separate",
        )  # fmt: skip
        host.lists.add(names, lambda: _convertible(host), "cd_convert_refresh")
    with gr.Row():
        uploads = gr.File(
            label="Or upload them", file_count="multiple", height=76, scale=3, elem_id="cd_convert_uploads"
        )
        fits = gr.Checkbox(
            label="Made for the loaded model", value=True, scale=2, elem_id="cd_convert_fits",
            info="Full weights can only be converted with their own model loaded; untick for files of another model",
        )  # fmt: skip
    with gr.Row():
        kind = gr.Dropdown(
            label="Format to write", choices=sorted(KINDS), value=_LORA, elem_id="cd_convert_kind",
            info="lora is for the WebUI, Forge, reForge, ComfyUI and InvokeAI; lora-diffusers is for diffusers",
        )  # fmt: skip
        rank = gr.Slider(
            label="Rank of a LoRA", minimum=0, maximum=256, step=1, value=0, elem_id="cd_convert_rank",
            info=f"How many independent changes each layer can hold; 0 for as few as lose at most {LORA_ERROR:.0%}",
        )  # fmt: skip
    result, overwrite = _result_fields("cd_convert", "converted file", "the first file's name")
    button = gr.Button("Convert", variant="primary", elem_id="cd_convert")

    def run(
        show: Show, names: list[str], uploads: list[Any] | None, kind: str, rank: float, fits: bool, result: str,
        overwrite: bool,
    ) -> Outcome:  # fmt: skip
        known = {path.relative_to(host.deltas_dir).as_posix(): path for path in files_below(host.deltas_dir, _SUFFIXES)}
        sources = [known[name] for name in names or () if name in known]
        sources += [Path(upload.name) for upload in uploads or ()]
        if not sources:
            raise UserError("choose a file, or upload one")
        try:
            done = convert_files(sources, kind, host.loaded(fits), int(rank) or None, _stages(show))
        except UserError as error:
            raise UserError(_for_a_page(str(error), uploads or ())) from error
        name = result or sources[0].name.removesuffix(SUFFIX).removesuffix(sources[0].suffix)
        paths = _places(host, name, kind, list(done.files), overwrite)
        for path, content in zip(paths, done.files.values(), strict=True):
            write_atomically(path, content)
        rows = {
            _called(kind, number, len(paths)): f"{path.absolute()} ({size_text(path.stat().st_size)})"
            for number, path in enumerate(paths, start=1)
        }
        if kind == _LORA:
            where = "In a prompt" if host.loras_dir else "In the WebUI's prompt"
            rows[where] = " ".join([f"<lora:{paths[0].stem}:1>", *done.delta.embeddings])
        if kind in LORAS:
            rows["Precision"] = done.precision()
        delta = file_name(name) if kind == "delta" else ""
        notes = done.taken() + (how_to_use(done.delta, kind, paths[0].name) if kind in LORAS else [])
        return Outcome(_report("Converted", rows, done.dropped, notes), delta=delta)

    return [Action(button, run, [names, uploads, kind, rank, fits, result, overwrite])]


def _called(kind: str, number: int, count: int) -> str:
    """What a file of a result is called; beside a LoRA there are its words, as embeddings."""
    if kind in LORAS:
        which = "" if count == 2 else f" {number - 1}"
        return "File" if number == 1 else f"Its word{which}, for other programs"
    return "File" if count == 1 else f"File {number}"


def _for_a_page(message: str, uploads: Sequence[Any]) -> str:
    """A message without flags of the command line, and with uploaded files named as a person knows them."""
    message = _GIVE_MODEL.sub("load the model it was trained on, and tick Made for the loaded model", message)
    for upload in uploads:
        message = message.replace(upload.name, Path(upload.name).name)
    return message


def _folder(host: Host, kind: str) -> Path:
    return host.loras_dir if kind == _LORA and host.loras_dir else host.deltas_dir


def _and_loras(host: Host) -> str:
    return f", LoRAs to <code>{html.escape(str(host.loras_dir))}</code>" if host.loras_dir else ""


def _convertible(host: Host) -> list[str]:
    return [path.relative_to(host.deltas_dir).as_posix() for path in files_below(host.deltas_dir, _SUFFIXES)]


def _places(host: Host, name: str, kind: str, files: Sequence[str], overwrite: bool) -> list[Path]:
    """Where a format's files go: a single one is called by the name, several go into a folder of the name.

    The words of a LoRA go into a folder of their own: beside it a host would take them for LoRAs.
    """
    folder = _folder(host, kind)
    if kind in LORAS:
        words = [host.deltas_dir / f"{file_name(name)}-words" / file for file in files[1:]]
        return [new_file(folder, name, overwrite, Path(files[0]).suffix), *words]
    if kind == "delta":
        return [new_file(folder, name, overwrite)]
    if len(files) == 1:
        return [new_file(folder, name, overwrite, Path(files[0]).suffix)]
    inside = folder / file_name(name)
    taken = [file for file in files if (inside / file).exists()]
    if taken and not overwrite:
        raise UserError(f"there is a file {inside.name}/{taken[0]} already; give another name, or tick Overwrite")
    return [inside / file for file in files]


def _result_fields(part: str, what: str, default: str = "") -> tuple[gr.Textbox, gr.Checkbox]:
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


class _stages:
    """Shows what an operation of `algebra` tells, stage by stage."""

    def __init__(self, show: Show) -> None:
        self.show, self.stage = show, 0

    def __call__(self, what: str) -> None:
        self.show(self.stage, _STAGES, what)
        self.stage += 1


def _delta_outcome(
    host: Host, verb: str, done: Result, rows: Mapping[str, str], details: Mapping[str, str] | None = None
) -> Outcome:
    shared = {"File": str(done.path.absolute()), "Size": size_text(done.size), "Words": ", ".join(done.words)}
    report = _report(verb, {**shared, **rows}, done.dropped, renamed_lines(done.renamed))
    if details:
        report += f"<details><summary>Details</summary>{table(details)}</details>"
    return Outcome(report, delta=done.path.name.removesuffix(SUFFIX))


def _report(verb: str, rows: Mapping[str, str], dropped: Mapping[Path, Sequence[str]], notes: Sequence[str]) -> str:
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
    Section("Convert", "cd_convert_section", _convert),
)
