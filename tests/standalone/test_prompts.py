"""What a prompt's delta tags say."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from lib_custom_diffusion.deltas_folder import find_delta
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.standalone.prompts import split_deltas, to_draw


@pytest.mark.parametrize(
    ("tag", "name", "weight"),
    [
        ("cat", "cat", 1.0),
        ("cat:0.5", "cat", 0.5),
        ("cat:-1e-1", "cat", -0.1),
        ("cat:", "cat", 1.0),
        (r"C:\\pets\\cat.delta.safetensors", r"C:\\pets\\cat.delta.safetensors", 1.0),
        (r"C:\\pets\\cat.delta.safetensors:0.5", r"C:\\pets\\cat.delta.safetensors", 0.5),
        ("D:/a b/cat:1", "D:/a b/cat", 1.0),
        ("a:b:0.5", "a:b", 0.5),
        ("a:b:unet=0.5", "a:b", 0.5),
    ],
)
def test_names_may_be_paths_of_windows_and_have_colons(tag: str, name: str, weight: float) -> None:
    assert split_deltas(f"a <new1> cat <delta:{tag}> on grass") == ("a <new1> cat on grass", [(name, weight)])


@pytest.mark.parametrize("tag", ["cat:x", "cat:nan", "cat:inf", "a:b"])
def test_weights_that_are_no_numbers_are_told(tag: str) -> None:
    with pytest.raises(UserError, match="weight should be a number"):
        split_deltas(f"<delta:{tag}>")


@pytest.mark.parametrize("prompt", ["a cat <delta:", "a cat <delta:new1", "<delta:>", "<delta:a:1> and <delta:b:1"])
def test_a_tag_without_an_end_or_a_name_is_no_words(prompt: str) -> None:
    with pytest.raises(UserError, match="a tag <delta: in the prompt has no name or no >"):
        split_deltas(prompt)


@pytest.mark.parametrize("folder", ["a cat", "a>b", "<a>", "a:b=c", "a:0.5", "it's", "50%{}", "-a"])
def test_the_command_to_draw_finds_its_delta_in_any_folder(
    tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    delta = tmp_path / folder / "new1.delta.safetensors"
    delta.parent.mkdir()
    delta.touch()
    told = shlex.split(to_draw("photo of a <new1> cat", delta, "--model", "toy"))
    options = dict(zip(told[4::2], told[5::2], strict=True))
    text, [(name, weight)] = split_deltas(options["--prompt"])
    assert (text, weight, options["--model"]) == ("photo of a <new1> cat", 1.0, "toy")
    assert find_delta(Path(options.get("--deltas_dir", "nowhere")), name, by_path=True) == delta
