"""Concepts: what is to be learned from which pictures, and these pictures as the latents a training runs on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from ..backend import LATENT_CELL, MOST_PIXELS, Backend, Sizes
from ..errors import UserError, check_range
from ..storage import given_path, named_once, read_text
from .augmentation import View, random_view
from .buckets import Size, bucket_sizes, dealt_out, nearest_bucket, size_multiple
from .captions import CAPTION_SOURCES, Captioner, captioner, class_captions
from .pictures import (
    Picture,
    Placement,
    UnusablePicture,
    draw,
    find_pictures,
    is_moving,
    leave_out,
    load_pictures,
    picture_size,
    place,
    sizes_of,
    unread_pictures,
    weigh,
)

RESIZE_MODES = ("crop", "pad", "bucket")
_ENCODE_BATCH = 4
_ENCODE_PIXELS = 4 * 512 * 512  # at once: the VAE's memory, gigabytes of float32, grows with them
_ATTEMPTS = 50
"""How often a view is drawn anew in which everything is transparent."""


@dataclass(frozen=True)
class Concept:
    """What one modifier token is to mean.

    instance_prompt:    caption of the concept's pictures, such as "photo of a <new1> cat". With other caption sources
                        it stands in for missing captions and for [name], see `captions.captioner`.
    class_prompt:       what the concept is a kind of, such as "cat"; caption of regularization pictures without one.
    class_data_dir:     regularization pictures: a folder, or a list, see `captions.captioned_pictures`. None for none.
    """

    instance_prompt: str
    instance_data_dir: Path
    class_prompt: str = ""
    class_data_dir: Path | None = None


@dataclass(frozen=True)
class PictureSettings:
    """How pictures become examples.

    resolution:         width and height in pixels, a multiple of 8; None is the model's own. With buckets, the side of
                        a square of the same area.
    noaug:              show the concept's own pictures as they are, without the views of the paper, see
                        `augmentation.random_view`.
    hflip:              mirror each picture with probability 1/2. Captions stay as they are: leave it off where they say
                        left or right, or where the concept itself has sides, such as writing.
    center_crop:        crop pictures at the centre rather than at random.
    resize_mode:        "crop" pictures to a square; or "pad" them to one, with no loss on the padding; or leave them as
                        they are, cropped to the nearest "bucket" of `buckets.bucket_sizes`. Regularization pictures are
                        then cropped to the buckets that the concept's own have.
    use_alpha:          take the alpha channel as loss weight; otherwise transparent parts are white.
    caption_source, template, filename_word_regex, filename_join_string: see `captions.captioner`.
    variants:           how many random views, crops, flips and captions of each of the concept's pictures are encoded
                        before the training, which then draws from these alone. Regularization pictures get one.
    num_class_images:   at most so many regularization pictures, the first by name or in the list; 0 for all there are.
    """

    resolution: int | None = None
    noaug: bool = False
    hflip: bool = False
    center_crop: bool = False
    resize_mode: str = RESIZE_MODES[0]
    use_alpha: bool = False
    caption_source: str = CAPTION_SOURCES[0]
    template: Path | None = None
    filename_word_regex: str = ""
    filename_join_string: str = " "
    variants: int = 16
    num_class_images: int = 200

    def check(self, label: Callable[[str], str] = str) -> None:
        """Raise UserError for a value that no picture can have. label: what the user knows a setting as."""
        if self.resolution is not None and (self.resolution < LATENT_CELL or self.resolution % LATENT_CELL):
            raise UserError(
                f"{label('resolution')} must be a multiple of {LATENT_CELL} pixels, such as 512, not {self.resolution}"
            )
        if self.resize_mode not in RESIZE_MODES:
            raise UserError(f"{label('resize_mode')} is one of {', '.join(RESIZE_MODES)}, not {self.resize_mode!r}")
        if self.caption_source not in CAPTION_SOURCES:
            raise UserError(
                f"{label('caption_source')} is one of {', '.join(CAPTION_SOURCES)}, not {self.caption_source!r}"
            )
        check_range(self, "resolution", LATENT_CELL, MOST_PIXELS, label)
        check_range(self, "variants", 1, 1000, label)
        check_range(self, "num_class_images", 0, 1_000_000, label)

    @property
    def drawn_variants(self) -> int:
        """How many examples each of the concept's pictures gives: 1 if they could not differ."""
        random_crop = self.resize_mode != "pad" and not self.center_crop
        differ = not self.noaug or self.hflip or random_crop or self.caption_source == "template"
        return self.variants if differ else 1


@dataclass(frozen=True)
class Example:
    """A picture as a training sees it, on the CPU in float32.

    mean, std:  posterior of its latents, (channels, h, w).
    mask:       loss weight, (1, h, w); somewhere above 0.
    sizes:      how the picture came to its size; None for a whole one of the model's own size.
    """

    mean: Tensor
    std: Tensor
    mask: Tensor
    caption: str
    sizes: Sizes | None = None


