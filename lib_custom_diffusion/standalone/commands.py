"""What commands of the command line have in common: how they are added, run and helped with, and flags for a model."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterable
from typing import Any

from ..backend import PREDICTION_TYPES
from ..interrupts import ended_at_once
from ..storage import given_path

Run = Callable[[argparse.Namespace], int]
"""Runs a command; returns the exit status."""


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to what a flag does, where it has one that says something; usage names what must be given."""

    def _format_usage(
        self, usage: str | None, actions: Iterable[argparse.Action], groups: Any, prefix: str | None
    ) -> str:
        """`train` has some seventy flags, which are listed below it anyway."""
        needed = [each for each in actions if each.required]
        return f"{super()._format_usage(usage, needed, [], prefix).rstrip()} [FLAGS]\n\n"

    def _get_help_string(self, action: argparse.Action) -> str | None:
        told = action.default is not None and action.default is not False and action.default not in ("", [])
        return super()._get_help_string(action) if told else action.help


def add_command(commands: argparse._SubParsersAction, name: str, description: str, run: Run) -> argparse.ArgumentParser:
    """The parser of a new command."""
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=description, description=description, formatter_class=_Help
    )
    command.set_defaults(run=run)
    return command


def run_from(module: str, function: str) -> Run:
    """What runs a command whose libraries, which take seconds to import, are imported when it is run."""

    def run(options: argparse.Namespace) -> int:
        with ended_at_once():
            found = importlib.import_module(module, __package__)
        return getattr(found, function)(options)

    return run


def add_model(command: argparse.ArgumentParser, *other_names: str) -> None:
    """The flags of a command that say which model it is for. other_names: of --model."""
    command.add_argument(
        "--model", *other_names, default="toy",
        help="a folder in diffusers' layout, a checkpoint file, a model of the Hub (OWNER/NAME), toy, or toy-xl",
    )  # fmt: skip
    command.add_argument(
        "--vae", type=given_path, metavar="FILE", help="a VAE to use instead of the model's own, or if it has none"
    )
    command.add_argument(
        "--prediction_type", choices=PREDICTION_TYPES,
        help="what the model predicts; read from its files or measured if not given",
    )  # fmt: skip
