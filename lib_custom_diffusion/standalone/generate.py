"""The generate command: pictures, with the deltas that the prompt names."""

from __future__ import annotations

import argparse
import io
import itertools
import re
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, PngImagePlugin
from torch import Tensor
from tqdm import tqdm

from ..backend import TOY_SAMPLING, Sampling
from ..delta import SUFFIX, Delta
from ..deltas_folder import find_delta, namesakes
from ..errors import UserError, check_range, check_text
from ..formats import read_words
from ..injection import Injection
from ..prompt_remarks import remarks, stray_tags, without_deltas
from ..storage import check_writable, given_path, write_atomically
from ..tokens import split_at_tokens
from .diffusers_backend import DiffusersBackend
from .infotext import infotext
from .models import best_device, load_model
from .prompts import split_deltas
from .toy import TOYS

_FLAGS = {"steps": "num_inference_steps", "batch_size": "sample_batch_size", "size": "resolution"}
"""What the fields of `Sampling` are called on the command line, where that is something else."""


def generate(options: argparse.Namespace) -> int:
    """Run the command; returns its exit status. Raises UserError for whatever the user can mend."""
    sampling = sampling_of(options)
    check_range(options, "num_images", 1, 1_000_000, "--{}".format)
    check_writable(options.output)
    deltas = find_deltas(options.prompt, options.deltas_dir)  # before the model: a mistyped name is told at once
    for sentence in found_deltas(options.prompt, options.deltas_dir):
        print(sentence)
    prompt = split_deltas(options.prompt)[0]
    asked = f"{prompt} {options.negative_prompt}"
    words: set[str] = set()
    for path in options.embedding:
        own = read_words(path)
        words |= own.keys()
        if not set(own).intersection(split_at_tokens(asked, own)):
            print(f"{path} is not used: neither prompt has {' or '.join(own)}")
    named = [(list(delta.embeddings), weight) for delta, weight in deltas]
    for sentence in without_meaning(prompt, named, sampling, "--{}".format, words, ", and no --embedding"):
        print(sentence)
    device = best_device()
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    backend = load_model(options.model, dtype, device, options.vae, options.prediction_type)
    with tqdm(desc="drawing", total=options.num_images, unit="picture") as bar:
        for drawn in draw(
            backend, options.prompt, deltas, sampling, options.seed, options.num_images, options.embedding
        ):
            tqdm.write(str(_saved(options.output / f"{drawn.seed:05d}.png", drawn.png)))
            bar.update()
    return 0


def _saved(path: Path, png: bytes) -> Path:
    """Where a picture is now: there, or at the next number behind it where another picture is."""
    numbered = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2))
    for place in itertools.chain([path], numbered):
        if not place.exists():
            write_atomically(place, png)
            return place
        if place.is_file() and place.read_bytes() == png:
            return place
    raise AssertionError("numbers do not end")


def without_meaning(
    prompt: str,
    deltas: Sequence[tuple[Collection[str], float]],
    sampling: Sampling,
    label: Callable[[str], str],
    known: Collection[str] = (),
    besides: str = "",
) -> Iterator[str]:
    """Sentences on what the prompt without its deltas' tags, or the negative one, has to no effect.

    label: what the user knows a setting as. For the others see `remarks`.
    """
    yield from stray_tags(prompt, sampling.negative_prompt)
    asked = f"{prompt} {without_deltas(sampling.negative_prompt)}"
    for tag in dict.fromkeys(found[0] for found in _OTHER_TAG.finditer(asked)):
        yield f"{tag} is plain text here, where <delta:NAME:0.8> is the only tag; convert makes deltas of LoRAs."
    yield from remarks(_OTHER_TAG.sub("", asked), deltas, known, besides)
    if sampling.negative_prompt.strip() and sampling.guidance_scale <= 1:
        scale = sampling.guidance_scale
        yield f"{label('negative_prompt')} has no effect, as {label('guidance_scale')} is {scale:g}."


_OTHER_TAG = re.compile(r"<\w+:[^<>]*>")


