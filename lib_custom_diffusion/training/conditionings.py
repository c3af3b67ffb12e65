"""Captions as the UNet reads them: those without a new word are encoded once, the others in every step anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from ..backend import Backend, Conditioning, Sizes
from ..data.concepts import Example
from .words import is_in

_Asked = tuple[str, Sizes | None]
"""A caption, and how the picture that it belongs to came to its size, if the model reads that."""


class Conditionings:
    """The conditionings of a training's examples.

    vectors:  of the new words, (n, width) each, which are being learned.
    autocast: the precision to encode in.
    """

    def __init__(
        self, backend: Backend, vectors: Mapping[str, Tensor], autocast: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        self.backend, self.vectors, self.autocast = backend, vectors, autocast
        self.fixed: dict[_Asked, Conditioning] = {}
        self._more_positions: dict[str, int] = {}

    @torch.no_grad()
    def keep(self, examples: Sequence[Example]) -> None:
        """Encode the captions of these that have no new word once and for all."""
        asked = sorted({self._asked(example) for example in examples}, key=repr)
        plain = [each for each in asked if not any(is_in(token, each[0]) for token in self.vectors)]
        with self.autocast():
            self.fixed = {(text, sizes): self.backend.encode_captions([text], {}, [sizes]) for text, sizes in plain}

    def of(self, examples: Sequence[Example]) -> Conditioning:
        """That of a batch, with gradients of the vectors: each caption that was not kept is encoded now, once."""
        asked = [self._asked(example) for example in examples]
        learned = sorted({each for each in asked if each not in self.fixed}, key=repr)
        rows: Mapping[_Asked, Conditioning] = self.fixed
        if learned:
            captions, sizes = zip(*learned)
            encoded = self.backend.encode_captions(captions, self.vectors, sizes)
            rows = {**rows, **{each: encoded.row(index) for index, each in enumerate(learned)}}
        return Conditioning.cat([rows[each] for each in asked])

    @torch.no_grad()
    def more_positions(self, caption: str) -> int:
        """How many positions more than a short caption it has: hosts read long ones in several pieces."""
        if is_short(caption, self.vectors):
            return 0
        if caption not in self._more_positions:
            with self.autocast():
                own, short = (self.backend.encode_captions([each], self.vectors).crossattn for each in (caption, ""))
            self._more_positions[caption] = own.shape[1] - short.shape[1]
        return self._more_positions[caption]

    def _asked(self, example: Example) -> _Asked:
        return example.caption, example.sizes if self.backend.reads_sizes else None


def is_short(caption: str, vectors: Mapping[str, Tensor]) -> bool:
    """Whether any text encoder reads a caption at once, whatever its tokenizer: a token is a byte or more.

    vectors: of the new words, (n, width) each.
    """
    return len(caption.encode()) + sum(len(each) for each in vectors.values()) <= 75
