"""Every action of Utilities refuses every broken file with one sentence, and loses and leaves nothing."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from damaged_files import Trap, example
from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.storage import safetensors_bytes
from lib_custom_diffusion.ui.sections import SECTIONS
from lib_custom_diffusion.ui.utilities import Action, Host, Lists, add_utilities
from page import Part, parts
from tiny import TinyBackend

SUFFIX = ".delta.safetensors"
GOOD = example().to_bytes()


def stating(metadata: str) -> bytes:
    return safetensors_bytes({}, {"json": '{"entries": {}}', "custom_diffusion": metadata})


BAD: dict[str, Any] = {
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
    "a web page": b"<!DOCTYPE html><html>404</html>",
    "torn": GOOD[: len(GOOD) // 2],
    "torn in its header": GOOD[:50],
    "empty": b"",
    "of one byte": b"x",
    "code": pickle.dumps(Trap()),
    "infinite steps": stating('{"steps": Infinity}'),
    "deep JSON": stating("[" * 100_000),
    "half a character": stating('{"architecture": "\\udcff"}'),
    "a folder": Path.mkdir,
    "a link to nothing": lambda path: path.symlink_to(path.parent / "nothing"),
}


class Utilities:
    """The page of utilities on a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.actions = folder, {}
        host = Host(folder, lambda _: TinyBackend(), [], {}, self._bind, lambda *_: None, lambda: None, Lists())
        with gr.Blocks() as page:
            add_utilities(host, SECTIONS)
        self.parts: dict[str, Part] = parts(page)

    def _bind(self, action: Action, _results: Any) -> None:
        self.actions[action.button.elem_id] = action

    def press(self, button: str, **entered: Any) -> str:
        """The report. Raises UserError."""
        action = self.actions[button]
        values = [entered.get(part.elem_id, part.value) for part in action.inputs]
        return action.run(lambda *_: None, *values).report


USES: dict[str, Callable[[Utilities, str], Any]] = {
    "compress": lambda page, name: page.press("cd_compress", cd_compress_name=name, cd_compress_weighed=False),
    "blend": lambda page, name: page.press("cd_blend", cd_blend_names=["good", name], cd_blend_result="new"),
    "merge": lambda page, name: page.press("cd_merge", cd_merge_names=["good", name], cd_merge_result="new"),
    "rename": lambda page, name: page.press(
        "cd_rename", cd_rename_name=name, cd_rename_old="<new1>", cd_rename_new="<my>"
    ),
    "convert": lambda page, name: page.press(
        "cd_convert", cd_convert_names=[f"{name}{SUFFIX}"], cd_convert_fits=False, cd_convert_result="new"
    ),
}


def content_of(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("kind", BAD)
def test_broken_files_are_refused_with_a_sentence(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "deltas"
    folder.mkdir()
    (folder / f"good{SUFFIX}").write_bytes(GOOD)
    bad = folder / f"bad{SUFFIX}"
    bad.write_bytes(BAD[kind]) if isinstance(BAD[kind], bytes) else BAD[kind](bad)
    page, before = Utilities(folder), content_of(folder)
    for use, press in USES.items():
        with pytest.raises(UserError) as refused:
            press(page, "bad")
        assert "\n" not in str(refused.value) and len(str(refused.value)) > 10, use
        assert content_of(folder) == before, use
    assert page.parts["cd_inspect"].press(cd_inspect_name="bad")[-1].startswith("<div class='error'>")
    assert [path.name for path in tmp_path.iterdir()] == ["deltas"]  # no code was run


@pytest.mark.parametrize("name", ["<a>", "a:b", 'a"b', "a|b", "a?b*", "a\tb", "😀 cat", "%41", "-rf", "x" * 180, "con"])
def test_sound_files_of_odd_names_are_used(name: str, tmp_path: Path) -> None:
    source = tmp_path / f"{name}{SUFFIX}"
    try:
        source.write_bytes(GOOD)
    except OSError:
        pytest.skip("this system has no such names")
    (tmp_path / f"good{SUFFIX}").write_bytes(GOOD)
    page = Utilities(tmp_path)
    for use in ("compress", "rename", "convert"):
        USES[use](page, name)
    assert source.read_bytes() == GOOD
    made = {path.name for path in tmp_path.rglob("*") if path.is_file()} - {source.name, f"good{SUFFIX}"}
    assert len(made) >= 3 and not [each for each in made if set(each) & set('<>:"|?*\t')]
    [renamed] = [each for each in made if "-renamed" in each or each == f"renamed{SUFFIX}"]
    assert "<my>" in Delta.load(tmp_path / renamed).embeddings
    assert "cd-norm" in page.parts["cd_inspect"].press(cd_inspect_name=name)[-1]
