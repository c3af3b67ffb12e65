"""Who may import whom, read from the source: the core stands alone, the two faces know it and not each other.

What both faces show (ui) is built on the core and on gradio; the core does not know it.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "lib_custom_diffusion"
ROOT = Path(__file__).resolve().parents[1]
LIBRARIES_OF_THE_CORE = {"torch", "safetensors", "numpy", "PIL", "tqdm"}
FACES = {f"{PACKAGE}.standalone", f"{PACKAGE}.webui", f"{PACKAGE}.comfyui"}
SHOWN_BY_BOTH = f"{PACKAGE}.ui"
LIBRARIES_OF_PAGES = {"gradio", "psutil"}


def imports(module: str, source: str, is_package: bool = False) -> Iterator[str]:
    """Full names of all that a module imports, anywhere in it; relative imports resolved."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: None if is_package and node.level == 1 else (is_package - node.level)]
            origin = ".".join(filter(None, [*(above if node.level else []), node.module]))
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def misplaced(module: str, imported: Iterator[str]) -> list[str]:
    """Those imports that the layer of `module` must not have."""
    if module == f"{PACKAGE}.__main__":  # the command line's door, not part of the core
        return [name for name in imported if within(name, {f"{PACKAGE}.webui"})]
    own_face = next((face for face in FACES if within(module, {face})), None)
    if own_face:
        return [name for name in imported if within(name, FACES - {own_face})]
    shown = within(module, {SHOWN_BY_BOTH})
    allowed = LIBRARIES_OF_THE_CORE | set(sys.stdlib_module_names) | (LIBRARIES_OF_PAGES if shown else set())
    not_ours = FACES if shown else FACES | {SHOWN_BY_BOTH}
    return [
        name
        for name in imported
        if within(name, not_ours) or not (within(name, {PACKAGE}) or name.partition(".")[0] in allowed)
    ]


def modules() -> list[Path]:
    return sorted((ROOT / PACKAGE).rglob("*.py"))


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_imports_only_what_its_layer_may(path: Path) -> None:
    parts = path.relative_to(ROOT).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    module = ".".join(parts[:-1] if is_package else parts)
    assert misplaced(module, imports(module, path.read_text(encoding="utf-8"), is_package)) == []


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("delta", "import torch, numpy.linalg\nfrom PIL import Image\nfrom .errors import A\nfrom . import tokens", []),
        ("delta", "def f():\n    import diffusers.utils", ["diffusers.utils"]),
        ("formats.adobe", "from transformers import CLIPTextModel", ["transformers.CLIPTextModel"]),
        ("training", "try:\n    from modules import shared\nexcept ImportError: pass", ["modules.shared"]),
        ("training", "from .standalone import backend", [f"{PACKAGE}.standalone.backend"]),
        ("training", "from . import webui", [f"{PACKAGE}.webui"]),
        ("formats.kohya", "from ..webui.tab import build", [f"{PACKAGE}.webui.tab.build"]),
        ("formats.kohya", f"import {PACKAGE}.standalone", [f"{PACKAGE}.standalone"]),
        ("standalone.cli", "import diffusers\nfrom ..training import Trainer\nfrom .toy import load", []),
        ("standalone.cli", "from ..webui import tab", [f"{PACKAGE}.webui.tab"]),
        ("webui.tab", f"import gradio\nfrom {PACKAGE}.standalone.toy import load", [f"{PACKAGE}.standalone.toy.load"]),
        ("ui.fields", "import gradio, psutil\nfrom ..training import Trainer\nfrom . import page", []),
        ("ui.fields", "import diffusers\nfrom ..webui import tab", ["diffusers", f"{PACKAGE}.webui.tab"]),
        ("training", "import gradio", ["gradio"]),
        ("training", "from .ui.page import error", [f"{PACKAGE}.ui.page.error"]),
        ("__main__", "from .standalone.cli import main", []),
    ],
)
def test_the_rule_itself_finds_what_is_planted(module: str, source: str, expected: list[str]) -> None:
    name = f"{PACKAGE}.{module}"
    assert misplaced(name, imports(name, source)) == expected


def test_no_two_test_files_share_a_name() -> None:
    # pytest imports them by their names alone, and stops at the second
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
