"""Regularization pictures (arXiv 2212.04488, §3.1): of the concept's class, drawn or real."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

import torch
from PIL import Image

from ..backend import Backend, Sampling
from ..errors import Interrupted, UserError
from ..storage import write_atomically
from .captions import (
    LISTING,
    can_be_listed,
    caption_beside,
    captioned_pictures,
    fill_template,
    has_listing,
    template_lines,
)
from .pictures import is_picture, load_pictures, picture_size

logger = logging.getLogger(__name__)

_OURS = re.compile(r"\d{4,}\.png")
_TEXT_BATCH = 64


@dataclass(frozen=True)
class Picked:
    """A captioned picture, and the cosine similarity of its caption to the class prompt."""

    path: Path
    caption: str
    similarity: float


@torch.no_grad()
def generate(
    backend: Backend,
    class_prompt: str,
    folder: Path,
    count: int,
    sampling: Sampling,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Draw pictures of the class prompt until the folder has `count`: 0000.png with its caption 0000.txt, and so on.

    Pictures of other names count unless they are broken, and those drawn before are kept, so an interrupted call is
    gone on with by the same call and ends in the same pictures: number i is drawn with seed + i, and always in the same
    batch as its neighbours, because a batch's size has a part in how numbers are rounded. A picture is there wholly or
    not at all, its caption before it.

    progress: called with the number of pictures done and `count`.

    Returns the pictures drawn now. Raises UserError for an empty class prompt, a count below 1, a folder whose drawn
    pictures have another class prompt, and when the folder cannot be written.
    """
    if not class_prompt.strip():
        raise UserError("regularization pictures need a class_prompt to be drawn from, such as cat")
    if count < 1 or sampling.batch_size < 1:
        raise UserError(f"at least 1 regularization picture and a batch of 1, not {count} and {sampling.batch_size}")
    if has_listing(folder):
        return []
    check_same_prompt(folder, class_prompt)
    there, wanted = _numbers(folder, count)
    missing = len(set(range(wanted)) - there)

    def show(drawn: int) -> None:
        if progress is not None:
            progress(count - missing + drawn, count)

    return _draw(backend, [class_prompt] * max(0, wanted), there, folder, sampling, seed, show)


def is_complete(folder: Path, count: int) -> bool:
    """Whether `generate` would draw nothing more into a folder."""
    there, wanted = _numbers(folder, count)
    return has_listing(folder) or there.issuperset(range(wanted))


def _numbers(folder: Path, count: int) -> tuple[set[int], int]:
    """The numbers of the drawn pictures that are there, and how many there are to be beside those of other names."""
    present = [path for path in folder.iterdir() if _is_whole(path)] if folder.is_dir() else []
    ours = [path for path in present if _OURS.fullmatch(path.name)]
    return {int(path.stem) for path in ours}, count - (len(present) - len(ours))


def _is_whole(path: Path) -> bool:
    return is_picture(path) and picture_size(path) is not None


