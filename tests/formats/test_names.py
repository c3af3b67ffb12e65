"""One projection's three names, against diffusers' and the WebUI's own."""

import pytest

from lib_custom_diffusion.attention import projections
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
