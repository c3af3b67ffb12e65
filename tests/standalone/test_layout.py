"""Names of full-size models on the meta device, against diffusers' own converters and the published counts."""

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from transformers import CLIPTextConfig, CLIPTextModel

from lib_custom_diffusion.standalone.layout import open_clip_state, unet_name, vae_name
from lib_custom_diffusion.standalone.single_file import unet_config
from lib_custom_diffusion.standalone.vae import autoencoder_config

THREE_OF_FOUR = {
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "layers_per_block": 2,
}
UNETS = {
    # configuration of the model's diffusers folder, numbers in it
    "sd1": (THREE_OF_FOUR | {"cross_attention_dim": 768, "attention_head_dim": 8}, 859_520_964),
    "sd2": (
        THREE_OF_FOUR
        | {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
        865_910_724,
    ),
    "sdxl": (
        {
            "block_out_channels": [320, 640, 1280],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "layers_per_block": 2,
            "transformer_layers_per_block": [1, 2, 10],
            "attention_head_dim": [5, 10, 20],
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        2_567_463_684,
    ),
}


def meta(model: type, config: dict) -> torch.nn.Module:
    with torch.device("meta"):
        return model.from_config(config)


@pytest.mark.parametrize("kind", UNETS)
def test_a_full_size_unet_is_told_by_its_shapes_and_its_names_are_those_that_diffusers_converts(kind: str) -> None:
    config, numbers = UNETS[kind]
    unet = meta(UNet2DConditionModel, config)
    state = unet.state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == numbers
    checkpoint = {unet_name(key, config): tensor for key, tensor in state.items()}
    told = unet_config(checkpoint)
    assert {key: told[key] for key in config} == config
    converted = convert_ldm_unet_checkpoint(dict(checkpoint), {**unet.config, "class_embed_type": None})
    assert {key: tensor.shape for key, tensor in converted.items()} == {key: t.shape for key, t in state.items()}
    assert meta(UNet2DConditionModel, told).state_dict().keys() == state.keys()


def test_the_full_size_vae() -> None:
    config = {
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
    }
    vae = meta(AutoencoderKL, config)
    state = vae.state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == 83_653_863
    checkpoint = {vae_name(key, config): tensor for key, tensor in state.items()}
    own = {name.removeprefix("first_stage_model."): tensor for name, tensor in checkpoint.items()}
    for names in (own, state):
        told = autoencoder_config(names)
        assert {key: told[key] for key in config} == config
    converted = convert_ldm_vae_checkpoint(dict(checkpoint), config)
    assert {key: tensor.shape for key, tensor in converted.items()} == {key: t.shape for key, t in state.items()}


def test_an_openclip_text_encoder_is_read_as_diffusers_reads_it() -> None:
    from tiny_checkpoints import open_clip

    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=99, hidden_size=64, intermediate_size=96, num_hidden_layers=23, num_attention_heads=1
    )
    text_encoder = CLIPTextModel(config)
    tensors = open_clip(text_encoder, "cond_stage_model.model.")
    theirs = convert_open_clip_checkpoint(text_encoder, dict(tensors), prefix="cond_stage_model.model.")
    own = {name.removeprefix("cond_stage_model.model."): tensor for name, tensor in tensors.items()}
    ours = open_clip_state(own, 23)
    assert ours.keys() == text_encoder.state_dict().keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
