"""Merging: one delta that does for each concept's words what its own delta does, and else as little as can be.

The constrained least squares of Custom Diffusion (arXiv 2212.04488, §3.2, eq. 4 and 5) in terms of deltas. With Δ_i the
delta of concept i, C_i (s_i, d) the text features of its target prompts, C all of them stacked, and A = C_regᵀ C_reg
over features of regularization captions, the delta that has Δ C_iᵀ = Δ_i C_iᵀ and the least ‖Δ C_regᵀ‖ is

    Δ = [Δ_1 C_1ᵀ … Δ_N C_Nᵀ] (D Cᵀ)⁻¹ D    with  D = C A⁻¹.

Base weights do not occur in it; A and C are the same for all layers; and its rank is the number of target rows.

A few target rows say little of how a concept is drawn. A UNet reads all 77 positions of a prompt, start token and
padding too; and where two concepts share their class word, rows that hardly differ are asked for different things, so
that the delta is wild on everything else. Given contexts, prompts with each concept in them (P_i of p_i rows, all
positions), merging therefore minimizes

    ‖Δ C_regᵀ‖² / n  +  Σ_i ‖(Δ − Δ_i) P_iᵀ‖² / p_i    with  Δ C_iᵀ = Δ_i C_iᵀ  for target rows that differ enough.

With G = C_regᵀ C_reg / n + Σ_i P_iᵀ P_i / p_i that is Δ = Δ₀ + (V − Δ₀ Cᵀ)(D Cᵀ)⁻¹ D, where Δ₀ is
(Σ_i Δ_i P_iᵀ P_i / p_i) G⁻¹, V = [Δ_i C_iᵀ] and D = C G⁻¹. Without contexts Δ₀ is zero, and it is the paper's.
Of each P_iᵀ P_i the principal directions are kept, so that Δ₀ has a low rank too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..attention import reads_text
from ..backend import Backend
from ..delta import Delta, Entry, Factors
from ..errors import UserError
from ..text_features import concept_words, second_moment, spoken_features
from ..tokens import split_at_tokens
from .blending import Renamed, Words, all_keys, bundle_words, common_provenance, dense

TARGET_PROMPTS = ("photo of a {}", "{}")
STYLE_PROMPTS = ("painting in the style of {}", "{}")
"""What Adobe's code asks of each concept, and of what is "art"; {} is its modifier token and class word."""

_RIDGE = 1e-6  # of G, relative to its mean eigenvalue: few captions leave directions without any feature
_RIDGE_OF_TARGETS = 1e-9  # of A in such directions alone, if target rows have them: the authors' code has none
_NO_FEATURE = 1e-12  # an eigenvalue of A this small, relative to their mean, is rounding
_NOT_ASKED = 1e-5  # and so is this part of the target rows
_DEPENDENT = 1e-3  # a target row this near to the span of those before it is left out
_CONFLICT = 0.05  # unless it asks for something this different
_ALIKE = 0.5  # the same with contexts: rows nearer than this are left to these

CONTEXT_PROMPTS = ("a {}", "photo of a {}", "{}", "a small {}", "close up of a {}")
_CONTEXTS = 60
_CONTEXT_RANK = 128  # principal directions kept of each concept's contexts
_SURROUNDINGS = re.compile(r" (?:on|in|at|with|beside|under|near|by|behind|over|and) .*$")


@dataclass(frozen=True)
class Merged:
    """What `merge` found.

    delta:       the result, in factors unless these would be larger than the matrices.
    renamed:     modifier tokens that had to give way.
    residual:    ‖Δ Cᵀ − [Δ_i C_iᵀ]‖ / ‖[Δ_i C_iᵀ]‖ over all layers and the target rows kept, in float64.
    target_rows: how many are kept, of how many.
    targets:     those that are kept, (rows, d), of each concept.
    """

    delta: Delta
    renamed: list[Renamed]
    residual: float
    target_rows: tuple[int, int]
    targets: list[Tensor]


