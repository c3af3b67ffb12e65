"""Pictures are found, decoded as they are meant to be seen, placed on the canvas, and weighed where they are."""

import hashlib
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from random import Random
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from lib_custom_diffusion.backend import Sizes
from lib_custom_diffusion.data import pictures
from lib_custom_diffusion.data.augmentation import random_view
from lib_custom_diffusion.data.pictures import (
    Picture,
    Placement,
    UnusablePicture,
    find_pictures,
    load_picture,
    unread_pictures,
)
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.training.identity import content_hash

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def halves(left: tuple[int, ...], right: tuple[int, ...], size: tuple[int, int] = (16, 8)) -> Image.Image:
    mode = {3: "RGB", 4: "RGBA"}[len(left)]
    picture = Image.new(mode, size, left)
    picture.paste(right, (size[0] // 2, 0, *size))
    return picture


def cells(*rows: str) -> torch.Tensor:
    """A mask written as it looks."""
    return torch.tensor([[[float(character == "#") for character in row] for row in rows]])


def test_pictures_of_a_folder_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "c.webp", "d.bmp", "e.jpeg", "a.txt", ".hidden.png", ".a.jpg.x.tmp"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    assert [path.name for path in pictures.find_pictures(tmp_path)] == ["a.jpg", "b.PNG", "c.webp", "d.bmp", "e.jpeg"]


def test_folder_that_is_missing_or_a_file_or_without_pictures_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder .*absent"):
        pictures.find_pictures(tmp_path / "absent")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"notes\.txt is a file; give the folder that it is in"):
        pictures.find_pictures(tmp_path / "notes.txt")
    with pytest.raises(UserError, match=rf"{tmp_path.name} has no pictures; .*\.png"):
        pictures.find_pictures(tmp_path)


def test_what_keeps_a_picture_from_being_read_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    halves(RED, BLUE).save(tmp_path / "huge.png")
    (tmp_path / "folder.png").mkdir()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for name, said in (("huge", "too many pixels, .* save it smaller"), ("folder", r"it cannot be read: [^\[]+$")):
        with pytest.raises(UnusablePicture, match=said):
            load_picture(tmp_path / f"{name}.png")


def test_exif_rotation_is_honoured(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: what is stored on the left is the top
    halves(RED, BLUE).save(tmp_path / "a.png", exif=exif)
    upright = pictures.load_picture(tmp_path / "a.png").colors
    assert upright.size == (8, 16)
    assert upright.getpixel((4, 2)) == RED
    assert upright.getpixel((4, 13)) == BLUE


def test_size_of_an_upright_picture_is_told_from_its_header(tmp_path: Path) -> None:
    exif = Image.Exif()
    for orientation, size in ((1, (16, 8)), (3, (16, 8)), (6, (8, 16)), (8, (8, 16))):
        exif[0x0112] = orientation
        halves(RED, BLUE).save(tmp_path / "a.png", exif=exif)
        assert pictures.picture_size(tmp_path / "a.png") == pictures.load_picture(tmp_path / "a.png").size == size
    (tmp_path / "a.png").write_bytes(b"no picture")
    assert pictures.picture_size(tmp_path / "a.png") is None


def test_transparent_parts_are_white_unless_alpha_is_the_weight(tmp_path: Path) -> None:
    halves((*RED, 0), (*BLUE, 51)).save(tmp_path / "a.png")
    seen = pictures.load_picture(tmp_path / "a.png")
    assert seen.weight is None
    assert seen.colors.getpixel((2, 2)) == WHITE
    assert seen.colors.getpixel((12, 2)) == (204, 204, 255)  # a fifth of blue over white

    weighed = pictures.load_picture(tmp_path / "a.png", alpha_is_weight=True)
    assert weighed.weight is not None
    assert (weighed.weight.getpixel((2, 2)), weighed.weight.getpixel((12, 2))) == (0, 51)
    assert (weighed.colors.getpixel((2, 2)), weighed.colors.getpixel((12, 2))) == (RED, BLUE)


def test_transparent_palette_color_counts_as_alpha(tmp_path: Path) -> None:
    halves(RED, BLUE).quantize(2).save(tmp_path / "a.png", transparency=0)
    palette = Image.open(tmp_path / "a.png")
    assert palette.mode == "P"
    transparent_is_left = palette.getpixel((2, 2)) == 0
    weight = pictures.load_picture(tmp_path / "a.png", alpha_is_weight=True).weight
    assert weight is not None
    assert weight.getpixel((2, 2)) == (0 if transparent_is_left else 255)
    assert weight.getpixel((12, 2)) == (255 if transparent_is_left else 0)


def test_opaque_picture_has_no_weight_of_its_own(tmp_path: Path) -> None:
    halves(RED, BLUE).save(tmp_path / "a.png")
    assert pictures.load_picture(tmp_path / "a.png", alpha_is_weight=True).weight is None


def test_sixteen_bit_gray_keeps_its_shades(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 128 * 257, np.uint16)).save(tmp_path / "a.png")
    assert pictures.load_picture(tmp_path / "a.png").colors.getpixel((1, 1)) == (128, 128, 128)


def test_wholly_transparent_picture_cannot_be_learned_from_by_its_alpha(tmp_path: Path) -> None:
    halves((*RED, 0), (*BLUE, 0)).save(tmp_path / "a.png")
    with pytest.raises(UnusablePicture, match="completely transparent"):
        pictures.load_picture(tmp_path / "a.png", alpha_is_weight=True)


def damaged(folder: Path) -> list[Path]:
    """An empty file, a text, half of a picture, and one that is not there."""
    whole = folder / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(whole)
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("no picture")
    (folder / "half.png").write_bytes(whole.read_bytes()[:1500])
    whole.unlink()
    return [folder / name for name in ("empty.png", "text.jpg", "half.png", "absent.png")]


def test_corrupt_pictures_among_good_ones_are_named_in_a_line_each(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    halves(RED, BLUE).save(tmp_path / "good.png")
    bad = damaged(tmp_path)
    with caplog.at_level(logging.WARNING):
        loaded = [(index, path) for index, path, _ in pictures.load_pictures([*bad, tmp_path / "good.png"])]
    assert loaded == [(4, tmp_path / "good.png")]
    lines = [record.getMessage() for record in caplog.records]
    assert [line.partition(": ")[0] for line in lines] == [f"skipped {path}" for path in bad]
    assert not any("\n" in line for line in lines)


def test_only_corrupt_pictures_are_an_error_that_names_one(tmp_path: Path) -> None:
    bad = damaged(tmp_path)[:3]
    with pytest.raises(UserError, match=r"none of the pictures can be used; .*half\.png"):
        list(pictures.load_pictures(bad))


def test_picture_fills_the_square_it_is_given() -> None:
    placed = pictures.place((10, 0, 110, 100), corner=(8, 16), size=(40, 40), canvas=(64, 64))
    assert placed == Placement((10, 0, 110, 100), (8, 16, 48, 56))


def test_shape_is_kept_and_centered_in_the_square() -> None:
    wide = pictures.place((0, 0, 200, 100), corner=(0, 0), size=(64, 64), canvas=(64, 64))
    assert wide == Placement((0, 0, 200, 100), (0, 16, 64, 48))
    thin = pictures.place((0, 0, 1, 1000), corner=(0, 0), size=(64, 64), canvas=(64, 64))
    assert thin == Placement((0, 0, 1, 1000), (32, 0, 33, 64))  # never less than a pixel


def test_what_reaches_beyond_the_canvas_is_cut_from_the_picture() -> None:
    zoomed = pictures.place((0, 0, 100, 100), corner=(-8, -16), size=(80, 80), canvas=(64, 64))  # 0.8 pixels a pixel
    assert zoomed.target == (0, 0, 64, 64)
    assert zoomed.source == pytest.approx((10, 20, 90, 100))


def test_canvas_is_neutral_around_the_picture() -> None:
    canvas = pictures.draw(Picture(halves(RED, BLUE, (64, 64))), Placement((0, 0, 64, 64), (8, 0, 24, 16)), (32, 32))
    red, blue = torch.tensor([1.0, -1.0, -1.0]), torch.tensor([-1.0, -1.0, 1.0])
    assert canvas.shape == (3, 32, 32)
    assert torch.equal(canvas[:, 3, 9], red)
    assert torch.equal(canvas[:, 3, 22], blue)
    assert not canvas[:, 16:].any()
    assert not canvas[:, :, :8].any()
    assert not canvas[:, :, 24:].any()


def test_flip_mirrors_the_canvas_and_its_weights_alike() -> None:
    picture = Picture(halves(RED, BLUE, (64, 64)), Image.new("L", (64, 64), 255))
    placement = Placement((0, 0, 64, 64), (0, 0, 40, 64))
    flipped = Placement(placement.source, placement.target, flip=True)
    assert torch.equal(pictures.draw(picture, flipped, (64, 64)), pictures.draw(picture, placement, (64, 64)).flip(2))
    assert torch.equal(pictures.weigh(picture, flipped, (64, 64)), pictures.weigh(picture, placement, (64, 64)).flip(2))
    assert pictures.weigh(picture, flipped, (64, 64))[0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("side", [64, 600])
def test_shrunk_pictures_are_not_aliased(side: int) -> None:
    checkerboard = np.indices((side, side)).sum(axis=0) % 2 * 255
    picture = Picture(Image.fromarray(checkerboard.astype(np.uint8)).convert("RGB"))
    canvas = pictures.draw(picture, Placement((0, 0, side, side), (0, 0, 16, 16)), (16, 16))
    assert canvas.abs().max() < 0.06  # gray; every second pixel alone would be black or white


@pytest.mark.parametrize(
    ("target", "mask"),
    [
        ((0, 0, 64, 64), ["########"] * 8),  # no bare canvas, nothing left out
        ((16, 16, 56, 56), ["        "] * 3 + ["   ###  "] * 3 + ["        "] * 2),
        ((0, 0, 40, 64), ["####    "] * 8),  # bare canvas on the right only
        ((11, 0, 53, 64), ["   ##   "] * 8),  # cells 2 to 5 are whole
        ((16, 0, 32, 64), ["  ##    "] * 8),  # without the outer ones nothing would be left
        ((18, 0, 28, 64), ["  #     "] * 8),  # not even a whole cell
    ],
)
def test_only_cells_well_on_the_picture_weigh(target: tuple[int, int, int, int], mask: list[str]) -> None:
    picture = Picture(Image.new("RGB", (10, 10)))
    assert torch.equal(pictures.weigh(picture, Placement((0, 0, 10, 10), target), (64, 64)), cells(*mask))


@pytest.mark.parametrize("resolution", [8, 16, 24, 64, 128])
def test_every_random_view_weighs_somewhere_and_nowhere_outside_the_picture(resolution: int) -> None:
    white, rng = Picture(Image.new("RGB", (30, 20), WHITE)), Random(0)
    for _ in range(100):
        view = random_view((resolution, resolution), rng)
        placement = pictures.place((0, 0, 30, 20), view.corner, view.size, (resolution, resolution))
        mask = pictures.weigh(white, placement, (resolution, resolution))[0]
        assert mask.any()
        if resolution >= 128:  # on a smaller canvas a picture may be smaller than a cell, and weighs by that cell
            pixels = mask.repeat_interleave(8, 0).repeat_interleave(8, 1).bool()
            assert (pictures.draw(white, placement, (resolution, resolution))[:, pixels] > 0.99).all()


def test_alpha_is_averaged_over_each_cell() -> None:
    alpha = Image.new("L", (128, 64), 0)
    alpha.paste(255, (64, 0, 128, 64))
    alpha.paste(51, (0, 0, 16, 64))
    picture = Picture(Image.new("RGB", (128, 64)), alpha)
    mask = pictures.weigh(picture, Placement((0, 0, 128, 64), (0, 0, 64, 64)), (64, 64))
    assert torch.allclose(mask[0, 3], torch.tensor([0.2, 0, 0, 0, 1, 1, 1, 1]))
    cropped = pictures.weigh(picture, Placement((64, 0, 128, 64), (0, 0, 64, 64)), (64, 64))
    assert torch.equal(cropped, torch.ones(1, 8, 8))
    half = pictures.weigh(picture, Placement((0, 0, 128, 64), (0, 0, 8, 8)), (8, 8))
    assert half.item() == pytest.approx((16 / 128) * 0.2 + 0.5, abs=0.01)


def test_alpha_weighs_only_where_the_picture_does() -> None:
    picture = Picture(Image.new("RGB", (10, 10)), Image.new("L", (10, 10), 102))
    mask = pictures.weigh(picture, Placement((0, 0, 10, 10), (16, 0, 56, 64)), (64, 64))
    assert torch.allclose(mask[0, 0], torch.tensor([0, 0, 0, 0.4, 0.4, 0.4, 0, 0]))


def test_a_canvas_may_be_wider_than_high() -> None:
    white = Picture(Image.new("RGB", (60, 20), WHITE))
    placement = pictures.place((0, 0, 60, 20), corner=(24, 8), size=(48, 32), canvas=(96, 40))
    assert placement.target == (24, 16, 72, 32)  # 48 x 16 in the middle of 48 x 32
    pixels = pictures.draw(white, placement, (96, 40))
    assert pixels.shape == (3, 40, 96)
    assert (pixels[:, 16:32, 24:72] > 0.99).all() and not pixels[:, :16].any() and not pixels[:, 32:].any()
    mask = pictures.weigh(white, placement, (96, 40))
    assert torch.equal(mask, cells(" " * 12, " " * 12, "    ####    ", "    ####    ", " " * 12))


def test_sizes_follow_a_picture_as_it_is_scaled_cropped_and_mirrored() -> None:
    size, canvas = (1000, 500), (64, 64)
    whole_height = pictures.place((300, 0, 800, 500), (0, 0), canvas, canvas)  # scaled by 64 / 500
    assert pictures.sizes_of(size, whole_height, canvas) == Sizes(size, (38, 0), canvas)  # 300 · 0.128 = 38.4
    mirrored = replace(whole_height, flip=True)
    assert pictures.sizes_of(size, mirrored, canvas) == Sizes(size, (26, 0), canvas)  # 128 wide; 128 − 38.4 − 64 = 25.6
    zoomed = pictures.place((250, 0, 750, 500), (-10, -20), (90, 90), canvas)  # scaled by 0.18
    assert pictures.sizes_of(size, zoomed, canvas) == Sizes(size, (55, 20), canvas)  # 250 · 0.18 + 10
    far_away = pictures.place((250, 0, 750, 500), (20, 10), (32, 32), canvas)  # scaled by 0.064
    assert pictures.sizes_of(size, far_away, canvas) == Sizes(size, (0, 0), canvas)


@pytest.mark.parametrize("suffix", [".tif", ".tiff", ".gif", ".jfif", ".jpe", ".bmp", ".tga", ".ppm", ".PNG", ".JPG"])
def test_every_kind_that_pillow_reads_is_a_picture(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    Image.new("RGB", (8, 8), "red").save(path, format={".jfif": "JPEG", ".jpe": "JPEG"}.get(suffix))
    assert find_pictures(tmp_path) == [path]
    assert load_picture(path).colors.getpixel((4, 4))[0] > 250


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tiff"])
def test_of_an_animation_the_first_picture_is_read_and_that_is_known(tmp_path: Path, name: str) -> None:
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    first.save(tmp_path / name)
    assert not pictures.is_moving(tmp_path / name)
    first.save(tmp_path / name, save_all=True, append_images=[second, second], duration=100)
    red, green, blue = load_picture(tmp_path / name).colors.getpixel((4, 4))
    assert red > 250 and max(green, blue) < 10 and pictures.is_moving(tmp_path / name)
    (tmp_path / name).write_bytes(b"nothing")
    assert not pictures.is_moving(tmp_path / name)


def test_files_of_several_pictures_are_named_in_a_sentence() -> None:
    assert pictures.moving_text([]) == ""
    assert pictures.moving_text(["a.gif"]) == "a.gif has several pictures, as animations do; the first was used."
    said = "a, b, c and 2 more have several pictures, as animations do; the first will be used."
    assert pictures.moving_text(list("abcde"), "will be") == said


def test_pictures_that_need_a_plug_in_are_named_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "suffixes", lambda: (".png",))
    for name in ("a.HEIC", "b.avif", "c.jxl"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"a\.HEIC is a picture that needs pip install pillow-heif, or"):
        find_pictures(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "d.png")
    assert [path.name for path in find_pictures(tmp_path)] == ["d.png"]
    assert [why.split(",")[0].rpartition(" ")[2] for why in unread_pictures(tmp_path).values()] == [
        "pillow-heif", "pillow-avif-plugin", "pillow-jxl-plugin"
    ]  # fmt: skip


def test_a_plug_in_that_is_installed_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in = ModuleType("pillow_heif")
    known = dict(Image.registered_extensions())
    plug_in.register_heif_opener = lambda: known.update({".heic": "HEIF"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pillow_heif", plug_in)
    monkeypatch.setattr(Image, "registered_extensions", lambda: known)
    assert ".heic" in pictures.suffixes.__wrapped__()


def folders(root: Path, **counts: int) -> Path:
    for name, count in counts.items():
        (root / name.lstrip("n")).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (8, 8)).save(root / name.lstrip("n") / f"{index}.png")
    return root


def test_kohyas_folders_are_read_each_picture_as_often_as_its_folder_says(tmp_path: Path) -> None:
    found = find_pictures(folders(tmp_path, n10_cat=2, n4_dog=1, n0_no=1, n3_=0))
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        *["10_cat/0.png"] * 5, *["10_cat/1.png"] * 5, *["4_dog/0.png"] * 2
    ]  # fmt: skip
    assert len(find_pictures(tmp_path / "10_cat")) == 2


def test_pictures_directly_in_a_folder_come_before_folders_with_repeats(tmp_path: Path) -> None:
    folders(tmp_path, n10_cat=2)
    Image.new("RGB", (8, 8)).save(tmp_path / "own.png")
    assert [path.name for path in find_pictures(tmp_path)] == ["own.png"]


def test_a_folder_of_other_folders_points_to_the_one_with_pictures(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no pictures, but the folder .*holiday in it has; give that one"):
        find_pictures(folders(tmp_path, empty=0, holiday=1))


def test_pictures_and_films_of_kinds_that_are_not_read_are_named(tmp_path: Path) -> None:
    for name in ("raw.CR2", "drawing.svg", "film.mp4", "notes.txt", ".hidden.svg"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=r"drawing\.svg is in a format that cannot be read here; save it as JPEG"):
        find_pictures(tmp_path)
    assert sorted(path.name for path in unread_pictures(tmp_path)) == ["drawing.svg", "film.mp4", "raw.CR2"]


def test_floating_point_pictures_are_left_out_rather_than_black(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UnusablePicture, match="floating point"):
        load_picture(tmp_path / "a.tif")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_called_like_a_picture_is_none(tmp_path: Path) -> None:
    """Whoever opened it would wait for somebody to write into it."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    (tmp_path / "c.png").symlink_to("b.png")
    assert find_pictures(tmp_path) == [tmp_path / "a.png"]


def test_a_device_that_a_list_names_is_not_even_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever read /dev/zero would do so until the memory is full, and a pipe is waited for."""
    endless = Path("/dev/zero")
    if not endless.exists():
        pytest.skip("no devices on this system")
    for opens in ((Image, "open"), (Path, "read_bytes")):
        monkeypatch.setattr(*opens, lambda *_: pytest.fail("it was opened"))
    with pytest.raises(UnusablePicture, match="it is not a regular file"):
        load_picture(endless)
    assert pictures.picture_size(endless) is None and not pictures.is_moving(endless)
    assert content_hash(endless) == hashlib.sha256().hexdigest()
