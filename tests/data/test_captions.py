"""Captions come from where they are said to come, by the rules the WebUI's users know."""

from pathlib import Path
from random import Random

import pytest

from lib_custom_diffusion.data.captions import caption_beside, captioned_pictures, captioner, class_captions, file_words
from lib_custom_diffusion.errors import UserError


def caption(source: str, path: Path, prompt: str = "<new1> cat", **options) -> str:
    return captioner(source, prompt, **options)(path, Random(0))


def test_prompt_is_the_caption_of_every_picture(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("something else")
    assert caption("prompt", tmp_path / "a.png", "photo of a <new1> cat") == "photo of a <new1> cat"


def test_text_beside_the_picture_is_its_caption_and_the_prompt_where_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeff a <new1> cat\r\nin a café \n".encode())
    (tmp_path / "b.txt").write_text("[name] on a beach")
    (tmp_path / "c.txt").write_text(" \n")
    assert caption("txt", tmp_path / "a.png") == "a <new1> cat in a café"
    assert caption("txt", tmp_path / "b.png") == "<new1> cat on a beach"
    assert caption("txt", tmp_path / "c.png") == "<new1> cat"
    assert caption("txt", tmp_path / "d.png") == "<new1> cat"


def test_brackets_that_a_tagger_escaped_are_brackets(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(r"[name], cat \(animal\), \[red\], a\b, (big:1.2)")
    assert caption("txt", tmp_path / "a.png") == r"<new1> cat, cat (animal), [red], a\b, (big:1.2)"


@pytest.mark.parametrize("suffix", [".txt", ".TXT", ".caption", ".CAPTION"])
def test_texts_of_either_name_and_case_are_captions(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a{suffix}").write_text("a <new1> cat")
    assert caption_beside(tmp_path / "a.png") == "a <new1> cat"


def test_caption_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.txt cannot be read: it is not text in UTF-8"):
        caption_beside(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("00003-1-a cat.png", "a cat"),  # as the WebUI's preprocessing names them
        ("00003-a-b.png", "a-b"),
        ("12  a cat.jpg", "a cat"),
        ("a cat 2.png", "a cat 2"),
        ("a.cat.png", "a.cat"),
        ("0001.png", ""),
        ("a\udcff cat.png", "a cat"),  # bytes that are no UTF-8, which no text encoder reads
    ],
)
def test_words_of_a_name_come_without_the_numbers_at_its_start(name: str, words: str) -> None:
    assert file_words(Path(name)) == words


def test_word_regex_and_join_string_of_the_webui_are_followed() -> None:
    path = Path("0001-red_cat-sofa.png")
    assert caption("filename", path, word_regex="[a-z]+", join_string=", ") == "red, cat, sofa"
    assert caption("filename", path, word_regex="([a-z])[a-z]+", join_string="") == "rcs"  # findall gives the group
    with pytest.raises(UserError, match=r"regex '\[' is not valid"):
        captioner("filename", "", word_regex="[")


def test_file_name_is_the_caption_and_the_prompt_where_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "1-a cat.txt").write_text("something else")
    assert caption("filename", tmp_path / "1-a cat.png") == "a cat"
    assert caption("filename", tmp_path / "1-[name] in a tree.png") == "<new1> cat in a tree"
    assert caption("filename", tmp_path / "0001.png") == "<new1> cat"


def test_template_is_filled_with_the_name_and_the_words_of_the_picture(tmp_path: Path) -> None:
    template = tmp_path / "style.txt"
    template.write_text("\na photo of [name], [filewords]\n\n")
    (tmp_path / "a.txt").write_text("in a café", encoding="utf-8")
    assert caption("template", tmp_path / "a.png", template=template) == "a photo of <new1> cat, in a café"
    assert caption("template", tmp_path / "7-by a door.png", template=template) == "a photo of <new1> cat, by a door"


def test_any_line_of_the_template_is_drawn_and_the_seed_says_which(tmp_path: Path) -> None:
    template = tmp_path / "style.txt"
    template.write_text("one [name]\ntwo [name]\nthree [name]")
    draw = captioner("template", "X", template)
    drawn = [draw(Path("a.png"), Random(seed)) for seed in range(60)]
    assert set(drawn) == {"one X", "two X", "three X"}
    assert drawn == [draw(Path("a.png"), Random(seed)) for seed in range(60)]


def test_template_that_is_not_given_missing_or_empty_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n\n")
    with pytest.raises(UserError, match="need a template"):
        captioner("template", "")
    with pytest.raises(UserError, match=r"absent cannot be read: there is no such file"):
        captioner("template", "", tmp_path / "absent")
    with pytest.raises(UserError, match=r"empty\.txt is empty"):
        captioner("template", "", tmp_path / "empty.txt")


def test_unknown_source_lists_the_valid_ones() -> None:
    with pytest.raises(UserError, match="'blip'; choose one of prompt, txt, filename, template"):
        captioner("blip", "")


def test_regularization_folder_has_captions_beside_its_pictures_or_the_class_prompt(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    (tmp_path / "b.txt").write_text("a cat asleep")
    assert class_captions(tmp_path, "cat") == [(tmp_path / "a.png", "cat"), (tmp_path / "b.png", "a cat asleep")]
    with pytest.raises(UserError, match=r"a\.png has no caption; give a class_prompt"):
        class_captions(tmp_path, "")


def listing(folder: Path, paths: list[str], captions: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "images.txt").write_text("".join(f"{path}\n" for path in paths))
    (folder / "caption.txt").write_text(captions, encoding="utf-8")
    return folder / "images.txt"


def test_listed_pictures_are_looked_up_from_the_working_directory_and_then_from_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "near.png").touch()
    paths = ["near.png", "images/0.jpg", str(tmp_path / "far.png")]
    images = listing(tmp_path / "real", paths, "one\n\nthree\u2028still three\n")
    expected = [
        (Path("near.png"), "one"),
        (tmp_path / "real" / "images" / "0.jpg", ""),
        (tmp_path / "far.png", "three\u2028still three"),
    ]
    assert captioned_pictures(images) == expected
    assert captioned_pictures(tmp_path / "real") == expected


def test_captions_of_a_list_may_be_a_file_that_the_class_prompt_names(tmp_path: Path) -> None:
    images = listing(tmp_path / "real", ["0.jpg", "1.jpg"], "beside\nbeside")
    (tmp_path / "other.txt").write_text("first\nsecond\n")
    assert [text for _, text in class_captions(images, str(tmp_path / "other.txt"))] == ["first", "second"]
    assert [text for _, text in class_captions(images, "cat" * 2000)] == ["beside", "beside"]
    (tmp_path / "real" / "caption.txt").unlink()
    assert [text for _, text in class_captions(images, "cat")] == ["cat", "cat"]


def test_list_with_another_number_of_captions_or_no_pictures_is_an_error(tmp_path: Path) -> None:
    images = listing(tmp_path / "real", ["0.jpg", "1.jpg"], "one\ntwo\nthree\n")
    with pytest.raises(UserError, match=r"lists 2 pictures but .*caption\.txt has 3 captions"):
        captioned_pictures(images)
    with pytest.raises(UserError, match="lists no pictures"):
        captioned_pictures(listing(tmp_path / "none", [], ""))


def test_picture_named_images_is_not_taken_for_a_list(tmp_path: Path) -> None:
    (tmp_path / "images.png").touch()
    (tmp_path / "images.txt").write_text("cats in a row")
    assert captioned_pictures(tmp_path) == [(tmp_path / "images.png", "cats in a row")]


def test_a_long_text_is_no_caption(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 20_001)
    with pytest.raises(UserError, match=r"a\.txt is too long for a caption"):
        caption_beside(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("x" * 20_000)
    assert len(caption_beside(tmp_path / "a.png") or "") == 20_000
