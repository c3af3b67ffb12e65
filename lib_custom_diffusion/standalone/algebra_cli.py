"""The command line of algebra on files: what compress, blend, merge, rename and convert take."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..formats import KINDS


def add_compress(commands: argparse._SubParsersAction) -> None:
    def run(options: argparse.Namespace) -> int:
        from .compress import compress

        return compress(options)

    command = _command(commands, "compress", "Make a delta file small.", run)
    add = command.add_argument
    add("file", type=Path, help="a delta file, or any that convert reads")
    add("--output", type=Path, help="the small file; NAME-small.delta.safetensors beside the other if not given")
    add_limits(command, required=True)
    add("--model", help="weigh errors by this model's text features: a folder, a checkpoint, or toy")
    add("--captions", type=Path, help="text file, one caption a line, to weigh by; the model's own if not given")
    add("--float16", action="store_true", help="all numbers in float16, for the first extension of this kind")


def add_blend(commands: argparse._SubParsersAction) -> None:
    def run(options: argparse.Namespace) -> int:
        from .blend import blend

        return blend(options)

    command = _command(commands, "blend", "Add deltas up, each with a weight.", run)
    add = command.add_argument
    add("files", type=Path, nargs="+", help="delta files, or any that convert reads")
    add("--weights", help='one for each, such as "0.7,0.3"; 1 each if not given')
    add("--output", type=Path, required=True, help="the new delta file")
    add_limits(command, required=False)
    add("--model", help="weigh errors of compression by this model's text features")


def add_merge(commands: argparse._SubParsersAction) -> None:
    def run(options: argparse.Namespace) -> int:
        from .merge import merge

        return merge(options)

    command = _command(
        commands, "merge", "Join concepts, each learned alone, into one delta (constrained least squares).", run
    )
    add = command.add_argument
    add("files", type=Path, nargs="+", help="delta files, or any that convert reads; one concept each")
    add("--model", "--pretrained_model_name_or_path", default="toy", help="the model that reads the prompts")
    add("--target_prompts", action="append", default=[], metavar="PROMPTS",
        help='what a concept is asked for by, one flag a file, prompts parted by |; "photo of a <new1> cat|<new1> cat"'
        " from its words if not given")  # fmt: skip
    add(
        "--captions",
        type=Path,
        help="text file, one caption a line, on which little may change; the model's own if not given",
    )
    add(
        "--only_targets",
        action="store_true",
        help="as in the paper: nothing is asked of prompts in which a concept has other surroundings",
    )
    add("--output", type=Path, required=True, help="the new delta file")


def add_rename(commands: argparse._SubParsersAction) -> None:
    def run(options: argparse.Namespace) -> int:
        from .merge import rename

        return rename(options)

    command = _command(commands, "rename", "Give a word of a delta another name.", run)
    add = command.add_argument
    add("file", type=Path, help="a delta file, or any that convert reads")
    add("old", help="the word as it is, such as <new1>; in quotes, as shells read < and > otherwise")
    add("new", help="the word as it shall be, such as <my-cat>")
    add("--output", type=Path, help="the new file; a delta file itself is replaced if not given")


def add_convert(commands: argparse._SubParsersAction) -> None:
    def run(options: argparse.Namespace) -> int:
        from .convert import convert

        return convert(options)

    command = _command(commands, "convert", "Carry a delta to or from another program's format.", run)
    add = command.add_argument
    add("files", type=Path, nargs="+", help="a file with weights, and files with its words if they are apart")
    add("--to", choices=sorted(KINDS), default="delta", help="the format to write")
    add("--output", type=Path, required=True, help="the file, or the folder for several")
    add("--model", help="the model it belongs to, for formats with full weights")
    add("--rank", type=int, default=64, help="of the layers of a LoRA, for layers that have a higher one")


def _command(commands: argparse._SubParsersAction, name: str, description: str, run: object) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name, help=description, description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    command.set_defaults(run=run)
    return command


def add_limits(command: argparse._ActionsContainer, required: bool) -> None:
    """What a file is compressed to: one of --max_size, --rank and --energy."""
    add = command.add_mutually_exclusive_group(required=required).add_argument
    add("--max_size", help="of the file, such as 5MB")
    add("--rank", type=int, help="of every layer")
    add("--energy", type=float, help="share of the squared effect that is kept, such as 0.99")