@dataclass(frozen=True)
class ConceptExamples:
    """The examples of one concept, and those of its regularization pictures, none without a class_data_dir.

    found:    how many pictures there were of either, usable or not.
    left_out: those that could not be used, with the reason.
    moving:   those that are used and are the first of several pictures in their file.
    """

    instance: list[Example]
    prior: list[Example]
    found: tuple[int, int] = (0, 0)
    left_out: tuple[dict[Path, str], dict[Path, str]] = field(default_factory=lambda: ({}, {}))
    moving: tuple[Path, ...] = ()


def load_concepts_list(path: Path) -> list[Concept]:
    """The concepts of a JSON file: a list of objects with the keys of `Concept`, instance_… needed, class_… not.

    Relative folders are looked up from the working directory, and then from the file's own. Where neither has a
    class_data_dir, it is one that will be made, beside where instance_data_dir was found.

    Raises UserError, which says in which concept (from 1) and key, when a key is missing, unknown or no text, or when
    instance_data_dir is no folder; and when the file is missing or malformed.
    """
    text = read_text(path, f"the concepts list {path}")
    try:
        entries = json.loads(text, object_pairs_hook=named_once)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the concepts list {path} is not valid JSON: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise UserError(
            f'the concepts list {path} must be a list: [{{"instance_prompt": …, "instance_data_dir": …}}, …]'
        )
    found = []
    for number, entry in enumerate(entries, start=1):
        where = f"{path}, concept {number}"
        found.append(_located(read_concept(entry, where), where, path.parent))
    return found


def read_concept(entry: Any, where: str) -> Concept:
    """A concept from JSON, its folders as they are written. where: what a message calls it.

    Raises UserError when a key is missing, unknown or no text.
    """
    if not isinstance(entry, dict):
        raise UserError(f"{where} must be an object with the keys {', '.join(Concept.__dataclass_fields__)}")
    for key, value in entry.items():
        if key not in Concept.__dataclass_fields__:
            raise UserError(f"{where}: unknown key {key!r}; there are {', '.join(Concept.__dataclass_fields__)}")
        if not isinstance(value, str) and not (value is None and key.startswith("class_")):
            raise UserError(f"{where}: {key} must be a text, not {json.dumps(value, default=str)}")
    for key in ("instance_prompt", "instance_data_dir"):
        if not entry.get(key, "").strip():
            raise UserError(f"{where}: {key} is missing")
    class_data_dir = (entry.get("class_data_dir") or "").strip()
    return Concept(
        entry["instance_prompt"],
        given_path(entry["instance_data_dir"].strip()),
        (entry.get("class_prompt") or "").strip(),
        given_path(class_data_dir) if class_data_dir else None,
    )


def _located(concept: Concept, where: str, folder: Path) -> Concept:
    """The concept with its folders found from the working directory or from the list's."""
    bases, own = (Path(), folder), concept.instance_data_dir
    base = next((base for base in bases if os.path.isdir(base / own)), None)
    if base is None:
        raise UserError(f"{where}: instance_data_dir points to {own}, where there is no folder")
    given = concept.class_data_dir
    if given is not None:
        given = next((it / given for it in (base, *bases) if os.path.exists(it / given)), base / given)
    return replace(concept, instance_data_dir=base / own, class_data_dir=given)


