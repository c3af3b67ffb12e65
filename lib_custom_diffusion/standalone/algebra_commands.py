"""The commands of algebra on files: compress, blend, merge, rename and convert."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from ..algebra.compression import Limit
from ..algebra.converting import LORA_ERROR, LORAS, convert_files
from ..algebra.files import (
    LoadModel,
    blend_files,
    check_delta_name,
    check_outputs,
    compress_file,
    merge_files,
    parse_prompts,
    parse_weights,
    rename_file,
)
from ..algebra.reports import Compressed, compressed_text, plain_word_note, renamed_lines
from ..attention import is_toy, text_widths
from ..backend import Backend
from ..delta import SUFFIX
from ..deltas_folder import delta_name
from ..errors import UserError
from ..formats import KINDS, dropped_text, how_to_use, kind_of_name, may_be_called, read_words
from ..interrupts import ended_at_once
from ..reading.document import read_header
from ..storage import given_path, size, size_text, write_atomically
from .commands import add_command

_FILES = "delta files, or any files that convert reads"


def add_limits(command: argparse._ActionsContainer, required: bool, rank: bool = True) -> None:
    """What a file is compressed to: one of --max_size, --rank and --energy."""
    add = command.add_mutually_exclusive_group(required=required).add_argument
    add("--max_size", help="compress the delta to a file of at most this size, such as 5MB")
    if rank:
        add("--rank", type=int, help="compress every layer to this rank: how much detail it keeps")
    add("--energy", type=float, help="compress the delta to this share of its effect, by squares, such as 0.99")


def limit_of(options: argparse.Namespace) -> Limit | None:
    """What --max_size, --rank or --energy say; None if none is given."""
    if options.max_size is None and options.rank is None and options.energy is None:
        return None
    return Limit(size(options.max_size) if options.max_size is not None else None, options.rank, options.energy)


def _add_overwrite(command: argparse.ArgumentParser) -> None:
    command.add_argument("--overwrite", action="store_true", help="replace a file that is there already")


def _checked(output: Path, sources: Sequence[Path], overwrite: bool) -> Path:
    """The delta file to write. Raises UserError where none can be, or a file is that may not be replaced."""
    check_outputs([output], sources)
    check_delta_name(output)
    _check_free([output], overwrite)
    return output


def _check_free(outputs: Iterable[Path], overwrite: bool) -> None:
    for output in outputs:
        if output.exists() and not overwrite:
            raise UserError(f"{output} is there already; give --overwrite to replace it, or another --output")


def add_compress(commands: argparse._SubParsersAction) -> None:
    """Its flags."""
    command = add_command(commands, "compress", "Make a delta file smaller.", _compress)
    add = command.add_argument
    add("file", type=given_path, help="a delta file, or any that convert reads")
    add(
        "--output",
        type=given_path,
        help="the smaller file; NAME-small.delta.safetensors beside the original if not given",
    )
    _add_overwrite(command)
    add_limits(command, required=True)
    _add_model(command, "weigh errors by this model's text features: a folder, a checkpoint, or toy")
    add("--captions", type=given_path, help="text file, one caption a line, to weigh by; the model's own if not given")
    add(
        "--float16",
        action="store_true",
        help="store all numbers in float16, which the first extension of this kind can read",
    )


def _compress(options: argparse.Namespace) -> int:
    limit = limit_of(options)
    assert limit is not None
    named = options.output or options.file.parent / f"{delta_name(options.file)}-small{SUFFIX}"
    output = _checked(named, [options.file], options.overwrite)
    load_model = _loader_of(options)
    if options.captions is not None and load_model is None:
        raise UserError(f"--captions {options.captions} are for a model to read; give --model too, or leave them out")
    done = compress_file(options.file, output, limit, load_model, options.captions, quantized=not options.float16)
    _tell_dropped(done.dropped)
    print(_compressed_report(done))
    return 0


def _compressed_report(done: Compressed) -> str:
    if done.unchanged:
        return f"{done.path}: {compressed_text(done)}"
    measured = "on captions kept for measuring" if done.weighed else "in its numbers; give --model for that on prompts"
    return (
        f"{done.path}: {size_text(done.size)}, was {size_text(done.size_before)}"
        f" ({done.size_before / done.size:.1f} times smaller)\n"
        f"differs from the original by {done.error:.2%} ({measured})\n"
        f"{done.layers[0]} of {done.layers[1]} layers kept, {done.quantized_layers} of them stored with fewer bits,"
        f" ranks {done.ranks[0]} to {done.ranks[1]}"
    )


def add_blend(commands: argparse._SubParsersAction) -> None:
    """Its flags."""
    command = add_command(commands, "blend", "Add up deltas, each with a weight.", _blend)
    add = command.add_argument
    add("files", type=given_path, nargs="+", help=_FILES)
    add("--weights", help='one weight per file, such as "0.7,0.3"; 1 each if not given')
    add("--output", type=given_path, required=True, help="the new delta file")
    _add_overwrite(command)
    add_limits(command, required=False)
    _add_model(command, "weigh errors of compression by this model's text features")


def _blend(options: argparse.Namespace) -> int:
    weights = parse_weights(options.weights or "", len(options.files))
    limit = limit_of(options)
    if options.model is not None and limit is None:
        raise UserError("--model is for compression; give --max_size, --rank or --energy too, or leave it out")
    output = _checked(options.output, options.files, options.overwrite)
    done = blend_files(options.files, weights, output, limit, _loader_of(options))
    _tell_dropped(done.dropped)
    print("".join(f"{line}\n" for line in renamed_lines(done.renamed)), end="")
    if done.error is not None:
        print(f"compressed; differs from the exact sum by {done.error:.2%}")
    print(f"{done.path}: {done.size / 1e6:.2f} MB, words {', '.join(done.words) or 'none'}")
    return 0


def add_merge(commands: argparse._SubParsersAction) -> None:
    """Its flags."""
    command = add_command(
        commands,
        "merge",
        "Merge concepts that were learned separately into one delta (constrained least squares).",
        _merge,
    )
    add = command.add_argument
    add(
        "files",
        type=given_path,
        nargs="+",
        help=f"{_FILES}; one concept each. One alone acts as before on its words, and less on others",
    )
    _add_model(command, "the model that reads the prompts", default="toy")
    add("--target_prompts", action="append", default=[], metavar="PROMPTS",
        help="prompts of a concept, once per file, separated by |; if not given, they are made from its words:"
        ' "photo of a <new1> cat|<new1> cat", or for art "painting in the style of <new1> art"')  # fmt: skip
    add(
        "--captions",
        type=given_path,
        help="text file, one caption per line, which should change little; the model's own if not given",
    )
    add(
        "--only_targets",
        action="store_true",
        help="as in the paper: fit only the prompts above, not the concepts in other contexts",
    )
    add("--output", type=given_path, required=True, help="the new delta file")
    _add_overwrite(command)


def _merge(options: argparse.Namespace) -> int:
    load_model = _loader_of(options)
    assert load_model is not None
    prompts = [parse_prompts(text) for text in options.target_prompts]
    output = _checked(options.output, options.files, options.overwrite)
    done = merge_files(options.files, output, load_model, prompts, options.captions, only_targets=options.only_targets)
    _tell_dropped(done.dropped)
    print("".join(f"{line}\n" for line in renamed_lines(done.renamed)), end="")
    print(f"{done.path}: {done.size / 1e6:.2f} MB, words {', '.join(done.words) or 'none'}")
    for heading, told in done.report(list(map(str, options.files))).items():
        print(f"{heading.lower()}: {told}")
    return 0


def add_rename(commands: argparse._SubParsersAction) -> None:
    """Its flags."""
    command = add_command(commands, "rename", "Give a word of a delta another name.", _rename)
    add = command.add_argument
    add("file", type=given_path, help="a delta file, or any that convert reads")
    add("old", help="the current word, such as <new1>, in quotes: shells treat < and > specially")
    add("new", help="the new name, such as <my-cat>")
    add("--output", type=given_path, help="the new file; if not given, the delta file itself is changed")
    _add_overwrite(command)


def _rename(options: argparse.Namespace) -> int:
    if options.output is None and not options.file.name.lower().endswith(SUFFIX):
        raise UserError(f"{options.file} is no {SUFFIX} file, which alone can be replaced; give --output")
    output = options.file if options.output is None else _checked(options.output, [], options.overwrite)
    done = rename_file(options.file, options.old, options.new, output)
    _tell_dropped(done.dropped)
    print(f"{done.path}: words {', '.join(done.words)}")
    if note := plain_word_note(options.new):
        print(note)
    return 0


def add_convert(commands: argparse._SubParsersAction) -> None:
    """Its flags."""
    command = add_command(commands, "convert", "Convert a delta to or from another program's format.", _convert)
    add = command.add_argument
    add("files", type=given_path, nargs="+", help="a file with weights, and files with its words if they are apart")
    add("--to", choices=sorted(KINDS), help="the format to write; as --output is called, or delta, if not given")
    add("--output", type=given_path, required=True, help="the file, or the folder for several")
    _add_overwrite(command)
    _add_model(command, "the model it belongs to, for formats with full weights; the toy if the file says so")
    precision = command.add_mutually_exclusive_group().add_argument
    precision(
        "--rank", type=int,
        help=f"of the layers of a LoRA, for layers that have a higher one; the least that loses {LORA_ERROR:.0%}%"
        " if not given",
    )  # fmt: skip
    precision(
        "--exact",
        action="store_true",
        help="cut no ranks: dense layers become full differences, which are larger and which diffusers cannot read",
    )


def _convert(options: argparse.Namespace) -> int:
    kind = _kind_to_write(options.to, options.output)
    if kind not in LORAS and (options.rank is not None or options.exact):
        flag = "--exact" if options.exact else "--rank"
        raise UserError(f"{flag} is for a LoRA, not for --to {kind}; leave it out, or give --to {LORAS[0]}")
    if _is_file_name(options.output):  # whose other files are known when they are made
        check_outputs([options.output], options.files)
        _check_free([options.output], options.overwrite)
    load_model = _loader_of(options)
    if load_model is None and (toy := _toy_of(options.files)) is not None:
        load_model = lambda: toy  # noqa: E731
    done = convert_files(options.files, kind, load_model, options.rank, exact=options.exact)
    paths = _paths(options.output, kind, done.files)
    check_outputs(paths, options.files)
    _check_free(list(paths)[: 1 if kind in LORAS else None], options.overwrite)
    _check_words_there(paths, kind)
    _tell_dropped(done.dropped)
    print("".join(f"{line}\n" for line in done.taken()), end="")
    for path, content in paths.items():
        write_atomically(path, content)
        print(f"{path}: {size_text(len(content))}")
    if kind in LORAS:
        print(done.precision(), *how_to_use(done.delta, kind, next(iter(paths)).name), sep="\n")
    return 0


def _kind_to_write(asked: str | None, output: Path) -> str:
    """What is asked for, or what the file's name says; a delta into a folder. Raises UserError where they disagree."""
    if not _is_file_name(output):
        return asked or "delta"
    kind = asked or kind_of_name(output.name)
    if kind is None:
        raise UserError(f"{output} does not say which format is to be written; give --to, such as --to {LORAS[0]}")
    if not may_be_called(kind, output.name):
        said = kind_of_name(output.name)
        other = f"a file of --to {said}" if said else f"one that ends in {output.suffix}"
        raise UserError(f"{output} is the name of {other}, not of --to {kind}; give another --to or --output")
    return kind


