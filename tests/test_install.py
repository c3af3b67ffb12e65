"""install.py, offline: as the WebUI's hook beside stand-ins for `launch` and pip, and as the maker of a real .venv."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "safetensors", "gradio", "numpy", "PIL", "tqdm")
# Whatever goes wrong in a test: pip reaches nothing.
OFFLINE = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}


@pytest.fixture
def install() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install", ROOT / "install.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The WebUI's hook


def hook(cwd: Path, path: Path, code: str = "") -> subprocess.CompletedProcess[str]:
    """Runs install.py as the WebUI does, with `path` on PYTHONPATH and site-packages hidden, then `code`."""
    script = f"import runpy, sys; runpy.run_path({str(ROOT / 'install.py')!r}, run_name='__main__'); {code}"
    return subprocess.run(
        [sys.executable, "-S", "-c", script],
        cwd=cwd,
        env={**OFFLINE, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        check=False,
    )


def pretend_installed(path: Path, *modules: str) -> None:
    """Importable modules that must not be imported, with the metadata of an installed package."""
    for module in modules:
        (path / f"{module}.py").write_text(f"raise SystemExit('{module} was imported')")
        metadata = path / f"{module}-1.2.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.2\n")


def pretend_launch(path: Path) -> None:
    """A `launch` module as the WebUI has it, whose run_pip shows what it was asked for, and the constraints."""
    (path / "launch.py").write_text(
        "import shlex\n"
        "def run_pip(command, desc=None):\n"
        "    print('launch.run_pip', command)\n"
        "    print(open(shlex.split(command)[2]).read())\n"
    )


def pretend_pip(path: Path, code: str) -> None:
    (path / "pip").mkdir()
    (path / "pip" / "__init__.py").touch()
    (path / "pip" / "__main__.py").write_text(f"import sys\n{code}\n")


def test_the_hook_is_quiet_and_imports_nothing_when_all_is_there(tmp_path: Path) -> None:
    pretend_installed(tmp_path, *PACKAGES)
    pretend_launch(tmp_path)
    started = time.monotonic()
    done = hook(tmp_path, tmp_path, "assert not {'torch', 'launch', 'importlib.metadata'} & set(sys.modules)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("missing", PACKAGES)
def test_the_hook_installs_only_what_is_missing_and_holds_every_version_that_is_there(
    tmp_path: Path, missing: str
) -> None:
    there = [package for package in PACKAGES if package != missing]
    pretend_installed(tmp_path, *there, "another")
    pretend_launch(tmp_path)
    done = hook(tmp_path, tmp_path)
    asked, *constraints = done.stdout.splitlines()
    wanted = {"gradio": "gradio==3.41.2", "PIL": "Pillow"}.get(missing, missing)
    assert done.returncode == 0, done.stderr
    assert asked.startswith("launch.run_pip install --constraint ")
    assert asked.split()[4:] == [wanted]
    assert set(filter(None, constraints)) == {f"{package}==1.2" for package in [*there, "another"]}


def test_where_there_is_no_webui_a_person_is_told_of_the_commands_and_nothing_is_installed(tmp_path: Path) -> None:
    pretend_pip(tmp_path, "print('pip')")
    done = hook(tmp_path, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "python install.py demo" in done.stdout and "pip\n" not in done.stdout
    assert done.stdout.splitlines()[-1].startswith(f"Nothing was installed: {tmp_path} is not the folder of a WebUI.")


@pytest.mark.parametrize(("typed", "said"), [("dmeo", "; did you mean demo?"), ("train", "; there are demo, ui")])
def test_what_is_no_command_is_told_in_a_line(typed: str, said: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, ROOT / "install.py", typed], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1 and f"there is no command '{typed}'{said}" in done.stderr


def test_ctrl_c_is_told_in_a_line_and_by_its_exit_status(tmp_path: Path) -> None:
    shutil.copy(ROOT / "install.py", tmp_path)
    stopped = "import subprocess, sys, runpy\ndef stopped(*_, **__):\n    raise KeyboardInterrupt\n"
    code = f"{stopped}subprocess.run = stopped\nsys.argv = ['install.py', 'demo']\n"
    code += f"runpy.run_path({str(tmp_path / 'install.py')!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (130, "Interrupted; the same command goes on from here.\n")


def test_the_hook_fails_aloud_when_pip_does(tmp_path: Path) -> None:
    (tmp_path / "launch.py").write_text("import sys\ndef run_pip(command, desc=None):\n    sys.exit('no network')\n")
    done = hook(tmp_path, tmp_path)
    assert done.returncode != 0
    assert "no network" in done.stderr


def test_versions_that_pip_cannot_read_are_not_among_the_constraints(
    install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, version in (("good", "2.1.2+cu121"), ("rc", "1.0rc1.dev3"), ("bad", "master"), ("nameless", "")):
        metadata = tmp_path / f"{name}.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Name: {name}\nVersion: {version}\n")
    found = list(importlib.metadata.distributions(path=[str(tmp_path)]))
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: found)
    assert install.installed_versions() == ["good==2.1.2+cu121", "rc==1.0rc1.dev3"]


# demo and test


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with install.py, pins that every .venv satisfies, and a stand-in for the demo."""
    folder = tmp_path_factory.mktemp("a home with spaces")
    shutil.copy(ROOT / "install.py", folder)
    (folder / "requirements").mkdir()
    (folder / "requirements" / "demo.txt").write_text("pip\n")
    (folder / "requirements" / "ui.txt").write_text("-r demo.txt\npip<1000\n")
    (folder / "requirements" / "test.txt").write_text("-r ui.txt\nsetuptools-that-is-nowhere==0\n")
    package = folder / "lib_custom_diffusion"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(
        "import os, sys\nprint('demo', sys.prefix, os.getcwd(), sys.argv[1:])\nsys.exit(7)\n"
    )
    return folder


