"""Whether the text encoder ever sees the words that are to be learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..backend import Backend
from ..errors import UserError
from ..tokens import split_at_tokens


def check_words(backend: Backend, vectors: Mapping[str, Tensor], captions: Sequence[Sequence[str]]) -> list[str]:
    """Refuse words that nothing can be learned of, because the text encoder sees them in no caption.

    vectors:  of the words to be learned, (n, width) each.
    captions: of each concept, all that its pictures may get.

    Returns what is to be said of captions that lack a word. Raises UserError, with a caption, for a word that no
    caption has, or has where the encoder does not read it, and for a concept without any of the words.
    """
    everywhere = [caption for own in captions for caption in own]
    for token in vectors:
        if not any(_sees(backend, caption, token, vectors) for caption in everywhere):
            raise UserError(_why_unseen(token, everywhere, vectors))
    told: list[str] = []
    for number, own in enumerate(captions, start=1):
        lacking = [caption for caption in own if not set(split_at_tokens(caption, vectors)) & set(vectors)]
        if len(lacking) == len(own) and not any(
            _sees(backend, caption, token, vectors) for caption in own for token in vectors
        ):
            raise UserError(
                f"the captions of concept {number}, such as {own[0]!r}, have none of the words {', '.join(vectors)};"
                f" write, say, photo of a {next(iter(vectors))} cat"
            )
        if lacking and len(lacking) < len(own):
            told.append(
                f"{len(lacking)} of the {len(own)} captions of concept {number} have none of the new words, such as"
                f" {lacking[0]!r}"
            )
    return told


@torch.no_grad()
def _sees(backend: Backend, caption: str, token: str, vectors: Mapping[str, Tensor]) -> bool:
    """Whether what the encoder makes of a caption depends on the word's vectors."""
    if token.casefold() not in caption.casefold():
        return False
    ones = [{**vectors, token: vectors[token] + shift} for shift in (0.0, 1.0)]
    first, second = (backend.encode_captions([caption], each).crossattn for each in ones)
    return not torch.equal(first, second)


def _why_unseen(token: str, captions: Sequence[str], vectors: Mapping[str, Tensor]) -> str:
    having = next((caption for caption in captions if token in caption), None)
    if having is None:
        return (
            f"no caption or prompt has the modifier token {token}; the first is {captions[0]!r}: put {token} into it,"
            f" as in photo of a {token} cat"
        )
    if token not in split_at_tokens(having, vectors):
        return (
            f"in the caption {having!r} letters or digits touch {token}, so that the model does not see the word; put a"
            " space there"
        )
    return f"the caption {having!r} is so long that the model does not read as far as {token}; put the word first"