def _paths(output: Path, kind: str, files: dict[str, bytes]) -> dict[Path, bytes]:
    """Where each file goes: into `output`, or the first to `output` itself if that looks like a file, others beside it.

    Raises UserError where several formats' files are alike, or a word would take the place of the first.
    """
    first, *others = files
    if not _is_file_name(output):
        return {output / (f"{output.name}{SUFFIX}" if kind == "delta" else name): files[name] for name in files}
    if others and kind not in LORAS:
        raise UserError(f"{kind} is {len(files)} files; give a folder as --output, not {output}")
    paths = {output: files[first], **{output.with_name(name): files[name] for name in others}}
    if any(name.casefold() == output.name.casefold() for name in others):
        raise UserError(f"the word beside it is {output.name}, too; give another --output")
    return paths


def _check_words_there(paths: Mapping[Path, bytes], kind: str) -> None:
    """Raise UserError if a file beside a LoRA, which nobody named, would take the place of another word's."""
    for path, content in list(paths.items())[1:] if kind in LORAS else ():
        if path.exists() and not _same_words(path, content):
            raise UserError(
                f"{path} is there already and holds something else; give another folder as --output, or give the word"
                " another name first (rename)"
            )


def _same_words(path: Path, content: bytes) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        new = Path(folder) / path.name
        new.write_bytes(content)
        with suppress(UserError):
            there, wanted = read_words(path), read_words(new)
            return there.keys() == wanted.keys() and all(
                torch.equal(there[token].half(), wanted[token].half()) for token in wanted
            )
    return False


