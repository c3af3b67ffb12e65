"""The stand-in is like the real WebUI: run with WEBUI_DIR pointing to one (v1.10.1)."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

STAND_IN = Path(__file__).parent / "stand_in" / "modules"
WEBUI = os.environ.get("WEBUI_DIR")
needs_webui = pytest.mark.skipif(not WEBUI, reason="WEBUI_DIR is not set")
Function = ast.FunctionDef | ast.AsyncFunctionDef
ELSEWHERE = {"shared.State": "shared_state.py"}
"""What the real module only passes on."""


def functions(path: Path) -> Iterator[tuple[str, Function]]:
    """Functions of a module and methods of its classes, by qualified name."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, Function):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from ((f"{node.name}.{each.name}", each) for each in node.body if isinstance(each, Function))


def classes(path: Path) -> dict[str, ast.ClassDef]:
    return {
        node.name: node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)
    }


def stand_ins() -> list[tuple[Path, str]]:
    own = [(path.relative_to(STAND_IN), name) for path in sorted(STAND_IN.rglob("*.py")) for name, _ in functions(path)]
    return [(path, name) for path, name in own if not name.rpartition(".")[2].startswith("_")]


def parameters(function: Function) -> list[str]:
    arguments = function.args
    return [each.arg for each in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]]


@needs_webui
@pytest.mark.parametrize(("path", "name"), stand_ins(), ids=lambda value: str(value))
def test_every_stand_in_takes_what_the_real_one_takes(path: Path, name: str) -> None:
    holder = f"{path.with_suffix('').as_posix().replace('/', '.')}.{name.partition('.')[0]}"
    real = dict(functions(Path(WEBUI, "modules", ELSEWHERE.get(holder, path))))
    assert name in real, f"the WebUI has no {name} in {path}"
    assert parameters(dict(functions(STAND_IN / path))[name]) == parameters(real[name])


@needs_webui
def test_pictures_take_the_settings_that_we_give_them() -> None:
    real = classes(Path(WEBUI, "modules/processing.py"))
    known = {
        each.target.id
        for name in ("StableDiffusionProcessing", "StableDiffusionProcessingTxt2Img")
        for each in real[name].body
        if isinstance(each, ast.AnnAssign)
    }
    own = dict(functions(STAND_IN / "processing.py"))["StableDiffusionProcessingTxt2Img.__init__"]
    assert set(parameters(own)) - {"self"} <= known


@needs_webui
def test_options_and_flags_that_we_read_are_the_hosts() -> None:
    from modules import shared

    declared = Path(WEBUI, "modules/shared_options.py").read_text(encoding="utf-8")
    declared = declared.replace("'", '"')
    assert [name for name in [*vars(shared.opts), "emphasis"] if f'"{name}"' not in declared] == []
    declaring = ("modules/cmd_args.py", "extensions-builtin/Lora/preload.py")
    flags = "".join(Path(WEBUI, path).read_text(encoding="utf-8") for path in declaring)
    ours = {"deltas_dir"}
    assert [
        name for name in vars(shared.cmd_opts) if f'"--{name.replace("_", "-")}"' not in flags and name not in ours
    ] == []


@needs_webui
def test_prompts_have_the_hosts_weights() -> None:
    from modules.prompt_parser import parse_prompt_attention

    source = Path(WEBUI, "modules/prompt_parser.py").read_text(encoding="utf-8")
    real: dict[str, Any] = {"re": re}
    exec(source[source.index("re_attention =") : source.index("if __name__")], real)
    random = Random(0)
    pieces = [*"()[]()[]:,", "\\", "\\(", "\\]", ":1.2)", ": .5 )", ":-2)", " BREAK ", "BREAKS", " a cat", "\n"]
    for _ in range(3000):
        prompt = "".join(random.choices(pieces, k=random.randrange(12)))
        assert parse_prompt_attention(prompt) == real["parse_prompt_attention"](prompt), prompt


@needs_webui
def test_the_host_remembers_values_apart_by_the_source_that_we_give_our_fields() -> None:
    """Our labels are those of its Train tab; see `train_tab._remembered_apart`."""
    source = Path(WEBUI, "modules/ui_loadsave.py").read_text(encoding="utf-8")
    assert 'key = f"customscript/{obj.custom_script_source}/{key}"' in source


@needs_webui
def test_the_attention_that_we_train_with_is_one_of_the_hosts() -> None:
    from lib_custom_diffusion.webui.host_state import _ATTENTION

    source = Path(WEBUI, "modules/sd_hijack_optimizations.py").read_text(encoding="utf-8")
    name, _, label = _ATTENTION.partition(" - ")
    assert f'name = "{name}"' in source and f'label = "{label}"' in source


@needs_webui
def test_what_we_read_of_the_queue_is_the_hosts() -> None:
    from modules import progress

    source = Path(WEBUI, "modules/progress.py").read_text(encoding="utf-8")
    read = [name for name, value in vars(progress).items() if not name.startswith("_") and not callable(value)]
    assert len(read) == 4 and [name for name in read if f"\n{name} = " not in source] == []
    assert "recorded_results.append((id_task, res))" in source


@needs_webui
def test_a_training_is_found_in_the_hosts_own_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    from lib_custom_diffusion.webui import reopened_page

    spec = importlib.util.spec_from_file_location("host_progress", Path(WEBUI, "modules/progress.py"))
    queue = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(queue)
    monkeypatch.setattr(reopened_page, "progress", queue)
    task = queue.create_task_id(reopened_page.JOB)
    queue.add_task_to_queue(task)
    assert reopened_page.trainings()["running"] == task
    queue.start_task(task)
    assert reopened_page.trainings()["running"] == task
    queue.record_results(task, ("told",))
    queue.finish_task(task)
    assert reopened_page.trainings()["running"] == "" and reopened_page.came_of(task) == ("told",)
