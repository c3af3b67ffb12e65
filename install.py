"""Sets Custom Diffusion up.

    python install.py                   in the WebUI, its install hook: adds what is missing of the six packages that
                                        the extension runs on, and changes no version that the WebUI has
    python install.py demo [ARGUMENT…]  makes .venv beside this file, then runs the demo in it
    python install.py ui [ARGUMENT…]    the same for the app: a page for pictures, training and utilities
    python install.py test [ARGUMENT…]  the same for the tests; arguments go to pytest

`demo`, `ui` and `test` use the Python that runs them if it is 3.10, 3.11 or 3.12, and otherwise look for one that is.
They install the versions in requirements/ and remember having done so: the next call starts at once, and one that
follows an interrupted installation repairs it. Their exit status is that of what they ran.

PyTorch: on Linux the package registry's build carries several gigabytes of CUDA libraries. Where no NVIDIA GPU is seen,
the CPU build is taken from PyTorch's own index instead, if that answers within five seconds; if not, the registry's
build does as well. On Windows and macOS the registry's build is small (on Windows it does not know about GPUs). To use
another build, install it into .venv: as long as its version is the pinned one, it stays.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import http.client
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.request
from pathlib import Path
from typing import Sequence

WINDOWS = sys.platform == "win32"
ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / ("Scripts/python.exe" if WINDOWS else "bin/python")

SUPPORTED = ((3, 11), (3, 10), (3, 12))  # the first is the one to recommend
CPU_INDEX = "https://download.pytorch.org/whl/cpu"

# What the extension runs on: a module, and what to install where it is missing. The UI is written for that gradio.
RUNTIME = {
    "torch": "torch",
    "safetensors": "safetensors",
    "gradio": "gradio==3.41.2",
    "numpy": "numpy",
    "PIL": "Pillow",
    "tqdm": "tqdm",
}


def main() -> None:
    command, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else (None, [])
    if command is None and importlib.util.find_spec("launch") is None:
        print(__doc__.strip())  # a person, or a program that has no use for the page
        here = f"{Path.cwd()} is not the folder of a WebUI"
        print(f"\nNothing was installed: {here}. To begin without one: python install.py demo")
    elif command is None:
        install_missing()
    elif command in ("demo", "ui"):
        set_up(command)
        run_in_venv(["-m", "lib_custom_diffusion", command, *arguments])
    elif command == "test":
        set_up("test")
        os.chdir(str(ROOT))
        run_in_venv(["-m", "pytest", *arguments])
    elif command in ("-h", "--help"):
        print(__doc__.strip())
    else:
        near = difflib.get_close_matches(command, INSTALLED, 1)
        print(
            f"error: there is no command {command!r}{f'; did you mean {near[0]}?' if near else ''}; there are"
            f" {', '.join(INSTALLED)}. All others are of python -m lib_custom_diffusion",
            file=sys.stderr,
        )
        sys.exit(2)


# The WebUI's install hook


def install_missing() -> None:
    """Installs what is missing of RUNTIME, holding every package that is there at its version."""
    missing = [requirement for module, requirement in RUNTIME.items() if importlib.util.find_spec(module) is None]
    if not missing:
        return
    with tempfile.TemporaryDirectory() as folder:
        held = Path(folder) / "held.txt"
        held.write_text("\n".join(installed_versions()) + "\n", encoding="utf-8")
        from launch import run_pip  # the WebUI's: knows its index, its options and how it shows errors

        run_pip(f'install --constraint "{held}" {" ".join(missing)}', "what Custom Diffusion lacks")


def installed_versions() -> list[str]:
    """`name==version` of every installed package whose version pip can read."""
    import importlib.metadata  # not in Python 3.7, which gets as far as being told that it is too old

    version = re.compile(r"\d+(\.\d+)*((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?(\+[\w.]+)?")
    found = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    return sorted(f"{name}=={v}" for name, v in found.items() if name and v and version.fullmatch(v))


# .venv for `demo`, `ui` and `test`

INSTALLED = ("demo", "ui", "test")
"""Commands with requirements, each of which include those of the ones before it."""


def set_up(command: str) -> None:
    """Makes .venv hold what `command` needs; does nothing if it does already."""
    if VENV_PYTHON.exists() and stamp(command).is_file() and stamp(command).read_text() == fingerprint(command):
        return
    make_venv()
    for each in INSTALLED:
        if stamp(each).exists():
            stamp(each).unlink()
    print(f"Installing what `{command}` needs into {VENV}; this happens once.", flush=True)
    install_torch()
    if pip("--requirement", str(requirements(command))) != 0:
        sys.exit("The installation did not finish, see pip's message above; the same command goes on from here.")
    for each in included(command):
        stamp(each).write_text(fingerprint(each))


def included(command: str) -> tuple[str, ...]:
    """The commands that need no more than `command`, and itself."""
    return INSTALLED[: INSTALLED.index(command) + 1]


def requirements(command: str) -> Path:
    return ROOT / "requirements" / f"{command}.txt"


def stamp(command: str) -> Path:
    """The file that says what was installed for `command`, written when all of it was."""
    return VENV / f"installed-for-{command}"


def fingerprint(command: str) -> str:
    """Changes with the pinned versions and with the interpreter behind .venv."""
    pins = b"".join(requirements(each).read_bytes() for each in included(command))
    return hashlib.sha256(pins + os.path.realpath(str(VENV_PYTHON)).encode()).hexdigest()


def make_venv() -> None:
    """Makes .venv, unless it is there and works."""
    version = python_version([str(VENV_PYTHON)], needs="pip")
    if version in SUPPORTED:
        return
    if version is not None:
        found, needed = spelled([version]), spelled(sorted(SUPPORTED))
        sys.exit(f"{VENV} holds Python {found}, but this needs {needed}: delete that folder and run this again.")
    python = find_python()
    print(f"Making {VENV}", flush=True)
    if subprocess.call([*python, "-m", "venv", "--clear", str(VENV)]) != 0:
        sys.exit(f"{VENV} could not be made, see the message above.")


def find_python() -> list[str]:
    """The command that starts the Python to make .venv with."""
    named = [["py", f"-{major}.{minor}"] if WINDOWS else [f"python{major}.{minor}"] for major, minor in SUPPORTED]
    for command in [[sys.executable], *named]:
        if python_version(command, needs="ensurepip, venv") in SUPPORTED:
            return command
    best = spelled(SUPPORTED[:1])
    sys.exit(
        f"This needs Python {spelled(sorted(SUPPORTED))} (64-bit, with its venv module) and found only "
        f"Python {spelled([sys.version_info[:2]])}: install Python {best} from https://www.python.org/downloads/ "
        f"(Debian, Ubuntu: apt install python{best} python{best}-venv) and run this again."
    )


def python_version(command: list[str], needs: str) -> tuple[int, ...] | None:
    """(major, minor) of the 64-bit Python that `command` starts, None where it starts none or one without `needs`."""
    code = f"import sys, {needs}; print(*sys.version_info[:2]); sys.exit(sys.maxsize < 2**32)"
    try:
        answer = subprocess.run([*command, "-I", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError:
        return None
    return tuple(int(number) for number in answer.stdout.split()) if answer.returncode == 0 else None


def spelled(versions: Sequence[tuple[int, ...]]) -> str:
    """3.10, 3.11 or 3.12"""
    words = [".".join(str(number) for number in version) for version in versions]
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def install_torch() -> None:
    """Takes PyTorch from its own index, where that saves gigabytes; the rest of the installation takes it otherwise."""
    options = torch_options()
    pins = [line for line in requirements("demo").read_text(encoding="utf-8").split() if line.startswith("torch==")]
    if options and pip(*pins, *options) != 0:
        print("PyTorch's own index did not serve it; taking the registry's build.", flush=True)


def torch_options() -> list[str]:
    """pip's options for PyTorch: the index of CPU builds on a Linux without an NVIDIA GPU, if it answers."""
    has_gpu = shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia").exists()
    if sys.platform != "linux" or has_gpu or not answers(f"{CPU_INDEX}/torch/"):
        return []
    return ["--extra-index-url", CPU_INDEX]


def answers(address: str, seconds: float = 5) -> bool:
    """Whether something answers at the address in time. Asked in a thread: looking a name up knows no time limit."""
    answered = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(address, method="HEAD")
        with contextlib.suppress(OSError, http.client.HTTPException):
            urllib.request.urlopen(request, timeout=seconds).close()
            answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()


def pip(*arguments: str) -> int:
    """Exit status of `pip install` in .venv."""
    return subprocess.call([str(VENV_PYTHON), "-I", "-m", "pip", "install", "--disable-pip-version-check", *arguments])


def run_in_venv(arguments: list[str]) -> None:
    """Goes on as .venv's Python, with this folder importable; does not return."""
    command = [str(VENV_PYTHON), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if not WINDOWS:
        sys.stdout.flush()
        os.execve(command[0], command, environment)
    process = subprocess.Popen(command, env=environment)
    while True:
        with contextlib.suppress(KeyboardInterrupt):  # the child has it too, and ends when it has saved
            sys.exit(process.wait())


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on from here.", file=sys.stderr)
        sys.exit(130)