def _is_file_name(output: Path) -> bool:
    return output.suffix.lower() in (".safetensors", ".pt", ".ckpt", ".bin")


def _toy_of(files: Sequence[Path]) -> Backend | None:
    """The toy, if a file says that it was made for it: what its layers are called elsewhere depends on the model."""
    for file in files:
        with suppress(UserError):  # that of whoever reads the file says more
            architecture = read_header(file).metadata.get("modelspec.architecture", "").partition("/")[0]
            if is_toy(architecture):
                toy = _load("toy-xl" if text_widths(architecture) else "toy")
                return toy if toy.architecture == architecture else None
    return None


def _add_model(command: argparse.ArgumentParser, use: str, default: str | None = None) -> None:
    command.add_argument("--model", "--pretrained_model_name_or_path", default=default, help=use)
    command.add_argument("--vae", type=given_path, metavar="FILE", help="a VAE for a --model that has none")


def _loader_of(options: argparse.Namespace) -> LoadModel | None:
    """What loads the model that is named; None if none is. Raises UserError for a VAE of no model."""
    if options.model is None:
        if options.vae is not None:
            raise UserError(f"--vae {options.vae} is for a model; give --model too, or leave it out")
        return None

    return lambda: _load(options.model, options.vae)


def _load(model: str, vae: Path | None = None) -> Backend:
    with ended_at_once():
        from . import models  # diffusers and transformers take seconds to import

    return models.load_model(model, vae=vae)


def _tell_dropped(dropped: Mapping[Path, Sequence[str]]) -> None:
    for path, names in dropped.items():
        print(f"{path}: left out {dropped_text(names)}")
