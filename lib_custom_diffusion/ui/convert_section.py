"""The section Convert."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from ..algebra.converting import LORA_ERROR, LORAS, convert_files
from ..delta import SUFFIX
from ..deltas_folder import files_below, new_file
from ..errors import UserError
from ..formats import KINDS, give_model, how_to_use
from ..storage import size_text, write_atomically
from ..tokens import file_name
from .algebra_sections import report, result_fields, stages
from .utilities import DELTA, Action, Answer, Host, Section, Show

_LORA = "lora"
_SUFFIXES = (".safetensors", ".pt", ".bin", ".ckpt")
_GIVE_MODEL = re.compile(rf"{re.escape(give_model())}.*")


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
    result, overwrite = result_fields("cd_convert", "converted file", "the first file's name")
    button = gr.Button("Convert", variant="primary", elem_id="cd_convert")
    return [Action(button, partial(_converted, host), [names, uploads, kind, rank, fits, result, overwrite])]


def _converted(
    host: Host, show: Show, names: list[str], uploads: list[Any] | None, kind: str, rank: float, fits: bool,
    result: str, overwrite: bool,
) -> Answer:  # fmt: skip
    """Convert what was chosen, and write what comes of it."""
    known = {path.relative_to(host.deltas_dir).as_posix(): path for path in files_below(host.deltas_dir, _SUFFIXES)}
    sources = [known[name] for name in names or () if name in known]
    sources += [Path(upload.name) for upload in uploads or ()]
    if not sources:
        raise UserError("choose a file, or upload one")
    try:
        done = convert_files(sources, kind, host.loaded(fits), int(rank) or None, stages(show))
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
    advice = how_to_use(done.delta, kind, paths[0].name) if kind in LORAS else []
    notes = done.taken() + [line for line in advice if not (host.loras_dir and line.startswith("AUTOMATIC1111"))]
    return Answer(report("Converted", rows, done.dropped, notes), delta=delta)


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


SECTIONS = (Section("Convert", "cd_convert_section", _convert),)