def target_features(
    backend: Backend,
    deltas: Sequence[Delta],
    words: Words,
    prompts: Sequence[Sequence[str]] = (),
    authors_rows: bool = False,
) -> list[Tensor]:
    """Features (s_i, d) of each concept's target prompts, from its first modifier token to the end token.

    prompts[i]:   those of delta i, in which its tokens have their own names; TARGET_PROMPTS or STYLE_PROMPTS if not
                  given.
    authors_rows: also what stands before the token, as Adobe's code has it: all but "photo of a", and what several
                  prompts begin with as the first of them has it.

    Raises UserError for a delta without any modifier token for which no prompts are given.
    """
    targets = []
    begun: list[Tensor] = []
    for index, delta in enumerate(deltas):
        own = words.in_prompts(index, prompts[index]) if index < len(prompts) else []
        own = own or [prompt for word in concept_words(words.of(index, delta)) for prompt in _own_prompts(word)]
        if not own:
            raise UserError(f"delta {index + 1} has no modifier token to make target prompts of; give its prompts")
        before = [_words_before(backend, prompt, words.vectors) for prompt in own]
        targets.append(spoken_features(backend, own, words.vectors, before))
        if authors_rows:
            beginnings = _beginnings(backend, own, before, words.vectors)
            new = [row for row in beginnings if not any(torch.equal(row, other) for other in begun)]
            begun += new
            targets[-1] = torch.cat([row[None] for row in new] + [targets[-1]])
    return targets


def _own_prompts(word: str) -> list[str]:
    """What a concept is asked for by, "<new1> cat"."""
    forms = STYLE_PROMPTS if "art" in word.split() else TARGET_PROMPTS
    return [form.format(word) for form in forms]


def _beginnings(
    backend: Backend, prompts: Sequence[str], before: Sequence[int], vectors: Mapping[str, Tensor]
) -> Iterator[Tensor]:
    """The features (d,) of the first words of each prompt, `before` many, but for those of "photo of a"."""
    for prompt, count in zip(prompts, before):
        skip = authors_skip(prompt)
        yield from spoken_features(backend, [prompt], vectors, [skip])[: max(0, count - skip)]


def authors_skip(text: str) -> int:
    """How many of a text's first words Adobe's code leaves out."""
    return 3 if "photo of a" in text[:15] else 0


