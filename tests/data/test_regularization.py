"""Regularization folders end alike however often interrupted, and real pictures are picked by their captions."""

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from lib_custom_diffusion.backend import Sampling
from lib_custom_diffusion.data import regularization
from lib_custom_diffusion.data.captions import captioned_pictures, class_captions
from lib_custom_diffusion.data.regularization import (
    Picked,
    captions_of,
    generate,
    generate_captions,
    pick,
    template_captions,
    write_listing,
)
from lib_custom_diffusion.errors import UserError
from tiny import TinyBackend

PAIRS = Sampling(batch_size=2)


class Painter(TinyBackend):
    """Paints the seed, and what rounding does on a real device: a trace of how many are drawn at once."""

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        self.seeds: list[int] = []
        self.prompts: set[str] = set()
        self.fails_at = fails_at

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], sampling: Sampling, vectors: Mapping[str, Tensor]
    ) -> list[Image.Image]:
        assert not torch.is_grad_enabled()
        if self.fails_at in seeds:
            raise KeyboardInterrupt
        self.seeds += seeds
        self.prompts |= set(prompts)
        return [Image.new("RGB", (8, 8), (seed, len(prompts), 0)) for seed in seeds]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_folder_gets_numbered_pictures_with_captions(tmp_path: Path) -> None:
    folder, backend, told = tmp_path / "new" / "reg", Painter(), []
    drawn = generate(backend, "photo of a cat", folder, 3, PAIRS, 40, lambda *progress: told.append(progress))
    assert drawn == [folder / name for name in ("0000.png", "0001.png", "0002.png")]
    assert [Image.open(path).getpixel((0, 0))[0] for path in drawn] == [40, 41, 42]
    assert backend.prompts == {"photo of a cat"}
    assert class_captions(folder, "") == [(path, "photo of a cat") for path in drawn]
    assert len(content(folder)) == 6
    assert told == [(2, 3), (3, 3)]


def test_folder_that_is_complete_is_left_alone(tmp_path: Path) -> None:
    generate(Painter(), "cat", tmp_path, 3, PAIRS, 0)
    before, backend = content(tmp_path), Painter()
    assert generate(backend, "cat", tmp_path, 3, PAIRS, 0) == []
    assert generate(backend, "cat", tmp_path, 2, PAIRS, 0) == []
    assert backend.seeds == []
    assert content(tmp_path) == before


@pytest.mark.parametrize("missing", [["0001.png"], ["0000.png", "0000.txt"], ["0001.png", "0004.png"]])
def test_what_is_missing_is_drawn_as_it_was(tmp_path: Path, missing: list[str]) -> None:
    generate(Painter(), "cat", tmp_path, 5, PAIRS, 7)
    before = content(tmp_path)
    for name in missing:
        (tmp_path / name).unlink()
    drawn = generate(Painter(), "cat", tmp_path, 5, PAIRS, 7)
    assert [path.name for path in drawn] == [name for name in missing if name.endswith(".png")]
    assert content(tmp_path) == before


def test_interrupted_drawing_goes_on_to_the_same_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    generate(Painter(), "cat", whole, 6, PAIRS, 0)
    with pytest.raises(KeyboardInterrupt):
        generate(Painter(fails_at=4), "cat", broken, 6, PAIRS, 0)
    assert list(content(broken)) == ["0000.png", "0000.txt", "0001.png", "0001.txt", "0002.png", "0002.txt",
                                     "0003.png", "0003.txt"]  # fmt: skip

    write = regularization.write_atomically

    def killed_before_the_picture(path: Path, data: bytes) -> None:
        if path.name == "0004.png":
            raise KeyboardInterrupt
        write(path, data)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(regularization, "write_atomically", killed_before_the_picture)
        generate(Painter(), "cat", broken, 6, PAIRS, 0)
    assert "0004.txt" in content(broken)  # a picture is never without its caption
    told: list[tuple[int, int]] = []
    generate(Painter(), "cat", broken, 6, PAIRS, 0, lambda *progress: told.append(progress))
    assert content(broken) == content(whole)
    assert told == [(6, 6)]


def test_leftover_captions_alone_do_not_count_as_pictures(tmp_path: Path) -> None:
    (tmp_path / "0000.txt").write_text("cat")
    assert len(generate(Painter(), "cat", tmp_path, 2, PAIRS, 0)) == 2


