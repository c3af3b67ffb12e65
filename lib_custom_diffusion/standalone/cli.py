"""The command line: what each command takes, and how its errors are told."""

from __future__ import annotations

import argparse
import errno
import importlib.util
import io
import itertools
import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from tqdm import tqdm

from .. import __version__
from ..errors import NO_TEXT, UserError, did_you_mean
from ..interrupts import INTERRUPTED
from ..storage import given_path
from ..training.config import TrainingConfig
from .algebra_commands import add_blend, add_compress, add_convert, add_merge, add_rename
from .commands import add_command, add_model, run_from
from .follow_up import program
from .foreign_flags import instead_of
from .train_flags import OF_SCRIPT, settled
from .train_parser import add_train

_MOST_LETTERS, _SHOWN_LETTERS = 250, 80
"""Of a word of an error: how many one may have, and how many are shown of a longer one."""
_NEVER_EMPTY = ("--resume_from_checkpoint", "--validation_prompt", "--max_size", "--weights", "--concept")
_OUT_OF_MEMORY = (
    "the GPU's memory is too small for this; give a smaller --train_batch_size, --sample_batch_size or --resolution,"
    " or --gradient_checkpointing to train"
)
_D = TrainingConfig()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 2 for a user's mistake, 130 for Ctrl-C."""
    try:
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:  # closed, as by 2>&-, or there is none, as in a service; bars write to it
                setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # no letter of a prompt or a path that it cannot show is an error
                stream.reconfigure(errors="backslashreplace")
        logging.basicConfig(format="%(message)s", level=logging.WARNING, handlers=[_BesideBars()])
        options = _parsed(list(sys.argv[1:] if arguments is None else arguments))
        status = options.run(options)
        print(end="", flush=True)
        return status
    except BrokenPipeError:  # `info FILE | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the end
        return 0
    except UserError as error:
        print(f"error: {' '.join(map(_shown, str(error).split()))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except torch.cuda.OutOfMemoryError:
        print(f"error: {_OUT_OF_MEMORY}", file=sys.stderr)
        return 2
    except OSError as error:  # a file that is not ours to read, vanished meanwhile, or on a disk that fails
        print(f"error: {' '.join(map(_shown, _of_system(error).split()))}", file=sys.stderr)
        return 2


class _BesideBars(logging.StreamHandler):
    """Warnings on lines of their own, above the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def _of_system(error: OSError) -> str:
    """What the system would not do, as a sentence."""
    if error.errno == errno.ENAMETOOLONG:  # which even asking whether there is such a file raises
        return f"{error.filename} is too long for the path of a file or folder"
    if error.errno == errno.ENOENT and not error.filename:  # of the working directory
        return "the folder that you are in is gone; change to one that is there"
    return f"cannot use {error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)


def _shown(word: str) -> str:
    """A word of an error, which may be a value of any length, or a stranger's with codes for the terminal."""
    word = NO_TEXT.sub("?", word)
    return word if len(word) <= _MOST_LETTERS else f"{word[:_SHOWN_LETTERS]}…"


def _parsed(arguments: list[str]) -> argparse.Namespace:
    root = parser()
    commands = next(action for action in root._actions if isinstance(action, argparse._SubParsersAction)).choices
    all_flags: Mapping[str, argparse.Action] = (
        commands[arguments[0]]._option_string_actions if arguments and arguments[0] in commands else {}
    )
    for flag, value in _values(arguments):
        if value != "" or flag not in all_flags:
            continue
        if all_flags[flag].type is given_path:  # a shell's variable without value
            raise UserError(f"{flag} is empty; give a path, or leave it out")
        if flag in _NEVER_EMPTY:
            raise UserError(f"{flag} is empty; write something there, or leave it out")
    if arguments[:1] and arguments[0].startswith("-") and arguments[0] not in root._option_string_actions:
        raise UserError(f"{arguments[0]} comes after the command, such as train; there are {', '.join(commands)}")
    mistyped = [flag for flag in _flags(arguments) if all_flags and flag not in all_flags]
    if mistyped:
        raise UserError(instead_of(mistyped, all_flags))
    if arguments[:1] == ["train"]:
        arguments = ["train", *settled(arguments[1:], commands["train"])]
    options, unknown = root.parse_known_args(arguments)
    if unknown:
        raise UserError(f"{unknown[0]!r} stands alone; a flag is missing")
    return options


def _flags(arguments: Sequence[str]) -> list[str]:
    """Those that are given, without their values."""
    before_files = itertools.takewhile(lambda each: each != "--", arguments)
    return [each.partition("=")[0] for each in before_files if re.match("-{1,2}[A-Za-z]", each)]


def _values(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Each argument with what is given to it if it is a flag, behind = or as the next one."""
    apart = list(itertools.pairwise(arguments))
    return apart + [(flag, value) for flag, equals, value in (each.partition("=") for each in arguments) if equals]


class _Parser(argparse.ArgumentParser):
    """What is wrong is told in a sentence, without a list of all flags before it.

    A flag is written out: the beginning of one may be another program's, such as --caption.
    """

    def __init__(self, **told: Any) -> None:
        super().__init__(allow_abbrev=False, **told)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Argparse's own, with what may have been meant."""
        if action.choices is not None and value not in action.choices:
            there, near = ", ".join(action.choices), did_you_mean(str(value), action.choices)
            where = f"{action.option_strings[0]} has no" if action.option_strings else "there is no command"
            raise UserError(f"{where} {value!r}; there are {there}{near}")

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help lists all there is")


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    root = _Parser(
        prog=program(),
        description="Teach Stable Diffusion a new concept from a few pictures (Custom Diffusion).",
    )
    root.add_argument("--version", action="version", version=__version__)
    commands = root.add_subparsers(required=True, metavar="COMMAND")
    for add in (
        *(_add_demo, add_train, _add_generate, _add_regularize, _add_evaluate, _add_info),
        *(add_compress, add_blend, add_merge, add_rename, add_convert, _add_ui),
    ):
        add(commands)
    return root


def _add_demo(commands: argparse._SubParsersAction) -> None:
    command = add_command(
        commands, "demo", "Teach a toy model a concept from bundled pictures, and report.", run_from(".demo", "demo")
    )
    command.add_argument(
        "--model", choices=("toy", "toy-xl"), default="toy", help="in Stable Diffusion 1's layout, or in SDXL's"
    )
    command.add_argument(
        "--concept", default=None, help="name of the bundled concept to teach, or all; the first one if not given"
    )
    command.add_argument("--output", type=given_path, default=Path("demo"), help="folder for the results")
    command.add_argument(
        "--max_train_steps", type=int, default=None, help="training steps; if not given, as many as the concept needs"
    )
    command.add_argument("--seed", type=int, default=_D.seed, help="seed of the training")


def _add_generate(commands: argparse._SubParsersAction) -> None:
    command = add_command(
        commands,
        "generate",
        'Draw pictures; "<delta:NAME:0.8>" in the prompt applies a delta.',
        run_from(".generate", "generate"),
    )
    add_model(command, OF_SCRIPT)
    _add_sampling(command)
    add = command.add_argument
    add(
        "--prompt",
        required=True,
        help='such as "photo of a <new1> cat <delta:new1:0.8>"; NAME is a path or looked up in --deltas_dir',
    )
    add(
        "--deltas_dir",
        type=given_path,
        default=Path("."),
        help="folder in which, and in whose folders, NAME is looked up",
    )
    add(
        "--embedding",
        type=given_path,
        action="append",
        default=[],
        metavar="FILE",
        help="an embedding to use without a delta; its word is the file's name in < and >",
    )
    add("--num_images", type=int, default=4, help="pictures; each has the seed after the one before")
    add(
        "--output",
        type=given_path,
        default=Path("pictures"),
        help="folder for the pictures, called by their seeds; those in it are kept (00042-2.png)",
    )


def _add_sampling(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--negative_prompt", default="", help="what not to draw")
    add("--num_inference_steps", type=int, default=25, help="sampling steps")
    add(
        "--guidance_scale",
        type=float,
        help="how strictly pictures follow the prompt; if not given, 6, or 4 for the toy",
    )
    add("--resolution", type=int, help="width and height in pixels; the model's own if not given")
    add("--sample_batch_size", type=int, default=4, help="how many pictures are drawn at once")
    add(
        "--seed",
        type=int,
        default=_D.seed,
        help="seed of the first picture; each one after it has the next seed",
    )


def _add_regularize(commands: argparse._SubParsersAction) -> None:
    command = add_command(
        commands,
        "regularize",
        "Make regularization pictures with captions, or pick real ones.",
        run_from(".regularize", "regularize"),
    )
    add_model(command, OF_SCRIPT)
    _add_sampling(command)
    add = command.add_argument
    add("--class_prompt", required=True, help='what to draw, such as "cat"')
    add(
        "--class_data_dir",
        type=given_path,
        help="folder for the pictures; regularization/CLASS_PROMPT if not given. Pictures already in it are kept and"
        " counted",
    )
    add("--num_class_images", type=int, default=200, help="how many")
    add(
        "--pick_from",
        type=given_path,
        metavar="DIR",
        help="instead of drawing, pick the pictures in this folder whose captions are nearest to the class prompt",
    )


def _add_evaluate(commands: argparse._SubParsersAction) -> None:
    command = add_command(
        commands,
        "evaluate",
        "Measure deltas, or the saves of a training, on a model.",
        run_from(".evaluation.command", "evaluate"),
    )
    add_model(command, OF_SCRIPT)
    _add_sampling(command)
    add = command.add_argument
    add(
        "--delta",
        type=given_path,
        nargs="+",
        required=True,
        help="delta files or folders of them; a training's folder means all its saves",
    )
    add("--instance_data_dir", type=given_path, required=True, help="folder with pictures of the concept")
    add(
        "--prompts",
        type=given_path,
        required=True,
        metavar="FILE",
        help='prompts to draw, one per line, such as "{} in times square", where {} stands for the new word and its'
        " class; after a tab, a line can describe the picture in plain words",
    )
    add("--num_images", type=int, default=4, help="pictures of each prompt; each has the seed after the one before")
    add("--class_prompt", default="", help='also measure the KID of pictures of this prompt, such as "photo of a cat"')
    add("--num_class_images", type=int, default=50, help="how many of those pictures to draw")
    add(
        "--class_data_dir",
        type=given_path,
        help="real pictures to compare them with; pictures drawn by the model if not given",
    )
    add(
        "--clip",
        type=os.path.expanduser,
        help="CLIP model, a folder or a name on the Hub; openai/clip-vit-base-patch32 if not given, the judge for toys",
    )
    add(
        "--dino",
        type=os.path.expanduser,
        help="also measure with this DINO model, such as facebook/dino-vits16; a folder or a name on the Hub",
    )
    add("--output", type=given_path, default=Path("evaluation"), help="folder for the results")
    add("--overwrite", action="store_true", help="replace an evaluation that is there already")


def _add_info(commands: argparse._SubParsersAction) -> None:
    command = add_command(commands, "info", "Show what a file is and what is in it.", run_from(".info", "info"))
    command.add_argument("file", type=given_path, help="a delta, LoRA, embedding or embedding picture")
    command.add_argument("--json", action="store_true", help="as JSON, for programs")


def _add_ui(commands: argparse._SubParsersAction) -> None:
    def run(options: argparse.Namespace) -> int:
        if importlib.util.find_spec("gradio") is None:
            raise UserError("the page needs gradio: run `python install.py ui`, or pip install .[ui]")
        print(f"Loading {options.model} …", flush=True)  # what is imported takes its time as well
        return run_from(".app.server", "ui")(options)

    command = add_command(commands, "ui", "Pictures, training and utilities on a page, at http://127.0.0.1:7860.", run)
    add_model(command, OF_SCRIPT)
    add = command.add_argument
    add("--deltas_dir", type=given_path, default=Path("deltas"), help="folder of deltas; results are saved in it, too")
    add("--models_dir", type=given_path, help="folder of checkpoints to choose from on the page")
    add("--port", type=int, default=7860, help="port of the page; 0 for any that is free")
    add(
        "--listen",
        metavar="ADDRESS",
        help="serve other computers as well, at this address; whoever has the token that is printed",
    )