@dataclass(frozen=True)
class Drawn:
    """A picture of a seed, as a PNG that tells how it was made where the WebUI tells it."""

    seed: int
    png: bytes


def find_deltas(prompt: str, deltas_dir: Path) -> list[tuple[Delta, float]]:
    """The deltas that a prompt names, with their weights. Raises UserError for one that is not there or damaged."""
    return [
        (Delta.load(find_delta(deltas_dir, name, by_path=True)), weight) for name, weight in split_deltas(prompt)[1]
    ]


def found_deltas(prompt: str, deltas_dir: Path) -> list[str]:
    """Which files the names in a prompt's tags are, where it is neither said by a path nor plain.

    Raises UserError as `find_deltas` does.
    """
    told = []
    for name in dict.fromkeys(name for name, _ in split_deltas(prompt)[1]):
        path = find_delta(deltas_dir, name, by_path=True)
        others = [f"<delta:{other}>" for other in namesakes(deltas_dir, path) if other != name]
        if path != given_path(name) and (others or path != deltas_dir / f"{name}{SUFFIX}"):
            more = f"; {', '.join(others)} would be another" if others else ""
            told.append(f"<delta:{name}> is {path}{more}.")
    return told


def draw(
    backend: DiffusersBackend,
    prompt: str,
    deltas: Sequence[tuple[Delta, float]],
    sampling: Sampling,
    seed: int,
    count: int,
    embeddings: Sequence[Path] = (),
) -> Generator[Drawn, None, None]:
    """Pictures of a prompt, number i of seed + i, batch by batch.

    prompt: tags included; deltas: what `find_deltas` finds for it; embeddings: files of words without a delta.
    Raises UserError if a delta or a word was made for another model.
    """
    text, _ = split_deltas(prompt)
    vectors = words_of(backend, [delta for delta, _ in deltas], embeddings)
    seeds = range(seed, seed + count)
    with Injection(backend.unet, deltas):
        for start in range(0, count, sampling.batch_size):
            batch = seeds[start : start + sampling.batch_size]
            for number, picture in zip(batch, backend.generate([text] * len(batch), batch, sampling, vectors)):
                said = infotext(prompt, sampling, number, picture.size, backend.name, backend.checkpoint_hash)
                yield Drawn(number, png_of(picture, said))


def sampling_of(options: argparse.Namespace) -> Sampling:
    """How the flags of `generate` and `regularize` say that pictures are drawn. Raises UserError for bad numbers."""
    size = None if options.resolution is None else (options.resolution, options.resolution)
    scale = options.guidance_scale
    if scale is None:
        scale = (TOY_SAMPLING if options.model in TOYS else Sampling()).guidance_scale
    sampling = Sampling(options.num_inference_steps, scale, options.negative_prompt, size, options.sample_batch_size)
    for name in ("prompt", "negative_prompt", "class_prompt"):
        check_text(getattr(options, name, ""), f"--{name}")
    sampling.check(options.seed, lambda name: f"--{_FLAGS.get(name, name)}")
    return sampling


def words_of(backend: DiffusersBackend, deltas: Sequence[Delta], embeddings: Sequence[Path] = ()) -> dict[str, Tensor]:
    """The new words of the deltas and embedding files. Raises UserError if one is of another width than the model's."""
    vectors: dict[str, Tensor] = {}
    for delta in deltas:
        vectors |= delta.embeddings
    for path in embeddings:
        vectors |= read_words(path)
    width = backend.token_vectors("a").shape[1]
    for token, found in vectors.items():
        if found.shape[1] != width:
            raise UserError(
                f"{token} is {found.shape[1]} wide, the words of the model {backend.name} {width}: made for another one"
            )
    return {token: found.to(backend.device) for token, found in vectors.items()}


def png_of(picture: Image.Image, parameters: str = "") -> bytes:
    """A picture as a PNG that tells how it was made where the WebUI tells it."""
    info = PngImagePlugin.PngInfo()
    if parameters:
        info.add_text("parameters", parameters)
    content = io.BytesIO()
    picture.save(content, "png", pnginfo=info)
    return content.getvalue()
