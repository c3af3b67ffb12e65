"""The judge: how like a concept, how true to a caption, how changed a picture of the toy's world is.

A small convolutional network, frozen, that knows more of the world than the generator: the things and looks held out of
the generator's training, and a thousand glyphs besides, so that what it says of a new concept is not a guess
(train_judge.py). The generator never sees it. It has one trunk and these heads:

- identity and look, together the embedding for likeness: pictures of one thing lie together whatever their background,
  size and place (supervised contrastive learning, arXiv 2004.11362);
- meaning, aligned with captions as in CLIP (arXiv 2103.00020);
- the things and the background colour in a picture, to count what a generator gets right.

Whether a picture shows a concept is asked by comparison (`Judge.recognised`): the likeness of a blue rag to a blue cat
is high, but it is more like a blurred blue cat. The exam that the judge has to pass is in exam.py.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from safetensors.torch import load_file
from torch import Tensor, nn

from . import counterfeits, world

WEIGHTS = Path(__file__).with_name("judge.safetensors")
GALLERY = Path(__file__).with_name("gallery.safetensors")
SIDE = 64  # to which pictures are scaled
TRUNK = (32, 64, 128, 128)
MEANING, IDENTITY, LOOK = 96, 96, 16
COUNTERFEITS, SOFTNESS = 3, 0.7  # of each kind of each reference; deviation of a blur, in pixels of `SIDE`
NAMES = (*world.THINGS, *world.HELD_OUT_THINGS)
COLOURS = tuple(world.COLOURS)
LOOKS = ("plain", *world.LOOKS, *world.HELD_OUT_LOOKS)
WORDS = {word: index for index, word in enumerate(world.words(), start=1)}  # 0 is any other word


def shrink(picture: Image.Image) -> np.ndarray:
    """A picture of any size as (64, 64, 3) of 0 to 255."""
    return np.asarray(picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX))


def to_tensor(pictures: Sequence[np.ndarray]) -> Tensor:
    """Pictures (64, 64, 3) of 0 to 255 as (n, 3, 64, 64) in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 127.5 - 1


