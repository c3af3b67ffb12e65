"""New words for a CLIP of ComfyUI: `<new1>` in prompts, and `embedding:new1` without a file in models/embeddings.

ComfyUI's tokenizers give an id or a vector for each place of the prompt. A copy of each is made to give the vectors
of a new word where it stands, so weights in brackets and long prompts work as with any other word.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import UserError
from ..tokens import file_name, split_at_tokens

_ENCODERS = ("clip_l", "clip_g", "clip_h")  # those of SDXL in the order in which a delta's vectors hold them


def with_words(clip: Any, embeddings: Mapping[str, Tensor]) -> Any:
    """A clone of the CLIP that knows the words by their vectors (n, width); width counts all encoders of the CLIP.

    Raises UserError if the vectors are not as wide as what the encoders read.
    """
    encoders = [name for name in _ENCODERS if hasattr(clip.tokenizer, name)]
    widths = [_width(getattr(clip.cond_stage_model, name)) for name in encoders]
    for word, vectors in embeddings.items():
        if vectors.shape[-1] != sum(widths):
            raise UserError(
                f"the delta does not fit this CLIP: its word {word} is {vectors.shape[-1]} numbers wide, the CLIP's"
                f" words are {sum(widths)}"
            )
    known = clip.clone()
    known.tokenizer = copy.copy(clip.tokenizer)
    start = 0
    for name, width in zip(encoders, widths):
        own = {word: vectors.float()[:, start : start + width] for word, vectors in embeddings.items()}
        setattr(known.tokenizer, name, _knowing(getattr(clip.tokenizer, name), own))
        start += width
    return known


def _width(encoder: Any) -> int:
    return encoder.transformer.get_input_embeddings().weight.shape[1]


def _knowing(tokenizer: Any, words: Mapping[str, Tensor]) -> Any:
    """A copy of an SDTokenizer that gives vectors for the words."""
    known = copy.copy(tokenizer)
    known.tokenizer = _VocabularyWithWords(tokenizer.tokenizer, words)
    spellings = dict(words) | {file_name(word): vectors for word, vectors in words.items()}
    pattern = "|".join(re.escape(spelling) for spelling in sorted(spellings, key=len, reverse=True))

    def find(text: str) -> tuple[Tensor | None, str]:
        """The vectors of the word that the text after `embedding:` begins with, and the rest of it."""
        found = re.match(rf"\s*({pattern})(?!\w|[.-]\w)", text) if spellings else None
        if found is None:
            return tokenizer._try_get_embedding(text)
        return spellings[found[1]], text[found.end() :].strip()

    known._try_get_embedding = find
    return known


class _VocabularyWithWords:
    """A tokenizer of transformers that gives the rows of a word's vectors in place of ids where the word stands."""

    def __init__(self, tokenizer: Any, words: Mapping[str, Tensor]) -> None:
        self._tokenizer = tokenizer
        self._words = words

    def __call__(self, text: str, **options: Any) -> Any:
        parts = split_at_tokens(text, self._words)
        if not any(part in self._words for part in parts):
            return self._tokenizer(text, **options)
        start, end = self._tokenizer("", **options)["input_ids"]
        ids: list[int | Tensor] = [start]
        for part in parts:
            ids += self._words[part] if part in self._words else self._tokenizer(part, **options)["input_ids"][1:-1]
        return {"input_ids": [*ids, end]}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what copying asks of an object that has no attributes yet
            raise AttributeError(name)
        return getattr(self._tokenizer, name)
