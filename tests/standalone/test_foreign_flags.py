"""Flags of kohya's and the advanced SDXL script, and mistyped ones: one sentence that says what to write instead."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from lib_custom_diffusion.standalone import cli, foreign_flags

# As in the guides of sd-scripts (docs/train_network.md) and diffusers (advanced_diffusion_training/README.md).
KOHYA = """train --pretrained_model_name_or_path=model.safetensors --train_data_dir=data --output_dir=out
    --output_name=cat --save_model_as=safetensors --max_train_steps=400 --learning_rate=1e-4 --optimizer_type=AdamW8bit
    --xformers --mixed_precision=fp16 --cache_latents --gradient_checkpointing --network_module=networks.lora
    --network_dim 16"""
ADVANCED = """train --pretrained_model_name_or_path=base --pretrained_vae_model_name_or_path=vae --dataset_name=./data
    --instance_prompt=TOK --token_abstraction=TOK --train_text_encoder_ti --train_text_encoder_ti_frac=0.5
    --text_encoder_lr=1.0 --optimizer=prodigy --prodigy_safeguard_warmup=True --repeats=1 --rank=32 --snr_gamma=5.0"""


def told(arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(arguments.split()) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def test_all_flags_of_kohyas_users_are_answered_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    said = told(KOHYA, capsys)
    assert (
        "for --train_data_dir write --instance_data_dir; for --output_name write --name; leave --save_model_as" in said
    )
    assert "for --network_dim write --rank" in said and "leave --xformers out, as PyTorch's own" in said
    assert "--mixed_precision" not in said and "16" not in said


def test_all_flags_of_the_advanced_scripts_users_are_answered_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    said = told(ADVANCED, capsys)
    assert "for --token_abstraction write --modifier_token" in said
    assert "leave --train_text_encoder_ti_frac out, as new words are always learned" in said
    assert "for --text_encoder_lr write --embedding_learning_rate" in said and "--snr_gamma" not in said


def test_what_is_to_be_written_instead_is_a_flag_of_train() -> None:
    commands = next(each for each in cli.parser()._actions if isinstance(each, argparse._SubParsersAction)).choices
    flags = commands["train"]._option_string_actions
    for new in foreign_flags._RENAMED.values():
        flag, _, value = new.partition(" ")
        assert flag in flags and (not value or value in flags[flag].choices), new


def test_a_mistyped_flag_is_told_with_the_one_that_may_be_meant(capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no --lerning_rate; did you mean --learning_rate?" in told("train --lerning_rate 1", capsys)
    assert "there is no --zzz; --help lists all flags" in told("train --zzz", capsys)
    assert "'cats' stands alone" in told("train cats", capsys)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [("", "required: COMMAND"), ("trian", "'trian'"), ("train --seed=x", "invalid int value: 'x'")],
)
def test_other_mistakes_are_one_line_too(arguments: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = told(arguments, capsys)
    assert said in line and re.search(r"--help lists all there is$", line)


def test_a_file_of_kohyas_settings_is_answered_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "lora.toml"
    file.write_text('[network]\nnetwork_dim = 8\n[data]\ntrain_data_dir = "x"\nseed = 1\n')
    said = told(f"train --config {file}", capsys)
    assert "has settings of another program: for --network_dim write --rank; for --train_data_dir write" in said


def test_optimizers_may_be_written_as_elsewhere() -> None:
    assert cli._parsed(["train", "--optimizer", "AdamW8bit"]).optimizer == "adamw8bit"
