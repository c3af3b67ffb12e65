"""Whether captions have the words that are to be learned, and the text encoder ever sees them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from ..attention import is_toy
from ..backend import Backend
from ..data.concepts import Concept
from ..errors import UserError, did_you_mean
from ..text_features import class_noun, concept_words, read_captions
from ..tokens import split_at_tokens
from .plan import NAME, TrainingPlan


def is_in(token: str, caption: str) -> bool:
    """Whether a caption has the letters of a word, in either case, without which no text encoder sees it."""
    return token.casefold() in caption.casefold()


def stands_alone(token: str, caption: str) -> bool:
    """Whether a caption has a word, and neither letters nor digits touch it: what `tokens.split_at_tokens` finds."""
    return token in split_at_tokens(caption, [token])


def check_said(
    tokens: Collection[str], captions: Sequence[Sequence[str]], said: Callable[[str, str], bool] = is_in
) -> None:
    """As `check_words`, of what captions tell without a text encoder.

    said: whether a word that a caption has in such a way may be seen; a host that reads text by itself knows more.
    """
    everywhere = [caption for own in captions for caption in own]
    for token in tokens:
        if not any(said(token, caption) for caption in everywhere):
            raise UserError(_why_unseen(token, everywhere, tokens))
    for number, own in enumerate(captions, start=1):
        if not any(said(token, caption) for caption in own for token in tokens):
            raise UserError(_without_words(number, own, tokens))


def class_words(
    tokens: Sequence[str], concepts: Sequence[Concept], captions: Sequence[Sequence[str]]
) -> dict[str, str]:
    """The noun that each word stands before, as "cat" in "photo of a <new1> cat"; "" where no caption says it so.

    captions: of each concept's own pictures.
    """
    nouns = {}
    for token, concept, own in zip(tokens, concepts, captions):
        [words] = concept_words({token: concept.class_prompt})
        said = any(words.lower() in caption.lower() for caption in own)
        nouns[token] = class_noun(concept.class_prompt) if said else ""
    return nouns


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
            raise UserError(_without_words(number, own, vectors))
        if lacking and len(lacking) < len(own):
            told.append(
                f"{len(lacking)} of the {len(own)} captions of concept {number} have none of the new words, such as"
                f" {lacking[0]!r}"
            )
    return told


def kind_notes(backend: Backend, plan: TrainingPlan, label: Callable[[str, int], str]) -> list[str]:
    """Sentences on the concepts' kinds: that there is none where captions would have it, and words no toy knows.

    label: what the user knows a setting of a concept as. Other models than the toys know any word, if in pieces.
    """
    told = []
    for number, (written, concept) in enumerate(zip(plan.concepts, plan.named_concepts()), start=1):
        kind = label("class_prompt", number)
        if NAME in written.instance_prompt and not concept.class_prompt.strip():
            told.append(f"{kind} is empty: captions have the new word alone. Of a thing, say what it is, such as cat.")
        for word in re.findall(r"[^\W\d_]+", concept.class_prompt.lower()) if is_toy(backend.architecture) else ():
            if len(backend.token_vectors(word)) > 1:
                near = did_you_mean(word, " ".join(read_captions(backend.captions)).lower().split())
                told.append(f"{kind} has {word!r}, a word that the model {backend.name} does not know{near or '.'}")
    return told


@torch.no_grad()
def _sees(backend: Backend, caption: str, token: str, vectors: Mapping[str, Tensor]) -> bool:
    """Whether what the encoder makes of a caption depends on the word's vectors."""
    if not is_in(token, caption):
        return False
    ones = [{**vectors, token: vectors[token] + shift} for shift in (0.0, 1.0)]
    first, second = (backend.encode_captions([caption], each).crossattn for each in ones)
    return not torch.equal(first, second)


def _without_words(number: int, captions: Sequence[str], tokens: Collection[str]) -> str:
    return (
        f"the captions of concept {number}, such as {captions[0]!r}, have none of the words {', '.join(tokens)};"
        f" write, say, photo of a {next(iter(tokens))} cat"
    )


def _why_unseen(token: str, captions: Sequence[str], tokens: Collection[str]) -> str:
    having = next((caption for caption in captions if token in caption), None)
    if having is None:
        return (
            f"no caption or prompt has the modifier token {token}; the first is {captions[0]!r}: put {token} into it,"
            f" as in photo of a {token} cat"
        )
    if token not in split_at_tokens(having, tokens):
        return (
            f"in the caption {having!r} letters or digits touch {token}, so that the model does not see the word; put a"
            " space there"
        )
    return f"the caption {having!r} is so long that the model does not read as far as {token}; put the word first"
