"""`python -m lib_custom_diffusion COMMAND`."""

import shlex
import sys
from pathlib import Path

from .interrupts import INTERRUPTED, ended_at_once


def main() -> int:
    """Run one command, see `standalone.cli.main`.

    A Python without the libraries, such as the system's beside the one that install.py has set up, is told of that one.
    """
    try:
        with ended_at_once():
            from .standalone.cli import main as run
    except ModuleNotFoundError as error:
        if (error.name or __package__).startswith(__package__):
            raise
        print(f"error: {sys.executable} has no {error.name}; {_instead()}", file=sys.stderr)
        return 2
    try:
        return run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _instead() -> str:
    home = Path(__file__).resolve().parents[1]
    made = home / ".venv" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if made.exists():
        return f'use "{made}" -m {shlex.join(["lib_custom_diffusion", *sys.argv[1:]])}'
    return f'"{home / "install.py"}" installs what is needed: python install.py demo'


if __name__ == "__main__":
    raise SystemExit(main())
