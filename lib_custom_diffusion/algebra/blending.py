"""Blending: the weighted sum of deltas, with the words of all of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..delta import Delta, Entry, Factors, Provenance
from ..errors import UserError, did_you_mean
from ..tokens import file_name, renamed_in


@dataclass(frozen=True)
class Renamed:
    """A modifier token of delta number `index` (from 0) that had to give way to another's of the same name."""

    index: int
    old: str
    new: str


@dataclass(frozen=True)
class Words:
    """The modifier tokens of several deltas under names that do not clash.

    vectors: (n, width) each; class_words: "" where none was given; renamed: what the user must be told.
    """

    vectors: dict[str, Tensor] = field(default_factory=dict)
    class_words: dict[str, str] = field(default_factory=dict)
    renamed: list[Renamed] = field(default_factory=list)

    def of(self, index: int, delta: Delta) -> dict[str, str]:
        """The class words of delta number `index`, by the names that its tokens have here."""
        new_names = self._new_names(index)
        return {new_names.get(token, token): delta.provenance.tokens.get(token, "") for token in delta.embeddings}

    def in_prompts(self, index: int, prompts: Sequence[str]) -> list[str]:
        """Prompts for delta number `index`, in which its tokens have the names that it gave them, by those here."""
        return [renamed_in(prompt, self._new_names(index)) for prompt in prompts]

    def _new_names(self, index: int) -> dict[str, str]:
        return {renamed.old: renamed.new for renamed in self.renamed if renamed.index == index}


def bundle_words(deltas: Sequence[Delta]) -> Words:
    """All tokens of the deltas. One that is already taken by other vectors becomes the next free <newN>."""
    words = Words()
    for index, delta in enumerate(deltas):
        for token, vectors in delta.embeddings.items():
            name = token
            if token in words.vectors and not _same(words.vectors[token], vectors):
                name = _free_name(token, {*words.vectors, *(other for d in deltas for other in d.embeddings)})
                words.renamed.append(Renamed(index, token, name))
            words.vectors[name] = vectors
            words.class_words[name] = delta.provenance.tokens.get(token, "")
    return words


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.float(), b.float())


def _free_name(token: str, taken: set[str]) -> str:
    """ "<new1>" becomes "<new2>" or the first after it that is free; "pet" becomes "pet2"."""
    match = re.fullmatch(r"(.*?)(\d*)(>?)", token)
    assert match is not None
    number = int(match[2] or 1) + 1
    while f"{match[1]}{number}{match[3]}" in taken:
        number += 1
    return f"{match[1]}{number}{match[3]}"


@dataclass(frozen=True)
class Blended:
    delta: Delta
    renamed: list[Renamed]


def blend(deltas: Sequence[Delta], weights: Sequence[float]) -> Blended:
    """Σ wᵢ Δᵢ, exactly: entries that are factors in all deltas stay factors, set side by side.

    Raises UserError for none, for a weight each missing, or for deltas of different models.
    """
    if not deltas or len(weights) != len(deltas):
        raise UserError(f"blending takes a weight for each delta, not {len(weights)} for {len(deltas)}")
    origin = common_provenance(deltas)
    words = bundle_words(deltas)
    entries: dict[str, Entry] = {}
    for key in all_keys(deltas):
        entries[key] = _sum([(delta.entries[key], w) for delta, w in zip(deltas, weights) if key in delta.entries])
    origin.tokens = words.class_words
    origin.settings = {"blend": {"weights": list(weights), "tokens": [list(delta.embeddings) for delta in deltas]}}
    return Blended(Delta(entries, words.vectors, origin), words.renamed)


def all_keys(deltas: Iterable[Delta]) -> list[str]:
    """The keys of all deltas, each once, in the order in which they first appear."""
    return list(dict.fromkeys(key for delta in deltas for key in delta.entries))


def common_provenance(deltas: Sequence[Delta]) -> Provenance:
    """What several deltas have in common: architecture, checkpoint if it is one and the same; steps of one alone.

    Raises UserError if they were made for models of different shapes.
    """
    _check_same_model(deltas)
    named = [delta.provenance for delta in deltas]
    checkpoints, steps = {origin.checkpoint for origin in named}, [origin.steps for origin in named]
    return Provenance(
        architecture=next((origin.architecture for origin in named if origin.architecture), ""),
        checkpoint=checkpoints.pop() if len(checkpoints) == 1 else "",
        steps=steps[0] if len(steps) == 1 else 0,
    )


def _check_same_model(deltas: Sequence[Delta]) -> None:
    architectures = {delta.provenance.architecture for delta in deltas} - {""}
    if len(architectures) > 1:
        raise UserError(f"these deltas were made for different models: {', '.join(sorted(architectures))}")
    shapes: dict[str, tuple[int, ...]] = {}
    for delta in deltas:
        for key, entry in delta.entries.items():
            if shapes.setdefault(key, tuple(entry.shape)) != tuple(entry.shape):
                raise UserError(
                    f"these deltas were made for different models: {key} is {shapes[key]} in one,"
                    f" {tuple(entry.shape)} in another"
                )
    widths = {vectors.shape[1] for delta in deltas for vectors in delta.embeddings.values()}
    if len(widths) > 1:
        told = " and ".join(map(str, sorted(widths)))
        raise UserError(f"these deltas were made for different models: their words are {told} numbers wide")


def _sum(terms: Sequence[tuple[Entry, float]]) -> Entry:
    out_features, in_features = terms[0][0].shape
    factors = [(entry, weight) for entry, weight in terms if isinstance(entry, Factors)]
    rank = sum(entry.us.shape[1] for entry, _ in factors)
    if len(factors) == len(terms) and rank * (out_features + in_features) < out_features * in_features:
        us = torch.cat([entry.us.float() * weight for entry, weight in factors], dim=1)
        return Factors(us, torch.cat([entry.vh.float() for entry, _ in factors]))
    return sum_dense(terms)


def sum_dense(terms: Sequence[tuple[Entry, float]]) -> Tensor:
    """The weighted sum as one matrix (out, in), float32."""
    total = torch.zeros(terms[0][0].shape)
    for entry, weight in terms:
        total += weight * dense(entry)
    return total


def dense(entry: Entry) -> Tensor:
    """An entry as a matrix (out, in), float32 on the CPU."""
    return (entry.dense() if isinstance(entry, Factors) else entry.float()).cpu()


def rename_word(delta: Delta, old: str, new: str) -> Delta:
    """The delta with one of its modifier tokens under another name; what it does is the same.

    Raises UserError if it has no such token, or if the new name is no token or taken.
    """
    if old not in delta.embeddings:
        there = ", ".join(delta.embeddings) or "none"
        near = did_you_mean(old, delta.embeddings)
        raise UserError(f"there is no word {old!r} in it; its words are {there}{near}")
    if not new:
        raise UserError("the new word is empty; give one, such as <cat>")
    if any(character in "+,:\0" or character.isspace() for character in new):
        raise UserError(f"{new!r} should be one word without spaces, commas, colons or +, such as <cat>")
    file_name(new)  # which it needs, too
    if new in delta.embeddings:
        raise UserError(f"it has a word {new} already")
    names = {token: new if token == old else token for token in delta.embeddings}
    return replace(
        delta,
        embeddings={names[token]: vectors for token, vectors in delta.embeddings.items()},
        provenance=replace(
            delta.provenance,
            tokens={names.get(token, token): class_word for token, class_word in delta.provenance.tokens.items()},
        ),
    )