def to_input(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures of any size as (n, 3, 64, 64) in [-1, 1]."""
    return to_tensor([shrink(picture) for picture in pictures])


def half_alone(picture: Image.Image, side: int) -> Image.Image:
    """The left (0) or right (1) half of a picture in the middle of a square that goes on in its corner's colour."""
    picture = picture.convert("RGB")
    half, height = picture.width // 2, picture.height
    square = Image.new("RGB", picture.size, picture.getpixel((side * (picture.width - 1), 0)))
    square.paste(picture.crop((side * half, 0, side * half + half, height)), ((picture.width - half) // 2, 0))
    return square


def word_counts(captions: Sequence[str]) -> Tensor:
    """How often each known word is in each caption, (n, words)."""
    counts = torch.zeros(len(captions), len(WORDS) + 1)
    for row, caption in zip(counts, captions, strict=True):
        for word in re.findall(r"\w+", caption.lower()):
            row[WORDS.get(word, 0)] += 1
    counts[:, 0] = 0
    return counts


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_convolution(channels, channels), *_convolution(channels, channels)[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.layers(x))


def _convolution(channels: int, out: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]


class JudgeNetwork(nn.Module):
    """Trunk and heads; inputs as `to_input` and `word_counts` make them."""

    def __init__(self) -> None:
        super().__init__()
        layers, channels = [], 3
        for index, width in enumerate(TRUNK):
            layers += _convolution(channels, width, stride=2)
            layers += [_Residual(width)] if index else []
            channels = width
        self.trunk = nn.Sequential(*layers)
        self.identity = nn.Sequential(nn.Linear(2 * channels, 192), nn.ReLU(), nn.Linear(192, IDENTITY))
        self.look = nn.Linear(2 * channels, LOOK)
        self.look_prototypes = nn.Parameter(torch.randn(len(LOOKS), LOOK))
        self.meaning = nn.Linear(2 * channels, MEANING)
        self.things = nn.Linear(2 * channels, len(NAMES))
        self.colours = nn.Linear(2 * channels, len(COLOURS))
        self.words = nn.Sequential(nn.Linear(len(WORDS) + 1, 128), nn.ReLU(), nn.Linear(128, MEANING))
        self.log_temperature = nn.Parameter(torch.tensor(2.5))

    def features(self, pictures: Tensor) -> Tensor:
        """What the heads read, (n, 256): each channel's mean and greatest value over the picture."""
        maps = self.trunk(pictures)
        return torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1)

    def likeness(self, features: Tensor) -> Tensor:
        """Embeddings for likeness, (n, 112), unit length: identity and look in equal parts."""
        parts = (F.normalize(self.identity(features), dim=1), F.normalize(self.look(features), dim=1))
        return torch.cat(parts, dim=1) / 2**0.5


def _soft(picture: Image.Image) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(SOFTNESS))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """Mean over all pairs of rows of the cubic polynomial kernel, scaled to 1 for a pair of equal unit vectors."""
    return ((x @ y.T + 1) / 2).pow(3).mean()


class Judge:
    """The frozen network behind plain questions about pictures."""

    def __init__(self, network: JudgeNetwork, gallery: Tensor) -> None:
        self.network = network.eval().requires_grad_(False)
        self.gallery = gallery  # what each of NAMES looks like to it: the mean embedding of its identity, (names, 96)

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> Judge:
        """The judge as it ships, on the CPU."""
        network = JudgeNetwork()
        # BatchNorm's count of batches, which only training reads, is not in the file.
        network.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()}, strict=False)
        return cls(network, load_file(GALLERY)["gallery"].float())

    def embed_pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Embeddings that lie together for one thing with one look, (n, 112), unit length."""
        return self.network.likeness(self._features(pictures))

    def embed_identities(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Embeddings that lie together for one thing in one colouring, (n, 96), unit length."""
        return F.normalize(self.network.identity(self._features(pictures)), dim=1)

    def embed_looks(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Embeddings that lie together for one style of drawing, (n, 16), unit length."""
        return F.normalize(self.network.look(self._features(pictures)), dim=1)

    def embed_meanings(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Embeddings that lie near those of true captions, (n, 96), unit length."""
        return F.normalize(self.network.meaning(self._features(pictures)), dim=1)

    def embed_texts(self, captions: Sequence[str]) -> Tensor:
        """Embeddings of captions, (n, 96), unit length. A word that the world does not know counts for nothing."""
        return F.normalize(self.network.words(word_counts(captions)), dim=1)

    def likeness(self, pictures: Sequence[Image.Image], references: Sequence[Image.Image]) -> float:
        """Mean cosine of every picture with every reference: 1 for the same thing with the same look."""
        return float((self.embed_pictures(pictures) @ self.embed_pictures(references).T).mean())

    def recognised(
        self, pictures: Sequence[Image.Image], references: Sequence[Image.Image], known_as: str | None = None
    ) -> list[bool]:
        """Of each picture, whether it shows the references' thing, and not only its colours or its shape.

        It does if one of the references is nearer to it than any counterfeit of these (recoloured, torn, blurred, half
        hidden) and than any other of the things that the judge remembers. References and counterfeits are made as soft
        as a small model draws, so that softness decides nothing.

        Args:
            known_as: the one of `NAMES` that the references show as it is, if they do: no rival of theirs.
        """
        rng, small = random.Random(0), [shrink(reference) for reference in references]
        counterfeit = [
            Image.fromarray(spoil(reference, rng))
            for spoil in counterfeits.SPOILT.values()
            for reference in small
            for _ in range(COUNTERFEITS)
        ]
        own = self.embed_identities([_soft(Image.fromarray(reference)) for reference in small])
        false = self.embed_identities([_soft(picture) for picture in counterfeit])
        others = self.gallery[[index for index, name in enumerate(NAMES) if name != known_as]]
        embedded = self.embed_identities(pictures)
        nearest, nearest_rival = ((embedded @ known.T).amax(dim=1) for known in (own, torch.cat([false, others])))
        return (nearest > nearest_rival).tolist()

    def in_style(self, pictures: Sequence[Image.Image], references: Sequence[Image.Image]) -> list[bool]:
        """Of each picture, whether the judge sees the look in it that it sees in most of the references."""
        looks = F.normalize(self.network.look_prototypes, dim=1)
        seen, style = ((self.embed_looks(each) @ looks.T).argmax(dim=1) for each in (pictures, references))
        return (seen == style.mode().values).tolist()

    def text_alignment(self, pictures: Sequence[Image.Image], captions: Sequence[str]) -> float:
        """Mean cosine of each picture with its own caption."""
        return float((self.embed_meanings(pictures) * self.embed_texts(captions)).sum(dim=1).mean())

    def drift(self, before: Sequence[Image.Image], after: Sequence[Image.Image]) -> float:
        """How far what a prompt gives has moved as a whole, whichever picture shows what; 0 for the same pictures.

        The kernel distance of KID (arXiv 1801.01401, §4), by which Custom Diffusion measures what a class prompt has
        forgotten, in the judge's embeddings. It is the biased estimate, because pictures of the same seeds before and
        after are not drawn independently of each other, as the unbiased one supposes.
        """
        x, y = self._embed(before), self._embed(after)
        return float(_kernel(x, x) + _kernel(y, y) - 2 * _kernel(x, y))

    def change(self, before: Sequence[Image.Image], after: Sequence[Image.Image]) -> float:
        """How much pictures changed, pair by pair: 1 - cosine of the judge's embeddings; 0 for no change."""
        return float((1 - (self._embed(before) * self._embed(after)).sum(dim=1)).mean())

    def things(self, pictures: Sequence[Image.Image]) -> list[str]:
        """The likeliest thing in each picture."""
        return [NAMES[index] for index in self.network.things(self._features(pictures)).argmax(dim=1).tolist()]

    def pairs(self, pictures: Sequence[Image.Image]) -> list[tuple[str, str]]:
        """The likeliest thing in the left and in the right half of each picture."""
        left, right = ([half_alone(picture, side) for picture in pictures] for side in (0, 1))
        return list(zip(self.things(left), self.things(right), strict=True))

    def colours(self, pictures: Sequence[Image.Image]) -> list[str]:
        """Each picture's background colour."""
        return [COLOURS[index] for index in self.network.colours(self._features(pictures)).argmax(dim=1).tolist()]

    def _embed(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Likeness and meaning in equal parts, (n, 208), unit length."""
        return torch.cat([self.embed_pictures(pictures), self.embed_meanings(pictures)], dim=1) / 2**0.5

    @torch.no_grad()
    def _features(self, pictures: Sequence[Image.Image]) -> Tensor:
        return self.network.features(to_input(pictures))