@torch.no_grad()
def generate_captions(
    backend: Backend,
    captions: Sequence[str],
    folder: Path,
    sampling: Sampling,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Draw a picture of each caption: number i of caption i, else as `generate`, which draws all of one prompt.

    Returns the pictures drawn now. Raises UserError for no captions, a batch below 1, a folder that has a picture of
    another caption under one of the names, and when the folder cannot be written.
    """
    if not captions or sampling.batch_size < 1:
        raise UserError(f"at least 1 caption and a batch of 1, not {len(captions)} and {sampling.batch_size}")
    there = {index for index in range(len(captions)) if (folder / _name(index)).exists()}
    for index in there:
        found = caption_beside(folder / _name(index))
        if found != " ".join(captions[index].split()):
            raise UserError(
                f"{folder / _name(index)} is a picture of {found!r}, not {captions[index]!r}; choose another folder"
            )

    def show(drawn: int) -> None:
        if progress is not None:
            progress(len(there) + drawn, len(captions))

    return _draw(backend, captions, there, folder, sampling, seed, show)


def captions_of(source: Path, times: int = 1) -> list[str]:
    """The captions of a captioned folder, all of them `times` times.

    Raises UserError where there are none, and for `times` below 1.
    """
    captions = [caption for _, caption in captioned_pictures(source) if caption]
    if not captions:
        raise UserError(f"{source} has no captions; put a text file of the same name beside each picture")
    if times < 1:
        raise UserError(f"each caption is drawn at least once, not {times} times")
    return captions * times


def template_captions(template: Path, name: str, count: int, seed: int, captions: Sequence[str] = ()) -> list[str]:
    """`count` captions from the lines of a template, each line chosen at random; more of the same seed begin alike.

    name: what [name] stands for, such as cat. captions: what [filewords] stands for, one after the other.

    Raises UserError for a template that is missing or empty, or wants a name or captions where there are none, and for
    a count below 1.
    """
    if count < 1:
        raise UserError(f"at least 1 regularization picture, not {count}")
    lines = template_lines(template)
    if any("[name]" in line for line in lines) and not name.strip():
        raise UserError(f"the template {template.name} needs a name; say what kind of thing to draw, such as cat")
    if any("[filewords]" in line for line in lines) and not captions:
        raise UserError(f"the template {template.name} needs captions; give a folder with captioned pictures")
    rng = Random(seed)
    words = captions or ("",)
    return [fill_template(rng.choice(lines), name.strip(), words[index % len(words)]) for index in range(count)]


def _draw(
    backend: Backend,
    prompts: Sequence[str],
    there: Collection[int],
    folder: Path,
    sampling: Sampling,
    seed: int,
    show: Callable[[int], None],
) -> list[Path]:
    """Draw those prompts whose numbers are not there yet, a batch at a time, telling how many are drawn after each.

    Raises Interrupted when a backend gives fewer than it was asked for, as a person wants no more of them.
    """
    drawn: list[Path] = []
    for first in range(0, len(prompts), sampling.batch_size):
        batch = range(first, min(first + sampling.batch_size, len(prompts)))
        if all(index in there for index in batch):
            continue
        seeds = [seed + index for index in batch]
        pictures = backend.generate([prompts[index] for index in batch], seeds, sampling, {})
        for index, picture in zip(batch, pictures):
            if index in there:
                continue
            path = folder / _name(index)
            write_atomically(path.with_suffix(".txt"), f"{prompts[index]}\n".encode())
            write_atomically(path, _png(picture))
            drawn.append(path)
        show(len(drawn))
        if len(pictures) < len(batch):
            raise Interrupted("Interrupted. What was finished is kept; draw again with the same settings to continue.")
    return drawn


def _name(index: int) -> str:
    return f"{index:04d}.png"


@torch.no_grad()
def pick(
    backend: Backend,
    source: Path,
    class_prompt: str,
    count: int = 200,
    progress: Callable[[int, int], None] | None = None,
) -> list[Picked]:
    """The pictures of a captioned folder whose captions are nearest to the class prompt, the nearest first.

    This is the paper's choice of real regularization pictures, by cosine similarity in the model's own text space.
    source: what `captions.captioned_pictures` reads. Pictures without a caption are left out, and so are those that
    cannot be read, which the log names. There are fewer than `count` if the folder has no more.

    progress: called with the number of captions compared and their total.

    Raises UserError for an empty class prompt, a count below 1, and when there are no captioned pictures.
    """
    if not class_prompt.strip():
        raise UserError("regularization pictures need a class_prompt to be picked by, such as cat")
    if count < 1:
        raise UserError(f"at least 1 regularization picture, not {count}")
    captioned = to_pick_from(source)
    target = backend.pooled_text([class_prompt])[0].float().cpu()
    candidates: list[Picked] = []
    for start in range(0, len(captioned), _TEXT_BATCH):
        part = captioned[start : start + _TEXT_BATCH]
        similarities = backend.pooled_text([caption for _, caption in part]).float().cpu() @ target
        candidates += [Picked(*pair, similarity) for pair, similarity in zip(part, similarities.tolist(), strict=True)]
        if progress is not None:
            progress(len(candidates), len(captioned))
    candidates.sort(key=lambda candidate: -candidate.similarity)
    readable = load_pictures(candidate.path for candidate in candidates)
    return [candidates[index] for index, _, _ in islice(readable, count)]


def to_pick_from(source: Path) -> list[tuple[Path, str]]:
    """The captioned pictures of what `captions.captioned_pictures` reads, that can be listed; the log names others.

    Raises UserError if there are none.
    """
    captioned: list[tuple[Path, str]] = []
    unlisted: list[Path] = []
    for path, caption in captioned_pictures(source):
        if caption and can_be_listed(path):
            captioned.append((path, caption))
        elif caption:
            unlisted.append(path)
    if unlisted:
        told = f"{str(unlisted[0])!a} is not in UTF-8, or has a line break, and cannot be listed; rename it"
        if not captioned:
            raise UserError(told)
        logger.warning("skipped %s of the pictures: %s", len(unlisted), told)
    if not captioned:
        raise UserError(f"{source} has no captions to pick by; put a text file of the same name beside each picture")
    return captioned


def write_listing(picked: Sequence[Picked], folder: Path) -> None:
    """Make `folder` a class_data_dir of picked pictures: their full paths in images.txt, their captions in caption.txt.

    The pictures stay where they are. These are the files that the authors' script keeps for real pictures, too.
    Raises UserError when the folder cannot be written.
    """
    lines = ([str(choice.path.resolve()) for choice in picked], [choice.caption for choice in picked])
    for name, texts in zip(LISTING, lines, strict=True):
        write_atomically(folder / name, "".join(f"{text}\n" for text in texts).encode())


def check_same_prompt(folder: Path, class_prompt: str) -> None:
    """Raise UserError for a folder whose drawn pictures are all of something else; captions mended by hand are fine."""
    ours = [path for path in folder.iterdir() if _OURS.fullmatch(path.name)] if folder.is_dir() else []
    captions = {caption for caption in map(caption_beside, ours) if caption}
    if captions and " ".join(class_prompt.split()) not in captions:
        raise UserError(f"{folder} has pictures of {min(captions)!r}, not {class_prompt!r}; choose another folder")


def _png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, format="PNG")
    return content.getvalue()
