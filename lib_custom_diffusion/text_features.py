"""Text features of captions: what cross-attention deltas act on, and so what measures and merges them.

A delta of to_k or to_v is applied to the text encoder's output and to nothing else. How well another delta stands for
it is therefore a matter of the features that captions have, not of the numbers in the matrix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .backend import Backend
from .errors import UserError
from .storage import read_text

BUNDLED_CAPTIONS = Path(__file__).with_name("captions.txt")
_BATCH = 16
_HELD_OUT = 5  # every fifth caption is kept for measuring

OWN_PROMPTS = (
    "photo of a {}", "{}", "a {} in the snow", "painting of a {}", "a small {} on a table", "close up of a {}",
    "a {} and a dog", "{} in front of the Eiffel tower", "a red {}", "a far away {}",
)  # fmt: skip
"""Prompts that a concept is drawn by; {} is its modifier token and class word."""


def read_captions(path: Path = BUNDLED_CAPTIONS) -> list[str]:
    """The lines of a text file that are not blank. Raises UserError if it cannot be read or has none."""
    captions = [line.strip() for line in read_text(path, f"the captions in {path}").split("\n") if line.strip()]
    if not captions:
        raise UserError(f"{path} has no captions; give a text file with one caption a line")
    return captions


def captions_beside(checkpoint: Path) -> Path:
    """`NAME.captions.txt` beside a checkpoint, ordinary captions of what it draws; the bundled ones without it."""
    own = checkpoint.with_suffix(".captions.txt")
    return own if own.is_file() else BUNDLED_CAPTIONS


_BEFORE_CLASS_WORD = re.compile(
    r"^(?:(?:an? |the )?(?:[\w-]+ ){0,2}?(?:photo|photograph|picture|image|shot|portrait|close[- ]?up)s? of )?"
    r"(?:an? |the )?",
    re.IGNORECASE,
)


def class_noun(class_prompt: str) -> str:
    """ "cat" for "cat", "a cat", "photo of a cat" and "a high quality photograph of the cat"."""
    return _BEFORE_CLASS_WORD.sub("", class_prompt.strip())


_MASS_NOUNS = {
    "anime", "architecture", "armor", "armour", "art", "artwork", "calligraphy", "clothing", "food", "furniture",
    "graffiti", "jewellery", "jewelry", "makeup", "people", "pottery",
}  # fmt: skip
_ARTICLE = re.compile(r"\ba (?=(?:\w+ )*\{\})")  # of what a prompt asks for, not of a table that it stands on


def class_prompts(noun: str) -> list[str]:
    """OWN_PROMPTS of a class, "cat", as people write them: "photo of an owl", and "photo of art" without an article."""
    if not _MASS_NOUNS.isdisjoint(noun.lower().split()[-1:]):
        return [_ARTICLE.sub("", prompt).format(noun) for prompt in OWN_PROMPTS]
    article = "an" if noun[:1].lower() in tuple("aeiou") and not noun.lower().startswith(("uni", "eu", "one")) else "a"
    return [prompt.replace("a {}", f"{article} {{}}").format(noun) for prompt in OWN_PROMPTS]


def concept_words(tokens: Mapping[str, str]) -> list[str]:
    """ "<new1> cat" for each modifier token and its class ("cat" or "photo of a cat"), "<new1>" where that is empty."""
    return [f"{token} {class_noun(class_prompt)}".strip() for token, class_prompt in tokens.items()]


@dataclass(frozen=True)
class Moments:
    """Second moments E[c cᵀ] (width, width) of text features c, in float64, over all tokens of all captions.

    fitted:   over captions that compression may look at.
    held_out: over others, for measuring what it did.
    """

    fitted: Tensor
    held_out: Tensor


def second_moments(
    backend: Backend, captions: Sequence[str], tokens: Mapping[str, str], vectors: Mapping[str, Tensor]
) -> Moments:
    """Moments in which the captions count for one half and the concepts' own prompts for the other.

    tokens: class word of each modifier token; vectors: its embedding vectors (n, width).
    """
    own = [prompt.format(words) for words in concept_words(tokens) for prompt in OWN_PROMPTS]
    groups = [list(captions), own] if own else [list(captions)]
    held_out = [second_moment(backend, group[::_HELD_OUT], vectors) for group in groups]
    fitted = [second_moment(backend, _without_every_fifth(group), vectors) for group in groups]
    return Moments(sum(fitted) / len(groups), sum(held_out) / len(groups))  # type: ignore[arg-type]


def _without_every_fifth(captions: Sequence[str]) -> list[str]:
    return [caption for index, caption in enumerate(captions) if index % _HELD_OUT] or list(captions)


@torch.no_grad()
def second_moment(backend: Backend, captions: Sequence[str], vectors: Mapping[str, Tensor]) -> Tensor:
    """Mean of xxᵀ (width, width), float64 on the CPU, over features of all positions, start token and padding too."""
    total, rows = None, 0
    for features in _features(backend, captions, vectors):
        flat = features.reshape(-1, features.shape[-1]).double().cpu()
        total = flat.T @ flat if total is None else total + flat.T @ flat
        rows += len(flat)
    assert total is not None
    return total / rows


def lengthened(features: Tensor, nothing: Tensor, positions: int) -> Tensor:
    """Features (captions, n, width) with those of an empty text, `nothing` (1, piece, width), behind them.

    positions: how many there are then; as many more as some pieces have.
    """
    missing = (positions - features.shape[1]) // nothing.shape[1]
    return torch.cat([features, *[nothing.expand(len(features), -1, -1)] * missing], dim=1)


def _features(backend: Backend, captions: Sequence[str], vectors: Mapping[str, Tensor]) -> Iterable[Tensor]:
    """Features (batch, tokens, width) of captions, batch by batch."""
    for start in range(0, len(captions), _BATCH):
        yield backend.encode_captions(captions[start : start + _BATCH], vectors).crossattn


@torch.no_grad()
def spoken_features(
    backend: Backend, captions: Sequence[str], vectors: Mapping[str, Tensor], skip: Sequence[int] | None = None
) -> Tensor:
    """Features (rows, width), float64 on the CPU, of the captions' own words and of the end token after them.

    Neither the start token nor the padding is among them. skip[i] leaves out that many of the first words (vocabulary
    tokens) of caption i: Adobe's code leaves out "photo of a".
    """
    rows = []
    for start in range(0, len(captions), _BATCH):
        batch = captions[start : start + _BATCH]
        features = backend.encode_captions(batch, vectors).crossattn
        for index, caption in enumerate(batch):
            first = 1 + (skip[start + index] if skip else 0)
            end = min(2 + backend.count_tokens(caption, vectors), features.shape[1])
            rows.append(features[index, first:end].double().cpu())
    return torch.cat(rows)
