"""One projection's three names, against diffusers' and the WebUI's own."""

import pytest
import torch

from lib_custom_diffusion.attention import architecture, projections
from lib_custom_diffusion.formats.names import diffusers_path, key_of, kohya_name

K = "model.diffusion_model.{}.transformer_blocks.0.attn2.to_k.weight"


@pytest.mark.parametrize(
    ("block", "path"),
    [
        ("input_blocks.1.1", "down_blocks.0.attentions.0"),
        ("input_blocks.5.1", "down_blocks.1.attentions.1"),
        ("input_blocks.8.1", "down_blocks.2.attentions.1"),
        ("middle_block.1", "mid_block.attentions.0"),
        ("output_blocks.3.1", "up_blocks.1.attentions.0"),
        ("output_blocks.11.1", "up_blocks.3.attentions.2"),
    ],
)
def test_stable_diffusion_1(block: str, path: str) -> None:
    """Pairs as in the WebUI's table (extensions-builtin/Lora/networks.py, convert_diffusers_name_to_compvis)."""
    name = f"{path}.transformer_blocks.0.attn2.to_k"
    assert key_of(name) == K.format(block)
    assert key_of(name.replace(".", "_")) == K.format(block)
    assert key_of(f"{block}.transformer_blocks.0.attn2.to_k") == K.format(block)
    assert diffusers_path(K.format(block)) == name


def test_kohyas_names() -> None:
    key = K.format("input_blocks.4.1").replace("to_k", "to_out.0")
    assert kohya_name(key, True) == "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_out_0"
    assert kohya_name(key, False) == "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_out_0"
    for of_diffusers in (True, False):
        assert key_of(kohya_name(key, of_diffusers).removeprefix("lora_unet_")) == key


@pytest.mark.parametrize(
    "name", ["down_blocks.0.resnets.0.conv1", "x", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k"]
)
def test_what_is_no_cross_attention_has_no_key(name: str) -> None:
    assert key_of(name) is None


@pytest.mark.parametrize("resnets", [1, 2, 3])
def test_all_paths_of_a_real_diffusers_unet(resnets: int) -> None:
    from small_models import small_unet

    unet = small_unet(resnets)
    by_module = {id(module): path for path, module in unet.named_modules()}
    for key, layer in projections(unet, "crossattn").items():
        path = by_module[id(layer.module)]
        assert diffusers_path(key, resnets) == path
        assert key_of(path, resnets) == key
        assert key_of(path.replace(".", "_"), resnets) == key


_SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
FULL_SIZE = {
    # configuration of the UNet; cross-attention layers; numbers in keys and values, and in factors of rank 32 of them
    "sd1": ({"cross_attention_dim": 768}, 16, 19_169_280, None),
    "sd2": ({"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20)}, 16, 25_559_040, None),
    "sdxl": (_SDXL, 70, 340_787_200, 14_499_840),
}


@pytest.mark.parametrize("kind", FULL_SIZE)
def test_every_projection_of_a_full_size_model_has_one_name_in_each_layout_and_comes_back(kind: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    config, layers, numbers, factored = FULL_SIZE[kind]
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**config)
    found = projections(unet, "crossattn")
    assert len(found) == 4 * layers and architecture(unet) == kind
    modules = dict(unet.named_modules())
    for key, projection in found.items():
        assert modules[diffusers_path(key)] is projection.module
        assert key_of(diffusers_path(key)) == key
        for of_diffusers in (True, False):
            kohya = kohya_name(key, of_diffusers)
            assert key_of(kohya.removeprefix("lora_unet_")) == key
    for of_diffusers in (True, False):
        assert len({kohya_name(key, of_diffusers) for key in found}) == len(found)
    read = [layer.shape for layer in projections(unet).values()]
    assert sum(rows * width for rows, width in read) == numbers
    if factored is not None:
        assert sum(32 * (rows + width) for rows, width in read) == factored
