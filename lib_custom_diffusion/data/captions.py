"""Captions of pictures: from a prompt, from text files beside them, from their names, from a template, from a list."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from ..errors import UserError
from ..storage import given_path, is_utf8, read_text
from .pictures import find_pictures

CAPTION_SOURCES = ("prompt", "txt", "filename", "template")
LISTING = ("images.txt", "caption.txt")
"""Files of a folder whose pictures are elsewhere: their paths and, line by line, their captions."""

_TEXTS = (".txt", ".TXT", ".Txt", ".caption", ".CAPTION", ".Caption")
"""How captions beside pictures end; not every file system takes letters of either case for the same."""

Captioner = Callable[[Path, Random], str]
"""What gives a picture its caption; it draws from the generator if there are several to choose from."""

_ESCAPED = re.compile(r"\\([()\[\]])")
"""A bracket as taggers write it for programs that read bare ones as weights; nothing here does."""

_NUMBERS_AT_START = re.compile(r"^[-\d]+\s*")


def captioner(
    source: str, prompt: str, template: Path | None = None, word_regex: str = "", join_string: str = " "
) -> Captioner:
    """The captions of a concept's pictures.

    source: "prompt"    `prompt`, for every picture;
            "txt"       the text file beside the picture, or `prompt` where there is none;
            "filename"  the picture's name by the WebUI's rules, see `file_words`, or `prompt` where nothing is left;
            "template"  a line of the file `template`, any one each time, in which [filewords] is the text file beside
                        the picture or else its name, as in the WebUI.
    In the last three [name] stands for `prompt`, which is then best a name such as "<new1> cat".

    Raises UserError for another source, for a template that is missing or empty, and for a regex that is none.
    """
    words = _compiled(word_regex)
    if source == "prompt":
        return lambda path, rng: prompt
    if source == "txt":
        return lambda path, rng: caption_beside(path).replace("[name]", prompt) or prompt
    if source == "filename":
        return lambda path, rng: file_words(path, words, join_string).replace("[name]", prompt) or prompt
    if source == "template":
        lines = template_lines(template)

        def from_template(path: Path, rng: Random) -> str:
            filewords = caption_beside(path) or file_words(path, words, join_string)
            return fill_template(rng.choice(lines), prompt, filewords)

        return from_template
    raise UserError(f"unknown caption source {source!r}; choose one of {', '.join(CAPTION_SOURCES)}")


def captions_of_pictures(
    paths: Sequence[Path],
    source: str,
    prompt: str,
    template: Path | None = None,
    word_regex: str = "",
    join_string: str = " ",
) -> list[str]:
    """All captions that pictures may get from a source, each once; see `captioner`, which raises alike."""
    if source != "template":
        caption = captioner(source, prompt, template, word_regex, join_string)
        return list(dict.fromkeys(caption(path, Random(0)) for path in paths))
    words = _compiled(word_regex)
    filewords = [caption_beside(path) or file_words(path, words, join_string) for path in paths]
    return list(
        dict.fromkeys(fill_template(line, prompt, each) for line in template_lines(template) for each in filewords)
    )


def caption_beside(path: Path) -> str:
    """The text file of a picture's name (.txt or .caption), as one line; "" where there is none.

    Raises UserError if it is no text.
    """
    beside = (path.with_suffix(suffix) for suffix in _TEXTS)
    text = next((each for each in beside if each.is_file()), None)
    return " ".join(_ESCAPED.sub(r"\1", _caption_of(text)).split()) if text else ""


def file_words(path: Path, words: re.Pattern[str] | None = None, join_string: str = " ") -> str:
    """The words of a picture's name by the WebUI's rules: "00003-1-a cat.png" gives "a cat".

    Digits and dashes at the start go, the spaces after them, and bytes that are not in UTF-8. With `words`, what it
    finds is joined by `join_string` (the WebUI's "Filename word regex" and "Filename join string").
    """
    name = _NUMBERS_AT_START.sub("", path.stem.encode("utf-8", "ignore").decode())
    if words:
        found = words.findall(name)  # tuples if the regex has several groups
        name = join_string.join(part if isinstance(part, str) else "".join(part) for part in found)
    return name.strip()


def captioned_pictures(source: Path, captions: Path | None = None) -> list[tuple[Path, str]]:
    """Pictures with their captions, "" where a picture has none.

    source:     a folder of pictures with text files beside them; or one with images.txt and caption.txt, which list
                paths of pictures and their captions line by line; or such a list of paths itself.
    captions:   the captions of a list, if not the caption.txt beside it.

    Paths in a list are looked up from the working directory, then from the list's folder. Raises UserError when there
    are no pictures, or not as many captions as paths.
    """
    if has_listing(source):
        source = source / LISTING[0]
    if not source.is_file():
        return [(path, caption_beside(path)) for path in find_pictures(source)]
    listed = _lines(source)
    beside = source.parent / LISTING[1]
    captions = captions or (beside if beside.is_file() else None)
    texts = _lines(captions) if captions else [""] * len(listed)
    if len(texts) != len(listed):
        raise UserError(f"{source} lists {len(listed)} pictures but {captions} has {len(texts)} captions")
    found = [(given_path(line.strip()), text.strip()) for line, text in zip(listed, texts, strict=True) if line.strip()]
    if not found:
        raise UserError(f"{source} lists no pictures")
    return [(path if path.exists() else source.parent / path, text) for path, text in found]


def can_be_listed(path: Path) -> bool:
    """Whether a line of such a list can be a picture's full path."""
    full = str(path.resolve())
    return is_utf8(full) and not {"\n", "\r", "\0"} & set(full)


def is_listing(source: Path) -> bool:
    """Whether class_data_dir lists pictures, being such a file or a folder that has one, rather than holding them."""
    return source.is_file() or has_listing(source)


def has_listing(folder: Path) -> bool:
    """Whether a folder lists pictures (images.txt, caption.txt) rather than holding them."""
    return all((folder / name).is_file() for name in LISTING)


def class_captions(class_data_dir: Path, class_prompt: str) -> list[tuple[Path, str]]:
    """Regularization pictures with their captions, and `class_prompt` where a picture has none of its own.

    class_prompt may instead name a file with the captions of the list `class_data_dir`, as in the script that the
    paper's authors wrote. Raises UserError as `captioned_pictures`, and for a picture without any caption.
    """
    captions = given_path(class_prompt)
    if class_data_dir.is_file() and os.path.isfile(captions):  # unlike Path.is_file it takes a long prompt too
        return captioned_pictures(class_data_dir, captions)
    found = [(path, caption or class_prompt) for path, caption in captioned_pictures(class_data_dir)]
    for path, caption in found:
        if not caption:
            raise UserError(f"the regularization picture {path} has no caption; give a class_prompt, such as cat")
    return found


def fill_template(line: str, name: str, filewords: str) -> str:
    """A line of a template with [name] and [filewords] put in; [name] last, as a caption may have it too."""
    return line.replace("[filewords]", filewords).replace("[name]", name).strip()


def template_lines(template: Path | None) -> list[str]:
    """The lines of a template that are not blank. Raises UserError for a template that is missing or empty."""
    if template is None:
        raise UserError("captions from a template need a template: a text file with lines such as a photo of a [name]")
    lines = [line.strip() for line in _lines(template) if line.strip()]
    if not lines:
        raise UserError(f"the template {template} is empty; write lines such as a photo of a [name]")
    return lines


def _compiled(regex: str) -> re.Pattern[str] | None:
    try:
        return re.compile(regex) if regex else None
    except re.error as error:
        raise UserError(f"the file name word regex {regex!r} is not valid: {error}") from error


def _lines(path: Path) -> list[str]:
    """The lines of a text file. (str.splitlines would also split at rarer characters that a caption may have.)"""
    return read_text(path).removesuffix("\n").split("\n")


_LONGEST = 20_000  # characters of one caption: encoding takes longer with each


def _caption_of(path: Path) -> str:
    text = read_text(path)
    if len(text.strip()) > _LONGEST:
        raise UserError(f"{path} is too long for a caption ({len(text):,} characters); give one of a few sentences")
    return text
