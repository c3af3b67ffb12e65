"""`info` says of any file what it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lib_custom_diffusion.delta import Delta, Provenance
from lib_custom_diffusion.standalone import cli
from lib_custom_diffusion.ui.inspection import report_html

LAYER = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
PAIR = {f"{LAYER}.lora_up.weight": torch.ones(4, 2), f"{LAYER}.lora_down.weight": torch.ones(2, 8)}


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (PAIR, [": a LoRA,", "1 layer, with", "4×8 rank 2"]),
        ({**PAIR, f"{LAYER}.dora_scale": torch.ones(1, 8)}, [": a DoRA,", "depends on the weights of its model"]),
        ({**PAIR, "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha": torch.ones(1)}, ["1 of the text encoder"]),
        ({f"{LAYER}.lokr_w1": torch.ones(2, 2), f"{LAYER}.lokr_w2": torch.ones(2, 4)}, [": a LoKr,", "4×8"]),
        ({"<cat>": torch.ones(2, 8)}, [": an embedding,", "word <cat>: 2 vectors of 8 numbers"]),
    ],
)
def test_foreign_files_are_described(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tensors: dict[str, torch.Tensor], said: list[str]
) -> None:
    save_file(tensors, tmp_path / "a b.SAFETENSORS")
    assert cli.main(["info", str(tmp_path / "a b.SAFETENSORS")]) == 0
    printed = capsys.readouterr().out
    assert all(part in printed for part in said), printed


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    save_file(PAIR, tmp_path / "a.safetensors")
    piped = f"{sys.executable} -m lib_custom_diffusion info {tmp_path / 'a.safetensors'} | true"
    assert subprocess.run(piped, shell=True, capture_output=True, text=True, check=True).stderr == ""


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"<html>", "web page"), (b"", "is empty"), (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer")],
)
def test_what_is_none_of_them_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, said: str
) -> None:
    (tmp_path / "a.delta.safetensors").write_bytes(content)
    assert cli.main(["info", str(tmp_path / "a.delta.safetensors")]) == 2
    printed = capsys.readouterr().err
    assert said in printed and printed.count("\n") == 1


@pytest.mark.parametrize("asked", ["mug", "mugs.delta.safetensors", "MUG.delta.safetensors"])
def test_a_file_of_nearly_that_name_is_suggested(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: str
) -> None:
    (tmp_path / "mug.delta.safetensors").touch()
    (tmp_path / "cat.delta.safetensors").touch()
    for command in (["info"], ["compress", "--rank", "4"], ["merge", "--output", str(tmp_path / "new.safetensors")]):
        assert cli.main([command[0], str(tmp_path / asked), *command[1:]]) == 2
        assert capsys.readouterr().err.endswith(". Did you mean mug.delta.safetensors?\n")


def test_words_of_two_text_encoders_are_told_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for architecture, made_for, said in (
        ("crossattn-14x256", "toy model of SDXL's layout", "of 128 and 128 numbers, a kind of cat"),
        ("sdxl", "SDXL", "of 768 and 1280 numbers, a kind of cat"),
    ):
        width = {"sdxl": 2048}.get(architecture, 256)
        origin = Provenance(architecture, "ab", {"<new1>": "cat"}, 3)
        Delta({}, {"<new1>": torch.ones(2, width)}, origin).save(tmp_path / "a.delta.safetensors")
        assert cli.main(["info", str(tmp_path / "a.delta.safetensors")]) == 0
        printed = capsys.readouterr().out
        assert f"made for {made_for} " in printed
        assert f"word <new1>: 2 vectors for each of two text encoders, {said}" in printed
        page = report_html(tmp_path / "a.delta.safetensors")
        assert f"2 × {width // 2 if width == 256 else 768} and 2 × " in page


def test_a_delta_is_called_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Delta({}, {"<new1>": torch.ones(1, 4)}).save(tmp_path / "a.delta.safetensors")
    assert cli.main(["info", str(tmp_path / "a.delta.safetensors")]) == 0
    assert "a.delta.safetensors: a delta, " in capsys.readouterr().out
