"""Every flag of every command, as the parser has them, with values that it cannot have: one line, nothing written."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from lib_custom_diffusion.delta import Delta, Provenance
from lib_custom_diffusion.standalone import cli, demo
from lib_custom_diffusion.standalone.models import load_model
from lib_custom_diffusion.storage import given_path

KEY = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
BASE = {
    "demo": [],
    "train": ["--model", "nowhere", "--instance_data_dir", "pictures", "--instance_prompt", "a <new1> cat"],
    "generate": ["--model", "nowhere", "--prompt", "a cat"],
    "regularize": ["--model", "nowhere", "--class_prompt", "cat"],
    "evaluate": ["--model", "nowhere", "--clip", "nowhere", "--delta", "a.delta.safetensors", "--instance_data_dir",
                 "pictures", "--prompts", "text"],
    "info": [],
    "compress": ["--rank", "1"],
    "blend": ["--output", "new.delta.safetensors"],
    "merge": ["--output", "new.delta.safetensors"],
    "rename": ["--output", "new.delta.safetensors"],
    "convert": ["--output", "new.delta.safetensors"],
    "ui": ["--model", "nowhere"],
}  # fmt: skip
"""What each command is given beside the flag: all that it needs, and something at which it ends before it works."""
POSITIONAL = {"file": "nowhere", "files": "nowhere", "old": "<new1>", "new": "<cat>"}
"""The same, of what is no flag; of these one is put in the place of another."""
NUMBERS = ["", "nan", "inf", "1e400", "x" * 5000]
"""What no number of any flag is."""
TEXTS = ["", "\0", "\udcff", "x" * 5000, "a\nb"]
PATHS = [*TEXTS, ".", "text", "text/below", "pictures", "~nobody-at-all", "missing", "pipe", "pipe.json", "/dev/zero"]


def commands() -> dict[str, argparse.ArgumentParser]:
    return next(each for each in cli.parser()._actions if isinstance(each, argparse._SubParsersAction)).choices


def values(action: argparse.Action) -> list[str]:
    if action.type in (int, float) or action.choices is not None:
        return NUMBERS
    return PATHS if action.type is given_path else TEXTS


@pytest.mark.parametrize("command", commands())
def test_help_tells_what_a_flag_is_where_it_is_not_given_once_and_no_more(command: str) -> None:
    parser = commands()[command]
    formatter = parser._get_formatter()
    for action in parser._actions:
        told = formatter._expand_help(action) if action.help not in (None, argparse.SUPPRESS) else ""
        assert told.count("(default") + ("not given" in told) + ("neither is given" in told) <= 1
        assert not any(each in told for each in ("None", "False", "default: )", "[]"))


FLAGS = [
    (command, action.option_strings[0] if action.option_strings else action.dest)
    for command, parser in commands().items()
    for action in parser._actions
    if action.nargs != 0
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flags")
    (folder / "pictures").mkdir()
    Image.new("RGB", (64, 64), "red").save(folder / "pictures" / "a.png")
    (folder / "text").write_text("plain text")
    word = {"<new1>": torch.ones(1, 6)}
    Delta({KEY: torch.ones(4, 6)}, word, Provenance("crossattn-1x6")).save(folder / "a.delta.safetensors")
    if hasattr(os, "mkfifo"):  # or there is nothing by that name
        os.mkfifo(folder / "pipe")
        os.mkfifo(folder / "pipe.json")
    return folder


def given(command: str, flag: str, value: str) -> list[str]:
    """The command with the flag, or with the value in the place of what is no flag."""
    positional = {each.dest: POSITIONAL[each.dest] for each in commands()[command]._actions if not each.option_strings}
    if flag in ("old", "new"):
        positional["file"] = "a.delta.safetensors"
    flags = [f"{flag}={value}"] if flag.startswith("-") else []
    values = [value if name == flag else usual for name, usual in positional.items()]
    return [command, *BASE[command], *flags, *(["--", *values] if values else [])]


def test_all_commands_are_here() -> None:
    assert set(BASE) == set(commands())


@pytest.mark.parametrize(("command", "flag"), FLAGS)
def test_what_a_flag_cannot_be_is_told_in_one_line(
    command: str, flag: str, prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(prepared)
    monkeypatch.setattr(demo, "load_model", lambda name: load_model("nowhere"))
    before = sorted(prepared.rglob("*"))
    action = next(each for each in commands()[command]._actions if flag in (*each.option_strings, each.dest))
    for value in values(action):
        status = cli.main(given(command, flag, value))
        said = capsys.readouterr().err
        assert (status, said.count("\n")) == (2, 1) and said.startswith("error: "), (value[:20], said)
        assert len(said) < 700, said
        if values(action) is NUMBERS:
            assert flag.removeprefix("--") in said, (value[:20], said)
        assert sorted(prepared.rglob("*")) == before, value[:20]


@pytest.mark.parametrize(
    ("command", "flag"),
    [("train", "--output_dir"), ("generate", "--output"), ("regularize", "--class_data_dir"), ("evaluate", "--output")],
)
def test_where_nothing_can_be_written_is_told_before_the_model_is_asked_for(
    command: str, flag: str, prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of them name a model that is not there, which would be told next."""
    monkeypatch.chdir(prepared)
    for value, said in (("text/below", "cannot write to text/below"), ("", f"{flag} is empty; give a path")):
        assert cli.main(given(command, flag, value)) == 2
        assert said in capsys.readouterr().err