def call(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(home / "install.py"), *arguments],
        cwd=home.parent,
        env=OFFLINE,
        capture_output=True,
        text=True,
        check=False,
    )


def test_demo_sets_up_once_passes_arguments_on_and_repairs_what_was_interrupted(home: Path) -> None:
    ran = f"demo {home / '.venv'} {home.parent} {['demo', '--output', 'a b', '*']}"
    arguments = ("demo", "--output", "a b", "*")

    first = call(home, *arguments)
    assert first.returncode == 7, first.stderr
    assert first.stdout.splitlines()[-1] == ran
    assert "Requirement already satisfied: pip" in first.stdout

    started = time.monotonic()
    second = call(home, *arguments)
    assert (second.returncode, second.stdout.splitlines()) == (7, [ran])
    assert time.monotonic() - started < 5

    interrupted = home / ".venv" / "installed-for-demo"
    interrupted.unlink()
    third = call(home, *arguments)
    assert (third.returncode, third.stdout.splitlines()[-1]) == (7, ran)
    assert "Requirement already satisfied: pip" in third.stdout
    assert "Making" not in third.stdout

    (home / "requirements" / "demo.txt").write_text("pip>1\n")
    assert "Requirement already satisfied: pip>1" in call(home, *arguments).stdout

    failed = call(home, "test")
    assert failed.returncode == 1
    assert "setuptools-that-is-nowhere" in failed.stderr
    assert failed.stderr.splitlines()[-1].endswith("the same command goes on from here.")
    assert not interrupted.exists()

    shutil.rmtree(next((home / ".venv").rglob("site-packages")))
    last = call(home, *arguments)
    assert (last.returncode, last.stdout.splitlines()[-1]) == (7, ran)
    assert "Making" in last.stdout


