"""The command lines of diffusers' guide, flags unchanged but for paths, size and steps, end with files that it loads.

examples/custom_diffusion/README.md in diffusers (main, September 2025).
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image

from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.injection import Injection
from lib_custom_diffusion.standalone.cli import main
from lib_custom_diffusion.standalone.models import load_model
from tiny_pipeline import stable_diffusion_2

ONE = """
    --class_data_dir=./real_reg/samples_cat/ --with_prior_preservation --real_prior --prior_loss_weight=1.0
    --class_prompt="cat" --num_class_images=200 --instance_prompt="photo of a <new1> cat" --instance_data_dir=./data/cat
    --resolution=64 --train_batch_size=2 --learning_rate=1e-5 --lr_warmup_steps=0 --max_train_steps=2 --scale_lr
    --hflip --modifier_token "<new1>" --validation_prompt="<new1> cat sitting in a bucket"
"""
SEVERAL = """
    --concepts_list=./concept_list.json --with_prior_preservation --real_prior --prior_loss_weight=1.0 --resolution=64
    --train_batch_size=2 --learning_rate=1e-5 --lr_warmup_steps=0 --max_train_steps=2 --num_class_images=200 --scale_lr
    --hflip --modifier_token "<new1>+<new2>"
"""
FACE = """
    --instance_data_dir=./data/cat --class_data_dir=./real_reg/samples_person/ --with_prior_preservation --real_prior
    --prior_loss_weight=1.0 --class_prompt="person" --num_class_images=200
    --instance_prompt="photo of a <new1> person" --resolution=64 --train_batch_size=2 --learning_rate=5e-6
    --lr_warmup_steps=0 --max_train_steps=2 --scale_lr --hflip --noaug --freeze_model crossattn
    --modifier_token "<new1>" --enable_xformers_memory_efficient_attention
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the guide is followed: pictures, and class pictures as its retrieve.py leaves them."""
    monkeypatch.chdir(tmp_path)
    for name in ("cat", "wooden_pot"):
        Path("data", name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (80, 64), ("red", "blue")[number]).save(f"data/{name}/{number}.jpg")
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


@pytest.mark.parametrize(
    ("guide", "words", "ends"),
    [(ONE, 1, "safetensors"), (SEVERAL, 2, "bin"), (FACE, 1, "safetensors")],
    ids=["one", "several", "face"],
)
def test_a_command_line_of_the_guide_ends_with_files_that_diffusers_loads(
    guide: str, words: int, ends: str, model: Path, folder: Path
) -> None:
    given = ["--no_safe_serialization"] if ends == "bin" else []
    flags = [f"--pretrained_model_name_or_path={model}", "--output_dir=path-to-save-model", *shlex.split(guide), *given]
    assert main(["train", *flags]) == 0
    saved = Path("path-to-save-model")
    [file] = saved.glob("*.delta.safetensors")
    delta, ours, theirs = Delta.load(file), load_model(str(model)), stable_diffusion_2()
    latents, text = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 48)
    name = f"pytorch_custom_diffusion_weights.{ends}"
    theirs.unet.load_attn_procs(str(saved), weight_name=name, _pipeline=theirs)
    with torch.no_grad(), Injection(ours.unet, [(delta, 1.0)]):
        torch.testing.assert_close(
            theirs.unet(latents, 5, text).sample, ours.unet(latents, 5, text).sample, atol=1e-4, rtol=1e-4
        )
    for number in range(1, words + 1):
        theirs.load_textual_inversion(str(saved), weight_name=f"<new{number}>.{ends}")
        vector = theirs.text_encoder.get_input_embeddings().weight[
            theirs.tokenizer.convert_tokens_to_ids(f"<new{number}>")
        ]
        torch.testing.assert_close(vector, delta.embeddings[f"<new{number}>"][0].float(), atol=1e-3, rtol=1e-3)


def test_only_who_writes_the_scripts_flag_gets_the_scripts_files(model: Path, folder: Path) -> None:
    flags = ["--instance_data_dir=data/cat", "--instance_prompt=a <new1> cat", "--max_train_steps=1", "--prior=none"]
    assert main(["train", f"--model={model}", *flags]) == 0
    assert not list(Path("custom-diffusion-model").glob("*custom_diffusion_weights*"))
