"""The command lines of diffusers' guide, flags unchanged but for paths, model, size and steps, end with files that it
loads and draws with.

examples/custom_diffusion/README.md and docs/source/en/training/custom_diffusion.md in diffusers (main, August 2026).
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from hub_stand_in import HubStandIn
from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.injection import Injection
from lib_custom_diffusion.standalone import toy
from lib_custom_diffusion.standalone.cli import main

ONE = """
    --class_data_dir=./real_reg/samples_cat/ --with_prior_preservation --real_prior --prior_loss_weight=1.0
    --class_prompt="cat" --num_class_images=200 --instance_prompt="photo of a <new1> cat" --instance_data_dir=./data/cat
    --resolution=64 --train_batch_size=2 --learning_rate=1e-5 --lr_warmup_steps=0 --max_train_steps=10 --scale_lr
    --hflip --modifier_token "<new1>" --validation_prompt="<new1> cat sitting in a bucket"
"""
SEVERAL = """
    --concepts_list=./concept_list.json --with_prior_preservation --real_prior --prior_loss_weight=1.0 --resolution=64
    --train_batch_size=2 --learning_rate=1e-5 --lr_warmup_steps=0 --max_train_steps=10 --num_class_images=200 --scale_lr
    --hflip --modifier_token "<new1>+<new2>" --push_to_hub
"""
FACE = """
    --instance_data_dir=./path-to-images --class_data_dir=./real_reg/samples_person/ --with_prior_preservation
    --real_prior --prior_loss_weight=1.0 --class_prompt="person" --num_class_images=200
    --instance_prompt="photo of a <new1> person" --resolution=64 --train_batch_size=2 --learning_rate=5e-6
    --lr_warmup_steps=0 --max_train_steps=10 --scale_lr --hflip --noaug --freeze_model crossattn
    --modifier_token "<new1>" --enable_xformers_memory_efficient_attention
"""
ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the guide is followed: pictures, and class pictures as its retrieve.py leaves them."""
    monkeypatch.chdir(tmp_path)
    for name in ("data/cat", "data/wooden_pot", "path-to-images"):
        Path(name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (80, 64), ("red", "blue")[number]).save(f"{name}/{number}.jpg")
    for name in ("cat", "person", "wooden_pot"):
        images = Path("real_reg", f"samples_{name}", "images")
        images.mkdir(parents=True)
        paths = [images / f"{number}.jpg" for number in range(3)]
        for path in paths:
            Image.new("RGB", (72, 72), "gray").save(path)
        (images.parent / "images.txt").write_text("".join(f"{path}\n" for path in paths))
        (images.parent / "caption.txt").write_text("".join(f"a {name} {n}\n" for n in range(3)))
        (images.parent / "urls.txt").write_text("https://example.org\n" * 3)
    concepts = [
        {"instance_prompt": f"photo of a <new{number}> {name}", "class_prompt": name.replace("_", " "),
         "instance_data_dir": f"./data/{name}", "class_data_dir": f"./real_reg/samples_{name}/"}
        for number, name in ((1, "cat"), (2, "wooden_pot"))
    ]  # fmt: skip
    Path("concept_list.json").write_text(json.dumps(concepts))
    return tmp_path


def trained(guide: str, *more: str) -> list[str]:
    return [
        "train",
        "--pretrained_model_name_or_path=toy",
        "--output_dir=path-to-save-model",
        *shlex.split(guide),
        *more,
    ]


def check_in_diffusers(words: list[str], ends: str, prompt: str) -> None:
    """Load what a training left as the guide does, and draw the guide's prompt with its settings, in fewer steps."""
    saved = Path("path-to-save-model")
    [file] = saved.glob("*.delta.safetensors")
    delta, ours, theirs = Delta.load(file), toy.load(), toy.load()
    latents, text = torch.randn(1, 4, 8, 8), torch.randn(1, 77, theirs.unet.config.cross_attention_dim)
    name = f"pytorch_custom_diffusion_weights.{ends}"
    theirs.unet.load_attn_procs(str(saved), weight_name=name, _pipeline=theirs)
    with torch.no_grad():
        drawn = theirs.unet(latents, 5, text).sample
        plain = ours.unet(latents, 5, text).sample
        with Injection(ours.unet, [(delta, 1.0)]):
            torch.testing.assert_close(drawn, ours.unet(latents, 5, text).sample, atol=1e-4, rtol=1e-4)
    assert not torch.equal(drawn, plain)
    for word in words:
        theirs.load_textual_inversion(str(saved), weight_name=f"{word}.{ends}")
        vector = theirs.text_encoder.get_input_embeddings().weight[theirs.tokenizer.convert_tokens_to_ids(word)]
        torch.testing.assert_close(vector, delta.embeddings[word][0].float(), atol=1e-3, rtol=1e-3)
    assert set(delta.embeddings) == set(words)
    [picture] = theirs(
        prompt, num_inference_steps=4, guidance_scale=6.0, eta=1.0, height=64, width=64,
        generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip
    assert picture.size == (64, 64)
    assert len(picture.getcolors(64 * 64)) > 100  # one that is not a number anywhere is black


def test_one_concept_by_accelerate_launch(folder: Path) -> None:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "-m", "lib_custom_diffusion"]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    subprocess.run([*launch, *trained(ONE)], check=True, env={**os.environ, "PYTHONPATH": paths})
    check_in_diffusers(["<new1>"], "safetensors", "<new1> cat sitting in a bucket")


def test_several_concepts(folder: Path, hub: HubStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """As .bin, which is what the guide loads, and from where `huggingface-cli login` left a token."""
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert main(trained(SEVERAL, "--no_safe_serialization")) == 0
    check_in_diffusers(["<new1>", "<new2>"], "bin", "the <new1> cat sculpture in the style of a <new2> wooden pot")
    put = hub.repositories["me/path-to-save-model"]
    assert {"pytorch_custom_diffusion_weights.bin", "<new1>.bin", "<new2>.bin", "README.md"} <= set(put)


def test_a_face(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(trained(FACE)) == 0
    assert "--enable_xformers_memory_efficient_attention is not needed" in capsys.readouterr().out
    check_in_diffusers(["<new1>"], "safetensors", "photo of a <new1> person")


def test_only_who_writes_the_scripts_flag_gets_the_scripts_files(model: Path, folder: Path) -> None:
    flags = ["--instance_data_dir=data/cat", "--instance_prompt=a <new1> cat", "--max_train_steps=1", "--prior=none"]
    assert main(["train", f"--model={model}", *flags]) == 0
    assert not list(Path("custom-diffusion-model").glob("*custom_diffusion_weights*"))


def test_pivotal_tuning_of_sdxl_by_the_flags_of_the_table_names_each_file_once(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """docs/coming-from.md, what it says of diffusers' advanced SDXL script."""
    flags = (
        "--instance_data_dir=data/cat --instance_prompt='photo of a <new1> cat' --modifier_token '<new1>' --rank=4"
        " --vectors_per_token=2 --learning_rate=1e-4 --embedding_learning_rate=1e-3 --max_train_steps=1 --prior=none"
        " --train_batch_size=1 --resolution=64"
    )
    assert main(["train", "--pretrained_model_name_or_path=toy-xl", "--output_dir=out", *shlex.split(flags)]) == 0
    wrote = [line for line in capsys.readouterr().out.splitlines() if line.startswith("wrote ")]
    names = ["new1.delta.safetensors", "new1.safetensors", "pytorch_custom_diffusion_weights.safetensors"]
    assert [Path(line.removeprefix("wrote ")).name for line in wrote] == names
