"""How every command is added to the command line, and how its help tells what a flag is where it is not given."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import Any

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
