"""Files of settings mean what the same flags mean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.standalone.cli import parser
from lib_custom_diffusion.standalone.settings_file import as_flags, read_settings
from lib_custom_diffusion.standalone.train_flags import settled

TOML = """
instance_prompt = "photo of a <new1> cat"
modifier_token = ["<new1>", "<new2>"]
[training]  # sections count for nothing
max_train_steps = 250
learning_rate = 1e-5
train_blocks = ["mid", "up"]
hflip = true
noaug = false
"""
YAML = """
instance_prompt: photo of a <new1> cat
modifier_token: [<new1>, <new2>]
training:
  max_train_steps: 250
  learning_rate: 1e-5
  train_blocks: [mid, up]
  hflip: true
  noaug: false
  template: null
"""
FLAGS = [
    "--instance_prompt=photo of a <new1> cat", "--modifier_token=<new1>+<new2>", "--max_train_steps=250",
    "--learning_rate=1e-05", "--train_blocks=mid,up", "--hflip", "--noaug=False",
]  # fmt: skip


def written(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return path


@pytest.mark.parametrize(("name", "content"), [("a.toml", TOML), ("a.yaml", YAML), ("A.YML", YAML)])
def test_toml_and_yaml_are_the_same_flags(tmp_path: Path, name: str, content: str) -> None:
    flags = as_flags(read_settings(written(tmp_path, name, content)), {"hflip", "noaug"})
    assert [flag.replace("=1e-5", "=1e-05") for flag in flags] == FLAGS


def test_the_record_of_a_run_is_read_without_what_it_says_of_that_run(tmp_path: Path) -> None:
    record = {"model": "toy", "checkpoint": "0123", "library_version": "1", "overwrite": True, "seed": 1, "rank": None}
    settings = read_settings(written(tmp_path, "config.json", json.dumps(record)))
    assert settings == {"model": "toy", "library_version": "1", "seed": 1}
    asked = {"overwrite": True, "seed": 1}  # written by hand
    assert read_settings(written(tmp_path, "mine.json", json.dumps(asked))) == asked


def test_a_record_of_a_newer_version_is_told_as_that(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    command = parser()._subparsers._group_actions[0].choices["train"]  # type: ignore[union-attr]

    def flags(version: str, **more: object) -> list[str]:
        record = {"model": "toy", "library_version": version, "seed": 1, **more}
        return settled(["--config", str(written(tmp_path, "config.json", json.dumps(record)))], command)

    newer = "version 0.2.0 of Custom Diffusion wrote it, and this is 0.1.0; update this one"
    with pytest.raises(UserError, match=rf"'bend', which is not a setting; {newer}$"):
        flags("0.2.0", bend=1)
    with pytest.raises(UserError, match=r"'bend', which is not a setting; .* of the flags"):
        flags("0.1.0", bend=1)
    assert flags("0.1.0")[:2] == flags("0.2.0")[:2] == ["--model=toy", "--seed=1"]
    assert caplog.messages == [f"{tmp_path / 'config.json'} has settings that may mean something else here: {newer}"]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.toml", "seed = ", "a.toml is damaged or of another kind"),
        ("a.yaml", "a: [", "a.yaml is damaged or of another kind"),
        ("a.json", "{", "a.json is damaged or of another kind"),
        ("a.txt", "seed = 1", "must end in .toml, .yaml or .json"),
        ("a.yaml", "just words", "a.yaml has no settings"),
        ("a.toml", "seed = 1\n[b]\nseed = 2", "a.toml says seed twice"),
        ("a.yaml", "seed: 1\nrank: 2\nseed: 3", "it says seed twice"),
        ("a.yaml", "training:\n  seed: 1\n  'seed': 1", "it says seed twice"),
        ("a.yaml", "concepts:\n- {class_prompt: a, class_prompt: b}", "it says class_prompt twice"),
        ("a.json", '{"seed": 1, "a": [{"rank": 1, "rank": 2}]}', "it says rank twice"),
        ("a.toml", "config = 'other.toml'", "a.toml has config, which a file of settings cannot name"),
        ("a.yaml", "training: {help: true}", "a.yaml has help, which is for the command line alone"),
    ],
)
def test_other_files_are_refused_in_one_sentence(tmp_path: Path, name: str, content: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as told:
        read_settings(written(tmp_path, name, content))
    assert "\n" not in str(told.value)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_settings(tmp_path / "gone.toml")


def test_whole_numbers_may_be_written_as_others(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("max_train_steps = 2e2\nsnr_gamma = 5.0\nnoise_offset = 0.05\nseed = -0.0")
    flags = as_flags(read_settings(tmp_path / "a.toml"), set())
    assert flags == ["--max_train_steps=200", "--snr_gamma=5", "--noise_offset=0.05", "--seed=0"]


def test_values_that_no_flag_has_are_refused() -> None:
    with pytest.raises(UserError, match="hflip is on or off: write true or false, not 1"):
        as_flags({"hflip": 1}, {"hflip"})
    with pytest.raises(UserError, match="seed must be a number or a text, not True"):
        as_flags({"seed": True}, {"hflip"})
    with pytest.raises(UserError, match=r"model must be a number or a text, not \[\{'a': 1\}\]"):
        as_flags({"model": [{"a": 1}]}, {"hflip"})


def test_maps_that_are_merged_may_say_again_what_they_take_over(tmp_path: Path) -> None:
    content = "a: &base {seed: 1, rank: 2}\nb:\n  <<: *base\n  name: cat"
    with pytest.raises(UserError, match="says seed twice"):  # of two sections, not of one
        read_settings(written(tmp_path, "a.yaml", content))
    assert read_settings(written(tmp_path, "b.yaml", "concepts:\n- {<<: {seed: 1, rank: 2}, seed: 3}")) == {
        "concepts": [{"seed": 3, "rank": 2}]
    }
