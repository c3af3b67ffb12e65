"""Commands that are printed for people to run next, quoted so that they run as printed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

_PLAIN = re.compile(r"[\w@%+=:,./\\-]+")


def command(*arguments: object) -> str:
    """`python -m lib_custom_diffusion` with the arguments, for this system's shell and the Python that runs."""
    return " ".join(filter(None, [program(), quoted(*arguments)]))


def program() -> str:
    """What starts this program with the Python that runs."""
    return quoted(_python(), "-m", "lib_custom_diffusion")


def app(*arguments: object) -> str:
    """What opens the app: by install.py where that stands beside the package, as it installs what the app needs."""
    setup = Path(__file__).resolve().parents[2] / "install.py"
    return quoted(_python(), _from_here(setup), "ui", *arguments) if setup.is_file() else command("ui", *arguments)


def of_model(name: str) -> list[str]:
    """The flags that choose a toy."""
    return [] if name == "toy" else ["--model", name]


def _python() -> str:
    """`python` where a shell takes that for this one, as in an activated environment; else its path."""
    own = Path(os.path.abspath(sys.executable or "python"))
    found = shutil.which("python")
    return "python" if found and Path(os.path.abspath(found)) == own else _from_here(own)


def _from_here(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def quoted(*arguments: object) -> str:
    """The arguments for this system's shell."""
    quote = _for_windows if sys.platform == "win32" else shlex.quote
    return " ".join(quote(str(argument)) for argument in arguments)


def _for_windows(argument: str) -> str:
    """In double quotes, within which < and > are letters; a quote in it gets a backslash, as C's runtime reads it."""
    if _PLAIN.fullmatch(argument):
        return argument
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', argument)
    return '"' + re.sub(r"(\\+)$", r"\1\1", escaped) + '"'
