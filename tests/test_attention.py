"""Projections are found by structure, and named as the WebUI names them."""

import pytest
from torch import nn

from lib_custom_diffusion.attention import (
    BLOCKS,
    architecture,
    beside_to_v,
    check_blocks,
    family,
    projections,
    reads_text,
    role,
    short_name,
)
from lib_custom_diffusion.errors import UserError
from tiny import TinyUNet

PREFIX = "model.diffusion_model."


def attention_layer() -> nn.Module:
    layer = nn.Module()
    layer.transformer_blocks = nn.ModuleList([nn.Module()])
    layer.transformer_blocks[0].attn2 = nn.Module()
    layer.transformer_blocks[0].attn2.to_k = nn.Linear(768, 8)
    return layer


def diffusers_block(resnets: int, attentions: int) -> nn.Module:
    block = nn.Module()
    block.resnets = nn.ModuleList([nn.Identity() for _ in range(resnets)])
    if attentions:
        block.attentions = nn.ModuleList([attention_layer() for _ in range(attentions)])
    return block


def stable_diffusion_1() -> nn.Module:
    """The block structure of SD1's UNet in diffusers: two resnets a level, no attention at the lowest."""
    unet = nn.Module()
    unet.down_blocks = nn.ModuleList([diffusers_block(2, 2) for _ in range(3)] + [diffusers_block(2, 0)])
    unet.mid_block = diffusers_block(2, 1)
    unet.up_blocks = nn.ModuleList([diffusers_block(3, 0)] + [diffusers_block(3, 3) for _ in range(3)])
    return unet


def test_sd1_in_diffusers_has_the_block_numbers_of_the_original_checkpoint() -> None:
    blocks = [key.removeprefix(PREFIX).split(".1.transformer")[0] for key in projections(stable_diffusion_1())]
    # The SpatialTransformers of v1-inference.yaml: attention at resolutions 4, 2, 1 with two blocks a level.
    assert sorted(blocks) == sorted(
        [f"input_blocks.{n}" for n in (1, 2, 4, 5, 7, 8)]
        + ["middle_block"]
        + [f"output_blocks.{n}" for n in (3, 4, 5, 6, 7, 8, 9, 10, 11)]
    )


def test_architecture_is_told_by_layers_and_text_width() -> None:
    assert architecture(stable_diffusion_1()) == "sd1"
    assert architecture(TinyUNet()) == "crossattn-3x6"


def test_default_selects_keys_and_values_of_cross_attention_only() -> None:
    found = projections(TinyUNet())
    assert list(found) == [
        f"{PREFIX}{block}.1.transformer_blocks.0.attn2.{layer}.weight"
        for block in ("input_blocks.1", "middle_block", "output_blocks.0")
        for layer in ("to_k", "to_v")
    ]
    assert [p.role for p in found.values()] == ["k", "v"] * 3
    assert {p.shape for p in found.values()} == {(8, 6)}


@pytest.mark.parametrize(("select", "roles"), [("crossattn", "qkvo"), ("k", "k"), ("v", "v")])
def test_selections(select: str, roles: str) -> None:
    assert {p.role[0] for p in projections(TinyUNet(), select).values()} == set(roles)


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        (["down"], {"down"}),
        (["mid", "up"], {"mid", "up"}),
        (["*output_blocks.0.*"], {"up"}),
        ([], {"down", "mid", "up"}),
    ],
)
def test_blocks_and_patterns(blocks: list[str], expected: set[str]) -> None:
    assert {p.block for p in projections(TinyUNet(), "k", blocks).values()} == expected


def test_unknown_selection_lists_the_valid_ones() -> None:
    with pytest.raises(UserError, match="crossattn_kv, crossattn, k, v"):
        projections(TinyUNet(), "everything")


def test_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="down, mid, up"):
        projections(TinyUNet(), blocks=["middle"])


@pytest.mark.parametrize("block", ["middle", "output_blocks.9.*", "model.diff", "", "up_blocks.1"])
def test_what_is_no_block_of_any_network_is_refused_without_one(block: str) -> None:
    with pytest.raises(UserError, match="choose from down, mid, up or give a pattern"):
        check_blocks(["up", block])


def test_what_may_be_a_block_is_not_refused_before_the_network_is_known() -> None:
    check_blocks([*BLOCKS, "*output_blocks.9.*", "model.*", "[m]odel*", next(iter(projections(TinyUNet())))])


def test_network_without_cross_attention_is_refused() -> None:
    with pytest.raises(UserError, match="no cross-attention"):
        projections(nn.Sequential(nn.Linear(3, 3)))


def test_a_transformer_without_the_blocks_of_a_unet_is_refused() -> None:
    with pytest.raises(UserError, match="no cross-attention"):
        projections(attention_layer())


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("sd1", "SD 1"),
        ("sd2", "SD 2"),
        ("sdxl", "SDXL"),
        ("crossattn-10x128", "toy model"),
        ("crossattn-14x256", "toy model of SDXL's layout"),
        ("crossattn-30x768", "crossattn-30x768"),
        ("", ""),
    ],
)
def test_models_are_called_by_the_word_that_people_have_for_them(word, name):
    assert family(word) == name


def test_a_key_tells_what_its_projection_is() -> None:
    block = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2"
    leaves = ("to_q", "to_k", "to_v", "to_out.0")
    assert [role(f"{block}.{leaf}.weight") for leaf in leaves] == ["q", "k", "v", "out"]
    assert [reads_text(f"{block}.{leaf}.weight") for leaf in leaves] == [False, True, True, False]
    for other in (
        f"{block.replace('attn2', 'attn1')}.to_k.weight",
        f"{block}.norm.weight",
        "model.diffusion_model.out.2.weight",
    ):
        assert role(other) == "" and not reads_text(other)
    assert beside_to_v(f"{block}.to_v.weight") == f"{block}.to_k.weight"
    assert beside_to_v(f"{block}.to_q.weight") == f"{block}.to_q.weight"
    assert short_name(f"{block}.to_k.weight") == "input_blocks.1.1.0.to_k"


def test_projections_have_the_roles_of_their_keys() -> None:
    for key, layer in projections(TinyUNet(), "crossattn").items():
        assert role(key) == layer.role