def test_pictures_of_other_names_count(tmp_path: Path) -> None:
    for name in ("mine.jpg", "12.png", "other.webp"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    drawn = generate(Painter(), "cat", tmp_path, 5, PAIRS, 0)
    assert [path.name for path in drawn] == ["0000.png", "0001.png"]
    assert generate(Painter(), "cat", tmp_path, 5, PAIRS, 0) == []
    assert generate(Painter(), "cat", tmp_path, 2, PAIRS, 0) == []


@pytest.mark.parametrize("name", ["mine.png", "0000.png"])
def test_broken_pictures_do_not_count_and_those_that_were_drawn_are_drawn_again(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"torn")
    drawn = generate(Painter(), "cat", tmp_path, 2, PAIRS, 0)
    assert [path.name for path in drawn] == ["0000.png", "0001.png"]
    assert [Image.open(path).size for path in drawn] == [Image.open(drawn[1]).size] * 2


def test_folder_that_lists_real_pictures_is_left_alone(tmp_path: Path) -> None:
    write_listing([Picked(tmp_path / "0.jpg", "a cat", 1.0)], tmp_path)
    assert generate(Painter(), "cat", tmp_path, 5, PAIRS, 0) == []


def test_folder_of_another_class_is_refused_and_mended_captions_are_not(tmp_path: Path) -> None:
    generate(Painter(), "a  cat", tmp_path, 2, PAIRS, 0)
    with pytest.raises(UserError, match="has pictures of 'a cat', not 'dog'; choose another folder"):
        generate(Painter(), "dog", tmp_path, 3, PAIRS, 0)
    (tmp_path / "0000.txt").write_text("Tom asleep")
    assert len(generate(Painter(), "a  cat", tmp_path, 3, PAIRS, 0)) == 1


def test_nothing_to_draw_from_or_to_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="need a class_prompt"):
        generate(Painter(), " ", tmp_path, 2, PAIRS, 0)
    with pytest.raises(UserError, match=r"at least 1 regularization picture .* not 0 and 2"):
        generate(Painter(), "cat", tmp_path, 0, PAIRS, 0)
    with pytest.raises(UserError, match="not 1 and 0"):
        generate(Painter(), "cat", tmp_path, 1, Sampling(batch_size=0), 0)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot save .*file"):
        generate(Painter(), "cat", tmp_path / "file", 1, PAIRS, 0)

    def no_space(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(UserError, match="No space left"):
        generate(Painter(), "cat", tmp_path / "reg", 1, PAIRS, 0)
    assert content(tmp_path / "reg") == {}


class Reader(TinyBackend):
    """Text features at angles that can be read off: cosines with "cat" are 1, 0.8, 0.6, 0 and -1."""

    features = {"cat": (1, 0), "kitten": (0.8, 0.6), "dog": (0.6, -0.8), "house": (0, 1), "void": (-1, 0)}  # noqa: RUF012

    def pooled_text(self, captions: Sequence[str]) -> Tensor:
        assert not torch.is_grad_enabled()
        assert len(captions) <= 64  # a text encoder has only so much room
        return torch.tensor([self.features[caption] for caption in captions], dtype=torch.float32)


def captioned(folder: Path, *captions: str) -> Path:
    folder.mkdir()
    for index, caption in enumerate(captions):
        Image.new("RGB", (8, 8)).save(folder / f"{index}.png")
        if caption:
            (folder / f"{index}.txt").write_text(caption)
    return folder


def test_nearest_captions_are_picked_first(tmp_path: Path) -> None:
    source = captioned(tmp_path / "real", "house", "dog", "cat", "", "void", "kitten")
    picked = pick(Reader(), source, "cat", 4)
    assert [choice.caption for choice in picked] == ["cat", "kitten", "dog", "house"]
    assert [choice.path.name for choice in picked] == ["2.png", "5.png", "1.png", "0.png"]
    assert [choice.similarity for choice in picked] == pytest.approx([1, 0.8, 0.6, 0])
    assert len(pick(Reader(), source, "cat", 200)) == 5  # the one without a caption is left out


def test_equally_near_captions_are_picked_in_the_order_of_their_names(tmp_path: Path) -> None:
    source = captioned(tmp_path / "real", "dog", "cat", "dog", "cat")
    assert [choice.path.name for choice in pick(Reader(), source, "cat", 3)] == ["1.png", "3.png", "0.png"]


def test_many_captions_are_compared_in_parts(tmp_path: Path) -> None:
    source, told = captioned(tmp_path / "real", *["dog"] * 129, "cat"), []
    picked = pick(Reader(), source, "cat", 1, lambda *progress: told.append(progress))
    assert [choice.path.name for choice in picked] == ["129.png"]
    assert told == [(64, 130), (128, 130), (130, 130)]


def test_pictures_that_cannot_be_read_are_not_picked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = captioned(tmp_path / "real", "cat", "kitten", "dog")
    (source / "0.png").write_bytes(b"no picture")
    with caplog.at_level(logging.WARNING):
        assert [choice.caption for choice in pick(Reader(), source, "cat", 1)] == ["kitten"]
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [f"skipped {source / '0.png'}"]


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="there all names are text")
@pytest.mark.parametrize("name", [b"a\xff.png", b"a\nb.png", b"a\rb.png"])
def test_pictures_that_no_list_can_name_are_not_picked(
    tmp_path: Path, name: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    source = captioned(tmp_path / "real", "cat", "kitten")
    for suffix in (".png", ".txt"):
        (source / f"0{suffix}").rename(source / os.fsdecode(name.replace(b".png", suffix.encode())))
    picked = pick(Reader(), source, "cat", 2)
    assert [choice.caption for choice in picked] == ["kitten"]
    assert "is not in UTF-8, or has a line break, and cannot be listed; rename it" in caplog.text
    write_listing(picked, tmp_path / "reg")
    assert class_captions(tmp_path / "reg", "unused") == [(source / "1.png", "kitten")]
    source.rename(tmp_path / os.fsdecode(b"re\xffal"))
    with pytest.raises(UserError, match="is not in UTF-8, or has a line break, and cannot be listed; rename it"):
        pick(Reader(), tmp_path / os.fsdecode(b"re\xffal"), "cat", 2)


def test_nothing_to_pick_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder .*absent"):
        pick(Reader(), tmp_path / "absent", "cat")
    bare = captioned(tmp_path / "bare", "", "")
    with pytest.raises(UserError, match="bare has no captions to pick by"):
        pick(Reader(), bare, "cat")
    with pytest.raises(UserError, match="need a class_prompt"):
        pick(Reader(), bare, "")
    with pytest.raises(UserError, match="at least 1 regularization picture, not 0"):
        pick(Reader(), bare, "cat", 0)


def test_listing_is_a_class_data_dir_of_what_was_picked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captioned(tmp_path / "real", "house", "kitten", "cat")
    monkeypatch.chdir(tmp_path)
    picked = pick(Reader(), Path("real"), "cat", 2)
    write_listing(picked, tmp_path / "reg")
    monkeypatch.chdir("/")
    expected = [(tmp_path / "real" / "2.png", "cat"), (tmp_path / "real" / "1.png", "kitten")]
    assert class_captions(tmp_path / "reg", "unused") == expected
    assert sorted(os.listdir(tmp_path / "reg")) == ["caption.txt", "images.txt"]
    assert pick(Reader(), tmp_path / "reg", "cat", 1)[0].path == tmp_path / "real" / "2.png"


def test_each_caption_is_drawn_and_an_interrupted_call_is_gone_on_with(tmp_path: Path) -> None:
    captions, whole, told = ["a cat", "a dog", "a cat"], tmp_path / "whole", []
    drawn = generate_captions(Painter(), captions, whole, PAIRS, 40, lambda *progress: told.append(progress))
    assert drawn == [whole / name for name in ("0000.png", "0001.png", "0002.png")]
    assert [caption for _, caption in captioned_pictures(whole)] == captions
    assert told == [(2, 3), (3, 3)]
    part = tmp_path / "part"
    with pytest.raises(KeyboardInterrupt):
        generate_captions(Painter(fails_at=42), captions, part, PAIRS, 40)
    (part / "0000.png").unlink()
    assert [path.name for path in generate_captions(Painter(), captions, part, PAIRS, 40)] == ["0000.png", "0002.png"]
    assert content(part) == content(whole)


def test_a_folder_with_pictures_of_other_captions_is_left_alone(tmp_path: Path) -> None:
    generate_captions(Painter(), ["a cat"], tmp_path, PAIRS, 40)
    before = content(tmp_path)
    with pytest.raises(UserError, match=r"0000\.png is a picture of 'a cat', not 'a dog'"):
        generate_captions(Painter(), ["a dog", "a cat"], tmp_path, PAIRS, 40)
    assert content(tmp_path) == before
    with pytest.raises(UserError, match="at least 1 caption"):
        generate_captions(Painter(), [], tmp_path, PAIRS, 40)


def test_captions_of_a_folder_come_as_often_as_asked(tmp_path: Path) -> None:
    source = captioned(tmp_path / "real", "red cat", "", "a dog")
    assert captions_of(source, 2) == ["red cat", "a dog", "red cat", "a dog"]
    with pytest.raises(UserError, match="at least once, not 0"):
        captions_of(source, 0)
    with pytest.raises(UserError, match="has no captions"):
        captions_of(captioned(tmp_path / "bare", ""))


def test_a_template_gives_any_of_its_lines_and_more_of_a_seed_begin_alike(tmp_path: Path) -> None:
    template = tmp_path / "kinds.txt"
    template.write_text("photo of a [name]\n\n[filewords] by a [name]\n")
    few = template_captions(template, " cat ", 20, 7, ["a tree", "a house"])
    assert set(few) == {"photo of a cat", "a tree by a cat", "a house by a cat"}
    assert template_captions(template, "cat", 40, 7, ["a tree", "a house"])[:20] == few
    assert template_captions(template, "cat", 20, 8, ["a tree", "a house"]) != few


def test_a_template_that_lacks_something_says_what(tmp_path: Path) -> None:
    template = tmp_path / "kinds.txt"
    template.write_text("a [name] of [filewords]")
    with pytest.raises(UserError, match=r"kinds\.txt needs captions"):
        template_captions(template, "cat", 1, 1)
    with pytest.raises(UserError, match=r"kinds\.txt needs a name"):
        template_captions(template, " ", 1, 1, ["tin"])
    with pytest.raises(UserError, match="at least 1"):
        template_captions(template, "cat", 0, 1, ["tin"])
    with pytest.raises(UserError, match="there is no such file"):
        template_captions(tmp_path / "none.txt", "cat", 1, 1)