@torch.no_grad()
def encode_concept(
    concept: Concept,
    backend: Backend,
    settings: PictureSettings,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> ConceptExamples:
    """Everything that a training needs to know of a concept's pictures, encoded once.

    What is random is told by `seed`, the concept's prompt and a picture's place in its folder, so a resumed training
    gets the same examples to the bit, and a picture that cannot be used changes nothing for the others.

    progress: called with the number of pictures done and their total.

    Raises UserError for settings, folders and captions as `PictureSettings.check`, `find_pictures` and the functions
    of `captions` do, when no picture can be used, and when the VAE makes no numbers of one. A picture that cannot be
    used among others is named in the log and left out.
    """
    settings.check()
    captions = captioner(
        settings.caption_source, concept.instance_prompt, settings.template,
        settings.filename_word_regex, settings.filename_join_string,
    )  # fmt: skip
    own = [(path, captions) for path in find_pictures(concept.instance_data_dir)]
    listed = class_captions(concept.class_data_dir, concept.class_prompt) if concept.class_data_dir else []
    prior = [(path, _fixed(caption)) for path, caption in listed[: settings.num_class_images or None]]

    def report(done: int) -> None:
        if progress is not None:
            progress(done, len(own) + len(prior))

    told_by = f"{seed}/{concept.instance_prompt}"
    plain = replace(settings, noaug=True, variants=1)
    canvases, prior_canvases = _canvases([path for path, _ in own], [path for path, _ in prior], settings, backend)
    left_out: tuple[dict[Path, str], dict[Path, str]] = {}, {}
    instance = _encode_all(own, canvases, backend, settings, f"{told_by}/own", left_out[0], report)
    of_class: list[Example] = []
    if prior:

        def after_own(done: int) -> None:
            report(len(own) + done)

        of_class = _encode_all(prior, prior_canvases, backend, plain, f"{told_by}/prior", left_out[1], after_own)
    unread = unread_pictures(concept.instance_data_dir)
    left_out[0].update(unread)
    found = len({path for path, _ in own}) + len(unread), len({path for path, _ in prior})
    used = [path for path, _ in (*own, *prior) if not any(path in each for each in left_out)]
    moving = tuple(filter(is_moving, dict.fromkeys(used)))
    return ConceptExamples(instance, of_class, found, left_out, moving)


def _canvases(
    own: Sequence[Path], prior: Sequence[Path], settings: PictureSettings, backend: Backend
) -> tuple[list[Size], list[Size]]:
    """The canvas of each of the concept's pictures, and of each regularization picture."""
    resolution = settings.resolution or backend.resolution
    square = resolution, resolution
    if settings.resize_mode != "bucket":
        return [square] * len(own), [square] * len(prior)
    buckets = bucket_sizes(resolution, size_multiple(backend.unet))
    sizes = [picture_size(path) for path in own]
    canvases = [nearest_bucket(size or square, buckets) for size in sizes]
    used = [canvas for canvas, size in zip(canvases, sizes) if size] or canvases
    return canvases, dealt_out([picture_size(path) or square for path in prior], used)


def _fixed(caption: str) -> Captioner:
    return lambda path, rng: caption


def _encode_all(
    pictures: Sequence[tuple[Path, Captioner]],
    canvases: Sequence[Size],
    backend: Backend,
    settings: PictureSettings,
    seed: str,
    left_out: dict[Path, str],
    report: Callable[[int], None],
) -> list[Example]:
    """The examples of all pictures that can be used, each on its canvas; the others are added to `left_out`."""
    examples: list[Example] = []
    for index, path, picture in load_pictures([path for path, _ in pictures], settings.use_alpha, left_out):
        caption, canvas = pictures[index][1], canvases[index]
        generators = [Random(f"{seed}/{index}/{variant}") for variant in range(settings.drawn_variants)]
        try:
            drawn = [_draw_variant(picture, settings, canvas, rng) for rng in generators]
        except UnusablePicture as error:
            leave_out(path, error, left_out)
            continue
        latents = _latents(picture, path, [placement for placement, _, _ in drawn], backend, canvas)
        examples += [
            Example(*latents[placement], mask, prefix + caption(path, rng), sizes_of(picture.size, placement, canvas))
            for (placement, mask, prefix), rng in zip(drawn, generators, strict=True)
        ]
        report(index + 1)
    if not examples:
        raise UserError(f"none of the pictures in {pictures[0][0].parent} has opaque parts that are large enough")
    report(len(pictures))
    return examples


def _draw_variant(
    picture: Picture, settings: PictureSettings, canvas: Size, rng: Random
) -> tuple[Placement, Tensor, str]:
    """One way to show a picture: where it goes, what weighs in the loss, and what its caption starts with."""
    for _ in range(_ATTEMPTS):
        view = View(canvas, (0, 0)) if settings.noaug else random_view(canvas, rng)
        flip = settings.hflip and rng.random() < 0.5
        placement = place(_window(picture.size, canvas, settings, rng), view.corner, view.size, canvas, flip)
        mask = weigh(picture, placement, canvas)
        if mask.any():
            return placement, mask, view.prefix
    raise UnusablePicture("nearly all of it is transparent")


def _window(size: Size, canvas: Size, settings: PictureSettings, rng: Random) -> tuple[float, float, float, float]:
    """The part (left, top, right, bottom) of a picture that is shown: all of it, or the most of the canvas's shape."""
    if settings.resize_mode == "pad":
        return 0, 0, *size
    width, height = min(size[0], size[1] * canvas[0] / canvas[1]), min(size[1], size[0] * canvas[1] / canvas[0])
    room = int(size[0] - width), int(size[1] - height)
    left, top = (side // 2 if settings.center_crop else rng.randint(0, side) for side in room)
    return left, top, left + width, top + height


def views_at_once(canvas: Size) -> int:
    """How many views of a picture, width × height, are encoded together."""
    width, height = canvas
    return max(1, min(_ENCODE_BATCH, _ENCODE_PIXELS // (width * height)))


def _latents(
    picture: Picture, path: Path, placements: Sequence[Placement], backend: Backend, canvas: Size
) -> dict[Placement, tuple[Tensor, Tensor]]:
    """Mean and deviation of a picture's latents for each placement, equal ones encoded once.

    A batch holds one picture only: so no other has a part in how the numbers are rounded.
    """
    distinct = list(dict.fromkeys(placements))
    encoded: dict[Placement, tuple[Tensor, Tensor]] = {}
    at_once = views_at_once(canvas)
    for start in range(0, len(distinct), at_once):
        part = distinct[start : start + at_once]
        pixels = torch.stack([draw(picture, placement, canvas) for placement in part])
        posterior = backend.encode_pictures(pixels.to(backend.device))
        mean, std = posterior.mean.float().cpu(), posterior.std.float().cpu()
        if not (torch.isfinite(mean).all() and torch.isfinite(std).all()):
            raise UserError(f"the VAE of the model {backend.name} makes no numbers of {path}; run it in full precision")
        encoded.update(zip(part, zip(mean, std, strict=True), strict=True))
    return encoded
