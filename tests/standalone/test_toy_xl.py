"""The toy in SDXL's layout: how it starts from the other, what it is told of pictures, and its files."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from lib_custom_diffusion.standalone import toy
from lib_custom_diffusion.standalone.models import load_model
from lib_custom_diffusion.standalone.single_file import load_checkpoint
from lib_custom_diffusion.standalone.toy import Toy, architecture, export, train_diffusion, train_xl

SIDE = architecture.PICTURE_SIDE


@pytest.fixture(scope="module")
def started() -> train_xl.DenoiserXL:
    torch.manual_seed(1)
    denoiser = train_xl.DenoiserXL(CLIPTokenizer.from_pretrained(toy.TOY.config / "tokenizer"))
    train_xl.start_from(denoiser, toy.load())
    return denoiser.eval()


@pytest.fixture(scope="module")
def trained(started: train_xl.DenoiserXL) -> train_xl.DenoiserXL:
    """One without a tensor that is nothing but zeros, which is how torn files are told; all halves, as in a file."""
    torch.manual_seed(2)
    state = {name: value + 1e-3 * torch.randn(value.shape) for name, value in started.state_dict().items()}
    denoiser = train_xl.DenoiserXL(started.tokenizer)
    denoiser.load_state_dict(state)
    return denoiser.half().float().eval()


@pytest.fixture(scope="module")
def files(trained: train_xl.DenoiserXL, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """What is exported of it."""
    made = Toy.in_folder(tmp_path_factory.mktemp("toy"), "toy-xl", "config-xl")
    export.export_xl(architecture.autoencoder(), trained, made)
    return made


@torch.no_grad()
def test_it_starts_as_what_the_other_toy_has_learned(started: train_xl.DenoiserXL) -> None:
    earlier = toy.load()
    other = train_diffusion.Denoiser(earlier.tokenizer)
    train_diffusion.start_from(other, earlier.tokenizer, earlier)
    captions = ["a photo of a panda on a red background", "an owl and a unicorn on an orange background", "a small key"]
    ids = started.tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
    noisy, timesteps = (
        torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(1)),
        torch.tensor([900, 500, 100]),
    )
    sizes = torch.tensor([[SIDE, SIDE, 0, 0, SIDE, SIDE]]).float().repeat(3, 1)
    ours, theirs = started(noisy, timesteps, ids, sizes), other.eval()(noisy, timesteps, ids)
    swapped = started(noisy, timesteps, ids.flip(0), sizes)
    # A linear map stands for the last normalisation of the text, so not quite.
    assert (ours - theirs).square().mean() < 0.02 * theirs.square().mean()
    assert (ours - theirs).square().mean() < 0.3 * (swapped - theirs).square().mean()


def test_what_it_has_more_can_learn_from_the_start(started: train_xl.DenoiserXL) -> None:
    ids = started.tokenizer(["a panda", "a small key"], padding="max_length", return_tensors="pt").input_ids
    sizes = torch.tensor([[SIDE, SIDE, 0, 0, SIDE, SIDE]]).float().repeat(2, 1)
    noisy = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    started(noisy, torch.tensor([900, 500]), ids, sizes).square().mean().backward()
    found = {name: value.grad for name, value in started.named_parameters()}
    started.zero_grad(set_to_none=True)
    assert found["unet.add_embedding.linear_2.weight"].any()
    assert found["unet.down_blocks.2.attentions.0.proj_out.weight"].any()
    assert found["unet.mid_block.attentions.0.transformer_blocks.1.attn2.to_out.0.weight"].any()
    assert found["unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"][
        :, architecture.TEXT_WIDTH :
    ].any()


def test_what_is_told_of_a_picture_is_true(started: train_xl.DenoiserXL) -> None:
    latents = torch.arange(16.0 * 16).view(1, 1, 16, 16).repeat(400, 4, 1, 1)
    shown, sizes = started.view(latents, random.Random(1))
    assert shown.shape == latents.shape and sizes.shape == (400, 6)
    kinds = set()
    for picture, (height, width, top, left, *target) in zip(shown[:, 0], sizes.int().tolist()):
        assert target == [SIDE, SIDE]
        assert int(picture[0, 0]) == top // 8 * 16 + left // 8  # the corner that is left of the drawing
        if top or left:
            assert (height, width) == (SIDE + top, SIDE + left)
            assert torch.equal(picture[-1], picture[-1 - top // 8])  # beyond its edge more of the ground
        else:
            assert torch.equal(picture, latents[0, 0]) and height == width
        kinds.add("cropped" if top or left else "scaled down" if height > SIDE else "as it was")
    assert len(kinds) == 3


@torch.no_grad()
def test_in_use_it_is_conditioned_as_in_training(files: Toy, trained: train_xl.DenoiserXL) -> None:
    backend = load_model(str(files.checkpoint))
    assert backend.resolution == SIDE and backend.reads_sizes
    noisy, timesteps = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([500])
    sizes = torch.tensor([[SIDE, SIDE, 0, 0, SIDE, SIDE]]).float()
    for caption in ("a photo of a panda on a red background!", ""):
        ids = trained.tokenizer([caption], padding="max_length", return_tensors="pt").input_ids
        used = backend.encode_captions([caption], {}) if caption else backend._negative("", 1, {})
        if not caption:  # the pipeline tells the sizes, whatever the text is
            used.vector[:, -6:] = sizes
        assert torch.allclose(trained(noisy, timesteps, ids, sizes), backend.predict(noisy, timesteps, used), atol=1e-4)


def test_its_file_is_read_as_it_was_written(files: Toy, tmp_path: Path) -> None:
    shutil.copy(files.checkpoint, tmp_path / "copy.safetensors")  # a copy without its .yaml is known by its words
    for path in (files.checkpoint, tmp_path / "copy.safetensors"):
        loaded = load_checkpoint(path)
        assert isinstance(loaded, StableDiffusionXLPipeline)
        unet, first, second = loaded.unet.config, loaded.text_encoder.config, loaded.text_encoder_2.config
        assert (unet.sample_size, unet.attention_head_dim, unet.transformer_layers_per_block) == (16, 4, [1, 1, 2])
        assert (first.num_attention_heads, first.num_hidden_layers, first.hidden_act) == (4, 4, "quick_gelu")
        assert (second.num_attention_heads, second.num_hidden_layers, second.hidden_act) == (2, 2, "gelu")
        assert loaded.vae.config.scaling_factor == 1
        assert loaded.tokenizer.get_vocab() == loaded.tokenizer_2.get_vocab()
        assert loaded.tokenizer_2.pad_token_id == 0 and loaded.tokenizer.pad_token_id == loaded.tokenizer.eos_token_id


def test_diffusers_own_loader_finds_the_same_unet(files: Toy) -> None:
    theirs = UNet2DConditionModel.from_single_file(
        str(files.checkpoint), config=str(files.config), subfolder="unet", local_files_only=True
    ).state_dict()
    ours = load_checkpoint(files.checkpoint).unet.float().state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key].float()) for key in ours)


def test_its_file_has_the_names_of_sdxl(files: Toy) -> None:
    names = load_file(files.checkpoint).keys()
    for name in (
        "model.diffusion_model.label_emb.0.0.weight",
        "model.diffusion_model.middle_block.1.transformer_blocks.1.attn2.to_k.weight",
        "model.diffusion_model.output_blocks.0.1.transformer_blocks.1.attn2.to_v.weight",
        "first_stage_model.post_quant_conv.weight",
        "conditioner.embedders.0.transformer.text_model.encoder.layers.3.mlp.fc1.weight",
        "conditioner.embedders.1.model.transformer.resblocks.1.attn.in_proj_weight",
        "conditioner.embedders.1.model.text_projection",
    ):
        assert name in names


def test_the_files_beside_the_weights_are_what_is_exported(files: Toy) -> None:
    assert toy.TOY_XL.description.read_text() == files.description.read_text()
    written = {path.relative_to(files.config) for path in files.config.rglob("*") if path.is_file()}
    assert written == {path.relative_to(toy.TOY_XL.config) for path in toy.TOY_XL.config.rglob("*") if path.is_file()}
    # What libraries say of their own models is theirs, and differs with their versions.
    for path in written - {path for path in written if path.name in ("config.json", "scheduler_config.json")}:
        assert (files.config / path).read_text() == (toy.TOY_XL.config / path).read_text()
