"""A folder's pictures are shown as they will be cropped, with what is left out and why."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import pytest
from PIL import Image

from lib_custom_diffusion.ui.picture_strip import folder_fault, picture_strip

SHAPES = ("cropped to a square", "padded to a square", "as they are")


def shown(html: str) -> list[Image.Image]:
    return [Image.open(io.BytesIO(base64.b64decode(found))) for found in re.findall(r"base64,([^\"]+)", html)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A wide picture: red in its middle, blue on both sides."""
    wide = Image.new("RGB", (300, 100), "blue")
    wide.paste("red", (100, 0, 200, 100))
    wide.save(tmp_path / "wide.png")
    return tmp_path


@pytest.mark.parametrize(
    ("shape", "size", "corner"),
    [(SHAPES[0], (112, 112), "red"), (SHAPES[1], (112, 112), "white"), (SHAPES[2], (224, 75), "blue")],
)
def test_a_picture_is_shown_as_it_will_be_cropped(folder: Path, shape: str, size: tuple[int, int], corner: str) -> None:
    [small] = shown(picture_strip(str(folder), shape))
    assert small.size == size
    expected = Image.new("RGB", (1, 1), corner).getpixel((0, 0))
    assert all(abs(a - b) < 40 for a, b in zip(small.getpixel((1, 1)), expected, strict=True))


def test_the_path_may_be_quoted_as_windows_copies_it(folder: Path) -> None:
    assert "1 picture." in picture_strip(f' "{folder}" ', SHAPES[0])


def test_what_is_no_path_is_said(folder: Path) -> None:
    assert "a\\x00b&#x27; is not a valid path; type it again</div>" in folder_fault("a\0b")


def test_what_is_left_out_is_named_with_the_reason(folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"no")
    (folder / "phone.jxl").write_bytes(b"no")
    (folder / "notes.txt").write_bytes(b"no")
    told = picture_strip(str(folder), SHAPES[0])
    assert (
        "1 picture. Left out: phone.jxl: a picture that needs pip install pillow-jxl-plugin" in told
        and "; broken.png: " in told
    )
    assert "notes" not in told and len(shown(told)) == 1


def test_a_name_that_is_no_utf8_is_shown_as_far_as_it_can_be(folder: Path) -> None:
    try:
        (folder / "broken\udcff.png").write_bytes(b"no")
        (folder / "wide.png").rename(folder / "wide\udcff.png")
    except OSError:
        pytest.skip("this system has no such names")
    told = picture_strip(str(folder), SHAPES[0])
    assert told.encode() and 'title="wide?.png"' in told and "Left out: broken?.png: " in told


def test_an_animation_is_said_to_be_one(folder: Path) -> None:
    many = {"save_all": True, "append_images": [Image.new("RGB", (9, 9), "blue")]}
    Image.new("RGB", (9, 9), "red").save(folder / "a.gif", **many)
    told = picture_strip(str(folder), SHAPES[0])
    assert "2 pictures. a.gif has several pictures, as animations do; the first will be used.</p>" in told


def test_names_of_files_are_text(folder: Path) -> None:
    Image.new("RGB", (8, 8)).save(folder / "<img src=x onerror=alert(1)>.png")
    assert "<img src=x" not in picture_strip(str(folder), SHAPES[0])


def test_of_many_pictures_twelve_are_shown_and_all_are_counted(tmp_path: Path) -> None:
    for number in range(70):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    told = picture_strip(str(tmp_path), SHAPES[0])
    assert len(shown(told)) == 12 and "70 pictures." in told


def test_no_folder_shows_nothing_and_a_wrong_one_a_sentence(tmp_path: Path) -> None:
    assert (
        picture_strip("", SHAPES[0]) == picture_strip(None, SHAPES[0]) == folder_fault("") == folder_fault(None) == ""
    )
    assert "There is no folder" in folder_fault(str(tmp_path / "nowhere"))
    assert "has no pictures" in folder_fault(str(tmp_path))


def test_a_folder_that_is_still_being_typed_is_no_fault(folder: Path) -> None:
    typed = str(folder)[:-1]
    assert picture_strip(typed, SHAPES[0]) == ""
    assert f"There is no folder {typed}" in folder_fault(typed)
    assert shown(picture_strip(str(folder), SHAPES[0])) and folder_fault(str(folder)) == ""
