"""What is said of a prompt that will not draw what deltas have learned, in every host."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from .errors import did_you_mean
from .tokens import split_at_tokens, tokens_in

_UNCLOSED = re.compile(r"<delta:[^<>\n]*(?=[<\n]|$)", re.IGNORECASE)
_CLOSED = re.compile(r"<delta:[^<>]*>", re.IGNORECASE)
_FAR = 2.0
"""How far a weight is from 0 before pictures fall apart."""
_NAMED = 3
"""Of the deltas that have a word, how many are named."""


def remarks(
    text: str,
    deltas: Sequence[tuple[Collection[str], float]],
    known: Collection[str] = (),
    besides: str = "",
    fold: Callable[[str], str] = str,
) -> Iterator[str]:
    """Sentences on words that no delta has, deltas that are not called by their words, and weights far from 1.

    text: of the prompt and the negative prompt, without tags. deltas: the words of each, and its weight.
    known: other words that mean something. besides: what, besides the deltas, does not have the words told of.
    fold: makes one of spellings that are the same to the model.
    """
    words = [*known, *(token for tokens, _ in deltas for token in tokens)]
    folded = set(map(fold, words))
    for token in tokens_in(text):
        if fold(token) not in folded:
            near = did_you_mean(token, words)
            yield f"{token} is plain text: no delta in the prompt has that word{besides}{near or '.'}"
    for tokens, weight in deltas:
        asked = set(map(fold, tokens))
        if asked and not asked.intersection(split_at_tokens(fold(text), asked)):
            yield f"The prompt has none of its delta's words: {', '.join(tokens)}."
        if abs(weight) > _FAR:
            yield f"A weight of {weight:g} is far from 1, at which the delta was trained: try 0.5 to 1.2."


def stray_tags(prompt: str, negative_prompt: str) -> Iterator[str]:
    """Sentences on tags of deltas that are read as plain text. prompt: without the tags that are used."""
    for tag in _UNCLOSED.findall(prompt):
        yield f"{tag.strip()} is plain text, as it has no > at its end."
    for tag in _CLOSED.findall(negative_prompt):
        yield f"{tag} has no effect in the negative prompt; write it into the prompt."


def without_deltas(text: str) -> str:
    """The text without tags of deltas."""
    return _CLOSED.sub("", text)


def lacking(
    text: str,
    deltas: Mapping[str, Collection[str]],
    known: Collection[str],
    embeddings: Collection[str] = (),
    fold: Callable[[str], str] = str,
) -> dict[str, str]:
    """What to add for words of a prompt that another delta has, and none in it: a sentence by word.

    text, fold: as in `remarks`. deltas: the words of all that there are, by the delta's name. known: those of the
    prompt's own deltas. embeddings: words that mean half of it without the delta.
    """
    having: dict[str, tuple[str, list[str]]] = {}
    for name in sorted(deltas):
        for word in deltas[name]:
            having.setdefault(fold(word), (word, []))[1].append(f"<delta:{name}:1>")
    unknown, half = having.keys() - set(map(fold, known)), set(map(fold, embeddings))
    told = {}
    for part in split_at_tokens(fold(text), unknown):
        if part in unknown:
            word, tags = having[part]
            add = f"add {' or '.join(tags[:_NAMED])} to the prompt."
            alone = f"{word} is only half of what was learned, the embedding without its delta: {add}"
            told[word] = alone if part in half else f"{word} only means something with its delta: {add}"
    return told