def context_features(
    backend: Backend,
    deltas: Sequence[Delta],
    words: Words,
    captions: Sequence[str],
    prompts: Sequence[Sequence[str]] = (),
) -> list[Tensor]:
    """Second moments (d, d) of features of prompts of each concept, in surroundings from the captions ("… on a table").

    prompts as in `target_features`; they are among the contexts, and all there are for a delta without modifier token.
    """
    surroundings = [found.group() for found in map(_SURROUNDINGS.search, captions) if found]
    chosen = ["", *surroundings[:: max(1, len(surroundings) // _CONTEXTS)]]
    forms = [(CONTEXT_PROMPTS[index % len(CONTEXT_PROMPTS)], around) for index, around in enumerate(chosen)]
    contexts = []
    for index, delta in enumerate(deltas):
        spoken = concept_words(words.of(index, delta))
        own = [prompt for word in spoken for prompt in _own_prompts(word)]
        own += [form.format(word) + around for word in spoken for form, around in forms]
        own += words.in_prompts(index, prompts[index]) if index < len(prompts) else []
        contexts.append(second_moment(backend, own, words.vectors))
    return contexts


def _words_before(backend: Backend, prompt: str, vectors: Mapping[str, Tensor]) -> int:
    """Vocabulary tokens of the prompt before its first modifier token; 0 if it has none."""
    parts = split_at_tokens(prompt, vectors)
    return backend.count_tokens(parts[0], vectors) if len(parts) > 1 and parts[0] not in vectors else 0


def merge(
    deltas: Sequence[Delta], targets: Sequence[Tensor], regularization: Tensor, contexts: Sequence[Tensor] = ()
) -> Merged:
    """Merge deltas of to_k and to_v, given each one's target features (s_i, d) and those of captions (rows, d).

    contexts: P_iᵀ P_i / p_i (d, d) of prompts in which each concept is to look as by its own delta; none for the
    paper's merge. Raises UserError for deltas of different models, for trained to_q or to_out (they act on pictures,
    not on text), or when two concepts ask different things of the same words.
    """
    origin = common_provenance(deltas)
    wanted = {key: _wanted(deltas, targets, key) for key in all_keys(deltas)}
    left = wanted
    rows = torch.cat([target.double() for target in targets])
    gram = _gram(regularization.double(), contexts)
    factor = torch.linalg.cholesky(gram if contexts else _solvable(gram, rows))
    whitened, solved = _against(factor, rows)
    kept = _independent_rows(whitened, _DEPENDENT)
    _check_conflicts(whitened, kept, wanted, [len(target) for target in targets])
    mean = _Mean.of(deltas, contexts, factor, list(wanted)) if contexts else None
    if mean is not None:
        kept = _independent_rows(whitened, _ALIKE)
        left = {key: values - mean.us[key].double() @ (mean.vh @ rows.T) for key, values in wanted.items()}
    root = torch.linalg.cholesky(whitened[kept] @ whitened[kept].T)
    vh = torch.linalg.solve_triangular(root, solved[kept], upper=False)
    length = vh.norm(dim=1)
    vh = vh / length[:, None]  # rows of unit length: nothing leaves the range of float16
    us = {
        key: torch.linalg.solve_triangular(root, values[:, kept].T, upper=False).T * length
        for key, values in left.items()
    }
    missed = [us[key] @ (vh @ rows[kept].T) - values[:, kept] for key, values in left.items()]
    words = bundle_words(deltas)
    origin.tokens = words.class_words
    origin.settings = {"merge": {"tokens": [list(delta.embeddings) for delta in deltas], "target_rows": len(kept)}}
    entries: dict[str, Entry] = {key: Factors(matrix.float(), vh.float()) for key, matrix in us.items()}
    if mean is not None:
        entries = mean.plus(us, vh)
    return Merged(
        Delta(entries, words.vectors, origin),
        words.renamed,
        _residual(missed, (values[:, kept] for values in wanted.values())),
        (len(kept), len(rows)),
        _kept_of_each(targets, kept),
    )


def _kept_of_each(targets: Sequence[Tensor], kept: Sequence[int]) -> list[Tensor]:
    chosen = torch.zeros(sum(map(len, targets)), dtype=torch.bool)
    chosen[list(kept)] = True
    return [target[mask] for target, mask in zip(targets, chosen.split([len(target) for target in targets]))]


@dataclass(frozen=True)
class _Mean:
    """Δ₀ of all layers: us[key] (out, rank), float32, times vh (rank, d), float64, which all of them share."""

    us: dict[str, Tensor]
    vh: Tensor

    @classmethod
    def of(cls, deltas: Sequence[Delta], contexts: Sequence[Tensor], factor: Tensor, keys: Sequence[str]) -> _Mean:
        """Of contexts' second moments and the lower Cholesky factor of G."""
        directions = [_principal(context) for context in contexts]
        vh = [torch.cholesky_solve(context @ q, factor).T for context, q in zip(contexts, directions)]
        us = {}
        for key in keys:
            outs = _out_features(deltas, key)
            parts = [_times(delta.entries.get(key), q.float(), outs) for delta, q in zip(deltas, directions)]
            us[key] = torch.cat(parts, dim=1)
        return cls(us, torch.cat(vh))

    def plus(self, us: Mapping[str, Tensor], vh: Tensor) -> dict[str, Entry]:
        """The sum with us[key] @ vh, layer by layer."""
        both = torch.cat([self.vh, vh]).float()
        wide = {key: torch.cat([self.us[key], matrix.float()], dim=1) for key, matrix in us.items()}
        if len(both) >= both.shape[1]:
            return {key: matrix @ both for key, matrix in wide.items()}
        return {key: Factors(matrix, both) for key, matrix in wide.items()}


def _principal(moment: Tensor) -> Tensor:
    """The principal directions of a second moment (d, d) in columns, orthonormal: `_CONTEXT_RANK` of them at most."""
    return torch.linalg.eigh(moment.float()).eigenvectors[:, -_CONTEXT_RANK:].double()


def _out_features(deltas: Sequence[Delta], key: str) -> int:
    return next(delta.entries[key].shape[0] for delta in deltas if key in delta.entries)


def _times(entry: Entry | None, matrix: Tensor, out_features: int) -> Tensor:
    """entry @ matrix in the matrix's precision; zero for a layer that is not there."""
    if entry is None:
        return matrix.new_zeros(out_features, matrix.shape[1])
    if isinstance(entry, Factors):
        return entry.us.to(matrix.dtype) @ (entry.vh.to(matrix.dtype) @ matrix)
    return entry.to(matrix.dtype) @ matrix


def _wanted(deltas: Sequence[Delta], targets: Sequence[Tensor], key: str) -> Tensor:
    """[Δ_1 C_1ᵀ … Δ_N C_Nᵀ] of one layer, (out, rows), float64; zero where a delta leaves the layer alone."""
    if not reads_text(key):
        raise UserError(f"only deltas of to_k and to_v can be merged, and one has {key}; blend them instead")
    out_features = _out_features(deltas, key)
    columns = []
    for delta, target in zip(deltas, targets):
        entry = delta.entries.get(key)
        if entry is not None and entry.shape[1] != target.shape[1]:
            raise UserError(f"{key} reads {entry.shape[1]} text features, the model has {target.shape[1]}")
        columns.append(_times(entry, target.double().T, out_features))
    return torch.cat(columns, dim=1)


def _gram(regularization: Tensor, seconds: Sequence[Tensor]) -> Tensor:
    """A, or G, ridged, of the features' second moments if there are contexts; (d, d)."""
    gram = regularization.T @ regularization
    if seconds:
        gram = gram / len(regularization) + torch.stack(list(seconds)).sum(dim=0)
        gram.diagonal().add_(_RIDGE * gram.trace() / len(gram))
    return gram


def _solvable(gram: Tensor, rows: Tensor) -> Tensor:
    """A (d, d) itself where it can be solved with, else another in the directions that no caption has a feature in.

    What target rows (s, d) have there for rounding alone must not count; what they truly have is free to change.
    """
    mean = gram.trace() / len(gram)
    factor, failed = torch.linalg.cholesky_ex(gram)
    if not failed and factor.diagonal().min() ** 2 > _NO_FEATURE * mean:
        return gram
    values, directions = torch.linalg.eigh(gram)
    asked = (rows @ directions).norm(dim=0) > _NOT_ASKED * rows.norm()
    others = torch.where(asked, _RIDGE_OF_TARGETS * mean, mean)
    return (directions * torch.where(values > _NO_FEATURE * mean, values, others)) @ directions.T


def _against(factor: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """E with E Eᵀ = C A⁻¹ Cᵀ, and D = C A⁻¹, for target rows C (s, d) and A's lower Cholesky factor; both (s, d)."""
    half = torch.linalg.solve_triangular(factor, rows.T, upper=False)
    return half.T, torch.linalg.solve_triangular(factor.T, half, upper=True).T


def _independent_rows(rows: Tensor, distance: float) -> list[int]:
    """Indices of the rows that are not in the span of those kept before them, to within `distance` of their length."""
    kept: list[int] = []
    basis = rows.new_zeros(0, rows.shape[1])
    for index, row in enumerate(rows):
        rest = row - basis.T @ (basis @ row)
        rest = rest - basis.T @ (basis @ rest)  # twice, for rounding
        if rest.norm() > distance * row.norm():
            kept.append(index)
            basis = torch.cat([basis, (rest / rest.norm())[None]])
    return kept


def _check_conflicts(rows: Tensor, kept: list[int], wanted: Mapping[str, Tensor], counts: Sequence[int]) -> None:
    """Raise UserError if a row that was left out, because of others, wants something else than they give it."""
    left_out = [index for index in range(len(rows)) if index not in kept]
    if not left_out:
        return
    owners = [concept for concept, count in enumerate(counts) for _ in range(count)]
    mixture = torch.linalg.lstsq(rows[kept].T, rows[left_out].T).solution  # (kept, left out)
    missed = sum((values[:, left_out] - values[:, kept] @ mixture).square().sum(dim=0) for values in wanted.values())
    asked = sum(values[:, left_out].square().sum(dim=0) for values in wanted.values())
    for index, off, size in zip(left_out, missed, asked):  # type: ignore[arg-type]
        if off > _CONFLICT**2 * size:
            raise UserError(
                f"concept {owners[index] + 1} asks for something different from the concepts before it at target words"
                " that read the same; give it another modifier token or other target prompts"
            )


def _residual(missed: Iterable[Tensor], wanted: Iterable[Tensor]) -> float:
    asked = sum(values.square().sum().item() for values in wanted)
    return float(sum(values.square().sum().item() for values in missed) / asked) ** 0.5 if asked else 0.0


def change_on(delta: Delta, features: Tensor) -> float:
    """(Σ ‖Δ Cᵀ‖²)^½ over all layers that read text, for features C (rows, d): how much a delta changes on captions."""
    gram = (features.T @ features).float()
    total = 0.0
    for key, entry in delta.entries.items():
        if reads_text(key):
            matrix = dense(entry)
            total += ((matrix @ gram) * matrix).sum().item()
    return max(total, 0.0) ** 0.5