def test_what_serves_the_page_serves_the_demo_and_not_the_other_way_round(home: Path) -> None:
    ran = f"demo {home / '.venv'} {home.parent} {['ui', '--port', '0']}"
    call(home, "demo")
    first = call(home, "ui", "--port", "0")
    assert (first.returncode, first.stdout.splitlines()[-1]) == (7, ran), first.stderr
    assert "Installing what `ui` needs" in first.stdout
    assert call(home, "ui", "--port", "0").stdout.splitlines() == [ran]
    assert len(call(home, "demo").stdout.splitlines()) == 1


def test_without_a_suitable_python_one_sentence_says_what_to_do(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "python_version", lambda command, needs: (3, 13))
    monkeypatch.setattr(sys, "version_info", (3, 13, 0))
    with pytest.raises(
        SystemExit, match=r"^This needs Python 3\.10, 3\.11 or 3\.12 .* found only Python 3\.13"
    ) as error:
        install.find_python()
    assert "install Python 3.11 from https://www.python.org/downloads/" in str(error.value)


def test_a_suitable_python_is_found_where_the_running_one_is_not(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"python3.10": (3, 10), "python3.12": (3, 12), "py": None}
    monkeypatch.setattr(install, "python_version", lambda command, needs: versions.get(command[0], (3, 9)))
    monkeypatch.setattr(install, "WINDOWS", False)
    assert install.find_python() == ["python3.10"]


def test_on_windows_the_py_launcher_is_asked(install: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        install, "python_version", lambda command, needs: (3, 12) if command == ["py", "-3.12"] else None
    )
    monkeypatch.setattr(install, "WINDOWS", True)
    assert install.find_python() == ["py", "-3.12"]


def test_a_venv_of_an_unsupported_python_is_left_alone(install: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "python_version", lambda command, needs: (3, 14))
    with pytest.raises(SystemExit, match=r"holds Python 3\.14, but this needs 3\.10, 3\.11 or 3\.12: delete"):
        install.make_venv()


def test_python_version_reads_the_version_and_refuses_what_lacks_a_module(install: ModuleType) -> None:
    assert install.python_version([sys.executable], needs="venv") == sys.version_info[:2]
    assert install.python_version([sys.executable], needs="no_such_module") is None
    assert install.python_version(["no-such-python"], needs="venv") is None


def test_old_pythons_can_read_install_py() -> None:
    ast.parse((ROOT / "install.py").read_text(encoding="utf-8"), feature_version=(3, 7))


@pytest.mark.parametrize(
    ("platform", "gpu", "reachable", "expected"),
    [
        ("linux", False, True, ["--extra-index-url", "https://download.pytorch.org/whl/cpu"]),
        ("linux", False, False, []),
        ("linux", True, True, []),
        ("darwin", False, True, []),
        ("win32", False, True, []),
    ],
)
def test_the_cpu_build_is_taken_on_a_linux_without_gpu_whose_index_answers(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch, platform: str, gpu: bool, reachable: bool, expected: list[str]
) -> None:
    monkeypatch.setattr(install.sys, "platform", platform)
    monkeypatch.setattr(install.shutil, "which", lambda name: "nvidia-smi" if gpu else None)
    monkeypatch.setattr(install.Path, "exists", lambda self: gpu)
    monkeypatch.setattr(install, "answers", lambda address: reachable)
    assert install.torch_options() == expected


def test_an_index_that_hangs_counts_as_unreachable(install: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install.urllib.request, "urlopen", lambda *_, **__: time.sleep(5) or io.BytesIO())
    started = time.monotonic()
    assert install.answers("https://example.invalid", seconds=0.1) is False
    assert time.monotonic() - started < 3


def test_pins_of_the_demo_are_exact_and_the_tests_build_on_them() -> None:
    demo = (ROOT / "requirements" / "demo.txt").read_text().splitlines()
    pins = [line for line in demo if not line.startswith("#")]
    assert all(len(line.split("==")) == 2 for line in pins)
    assert "-r demo.txt" in (ROOT / "requirements" / "ui.txt").read_text().splitlines()
    assert "-r ui.txt" in (ROOT / "requirements" / "test.txt").read_text().splitlines()
