"""Buckets have about the same area in all shapes, and pictures lose little on the way into them."""

from __future__ import annotations

import pytest
from torch import nn

from lib_custom_diffusion.data.buckets import bucket_sizes, dealt_out, nearest_bucket, size_multiple
from tiny import TinyUNet


def named(*names: str) -> nn.Module:
    """A module with parts of these names."""
    root = nn.Module()
    for name in names:
        part = root
        for step in name.split("."):
            if not hasattr(part, step):
                part.add_module(step, nn.Module())
            part = getattr(part, step)
    return root


@pytest.mark.parametrize(
    ("names", "multiple"),
    [
        # Stable Diffusion 1 and 2, by diffusers' names and by LDM's: latents are 8 times smaller, and halved 3 times
        ([f"down_blocks.{block}.downsamplers.0.conv" for block in (0, 1, 2)], 64),
        ([*(f"input_blocks.{block}.0.op" for block in (3, 6, 9)), "input_blocks.1.0.in_layers"], 64),
        (["input_blocks.2.0.op", "input_blocks.4.0.op"], 32),
        (["up_blocks.0.upsamplers.0.conv"], 8),
    ],
)
def test_sides_are_multiples_of_what_the_unet_halves(names: list[str], multiple: int) -> None:
    assert size_multiple(named(*names)) == multiple


def test_a_unet_that_halves_nothing_takes_multiples_of_a_latent_cell() -> None:
    assert size_multiple(TinyUNet()) == 8


def test_buckets_of_stable_diffusion() -> None:
    assert bucket_sizes(512, 64)[:9] == [
        (256, 1024), (256, 960), (320, 896), (320, 832), (320, 768), (384, 704), (384, 640), (448, 576), (512, 512)
    ]  # fmt: skip


@pytest.mark.parametrize(("resolution", "multiple"), [(512, 64), (768, 64), (128, 32), (64, 8), (16, 8), (8, 64)])
def test_buckets_have_about_the_same_area_and_come_with_their_turned_ones(resolution: int, multiple: int) -> None:
    buckets = bucket_sizes(resolution, multiple)
    assert {(height, width) for width, height in buckets} == set(buckets)
    assert all(side % multiple == 0 for bucket in buckets for side in bucket)
    for width, height in buckets:
        if resolution >= 4 * multiple:
            assert width * height == pytest.approx(resolution**2, rel=0.15)
            assert max(width, height) <= 2 * resolution


def test_a_picture_goes_where_its_shape_is_nearest() -> None:
    buckets = bucket_sizes(512, 64)
    assert nearest_bucket((4000, 3000), buckets) == (576, 448)  # 1.33 to 1.29
    assert nearest_bucket((1080, 1920), buckets) == (384, 704)  # 0.56 to 0.55
    assert nearest_bucket((33, 33), buckets) == (512, 512)
    assert nearest_bucket((10000, 10), buckets) == (1024, 256)


def test_of_two_shapes_the_nearer_is_that_which_crops_less() -> None:
    """Of 11 to 10, half as wide leaves 0.5 / 1.1 = 45 %, twice as wide 1.1 / 2 = 55 %, though 2 is farther than 0.5."""
    assert nearest_bucket((1100, 1000), [(256, 512), (512, 256)]) == (512, 256)
    assert nearest_bucket((1000, 1100), [(256, 512), (512, 256)]) == (256, 512)


def test_regularization_pictures_get_the_concepts_sizes_in_its_shares_and_upright_ones_upright_ones() -> None:
    upright, square, wide = (448, 576), (512, 512), (576, 448)
    own = [wide, upright, wide, square]  # half of them wide
    pictures = [(100, 100), (80, 100), (200, 100), (300, 100), (90, 100), (150, 100), (110, 100), (70, 100)]
    dealt = dealt_out(pictures, own)
    assert [dealt.count(bucket) for bucket in (upright, square, wide)] == [2, 2, 4]
    by_shape = [bucket for _, bucket in sorted(zip((w / h for w, h in pictures), dealt, strict=True))]
    assert by_shape == [upright] * 2 + [square] * 2 + [wide] * 4


def test_one_regularization_picture_is_enough_for_any_number_of_sizes() -> None:
    assert dealt_out([(100, 100)], [(448, 576), (576, 448)]) == [(448, 576)]
    assert dealt_out([], [(512, 512)]) == []


def test_modules_are_told_apart_from_their_parts() -> None:
    unet = named("input_blocks.3.0.op", "input_blocks.3.0.op.weight", "down_blocks.0.downsamplers.0.conv.weight")
    assert size_multiple(unet) == 8 * 2 * 2
