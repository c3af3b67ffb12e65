"""Algebra on files, for people: compress, blend, merge and rename.

The arithmetic is in `compression`, `blending` and `merging`; here files come in, one file goes out, and a report says
what that cost. A model is loaded only when it is needed, after the files have been read. `converting` makes other
programs' files of them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from .. import formats
from ..attention import projections
from ..backend import Backend
from ..delta import SUFFIX, Delta, Factors
from ..errors import UserError, did_you_mean
from ..prompt_tags import MOST_WEIGHT
from ..storage import check_output, write_atomically
from ..text_features import Moments, concept_words, read_captions, second_moments, spoken_features
from ..tokens import split_at_tokens, tokens_in
from .blending import blend, bundle_words, dense, rename_word
from .compression import Limit, compress, functional_error
from .factors import QuantizedFactors
from .merging import authors_skip, change_on, context_features, merge, target_features
from .reports import Blended, Compressed, Merged, Result

LoadModel = Callable[[], Backend]
Tell = Callable[[str], None]
"""Is told what is being done, in a few words, before it is done."""

_OF_DRAWING = re.compile(r"<\w+:[^<>]*>|\bBREAK\b|[(\[][^()\[\]]*:\s*[-.\d]+\s*[)\]]")
MERGE_CAPTIONS = 200  # as many as Adobe's code takes
MERGED_BYTES = 2_000_000  # a merged file that would be larger is compressed


def silent(_: str) -> None:
    """Tells nobody."""


def parse_weights(text: str, count: int) -> list[float]:
    """The weights in "0.7, 0.3", one for each of `count` files; 1 each of an empty text. Raises UserError otherwise."""
    if not text.strip():
        return [1.0] * count
    try:
        weights = [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f'the weights {text!r} should be numbers such as "0.7,0.3"') from None
    if len(weights) != count or not all(abs(weight) < MOST_WEIGHT for weight in weights):
        wanted = "one number, for the one file" if count == 1 else f"{count} numbers, one for each file"
        raise UserError(f"the weights {text!r} should be {wanted}")
    return weights


def parse_prompts(text: str) -> list[str]:
    """The prompts in "photo of a <new1> cat|<new1> cat". Raises UserError for what weighs or parts words in drawing."""
    prompts = [prompt.strip() for prompt in text.split("|") if prompt.strip()]
    for prompt in prompts:
        found = _OF_DRAWING.search(prompt)
        if found:
            raise UserError(
                f"the target prompt {prompt!r} has {found[0]}, which is for drawing; write its words alone, such as"
                " photo of a <new1> cat"
            )
    return prompts


def check_delta_name(output: Path) -> None:
    """Raise UserError for the name of what is no delta file, where one is to be written."""
    said = formats.kind_of_name(output.name)
    if said not in ("delta", None) or output.suffix.lower() != Path(SUFFIX).suffix:
        named = output.with_name(f"{output.name.partition('.')[0] or output.name}{SUFFIX}")
        raise UserError(f"{output} is not the name of a delta file; use {named}")


def check_outputs(outputs: Iterable[Path], sources: Sequence[Path]) -> None:
    """Raise UserError where a result cannot be written, or would take the place of a file that it is made of."""
    outputs = list(outputs)
    for output in outputs:
        check_output(output)
    for output, source in itertools.product(outputs, sources):
        if output.exists() and source.exists() and output.samefile(source):
            raise UserError(f"{output} is one of the inputs, and would be overwritten; give another output")


def compress_file(
    source: Path,
    output: Path,
    limit: Limit,
    load_model: LoadModel | None = None,
    captions: Path | None = None,
    quantized: bool = True,
    tell: Tell = silent,
) -> Compressed:
    """Make a delta small. With a model, errors count by its text features on `captions` (the model's own if None).

    Raises UserError for a file that is none, one that does not fit the model, and a limit that cannot be kept.
    """
    check_outputs([output], [source])
    check_delta_name(output)
    tell("Reading the file")
    read = _Read.all([source])
    [delta] = read.deltas
    moments = moments_of(delta, load_model, captions, tell) if load_model is not None else None
    tell("Finding the ranks")
    small = compress(delta, limit, moments.fitted if moments else None, quantized=quantized)
    if small is delta and source.name.lower().endswith(SUFFIX):
        write_atomically(output, source.read_bytes())
    else:
        small.save(output)
    tell("Measuring the error")
    ranks = [entry.us.shape[1] for entry in small.entries.values() if isinstance(entry, Factors)]
    return Compressed(
        *_about(output, small), [], read.dropped,
        size_before=source.stat().st_size,
        error=functional_error(delta, small, moments.held_out if moments else None),
        weighed=moments is not None,
        layers=(len(small.entries), len(delta.entries)),
        quantized_layers=sum(isinstance(entry, QuantizedFactors) for entry in small.entries.values()),
        ranks=(min(ranks, default=0), max(ranks, default=0)),
        unchanged=small is delta,
    )  # fmt: skip


def blend_files(
    sources: Sequence[Path],
    weights: Sequence[float],
    output: Path,
    limit: Limit | None = None,
    load_model: LoadModel | None = None,
    tell: Tell = silent,
) -> Blended:
    """Add deltas up, each times its weight; with a limit the sum is compressed, as `compress_file` does it.

    Raises UserError for files of different models, and as `compress_file` does.
    """
    tell("Reading the files")
    check_outputs([output], sources)
    check_delta_name(output)
    read = _Read.all(sources)
    _check_each_once(sources, read.deltas, "with a weight of that much more")
    blended = blend(read.deltas, weights)
    delta, error = blended.delta, None
    if limit is not None:
        moments = moments_of(delta, load_model, None, tell) if load_model is not None else None
        tell("Finding the ranks")
        small = compress(delta, limit, moments.fitted if moments else None)
        delta, error = small, functional_error(delta, small, moments.held_out if moments else None)
    delta.save(output)
    return Blended(*_about(output, delta), blended.renamed, read.dropped, error)


def merge_files(
    sources: Sequence[Path],
    output: Path,
    load_model: LoadModel,
    target_prompts: Sequence[Sequence[str]] = (),
    captions: Path | None = None,
    tell: Tell = silent,
    only_targets: bool = False,
) -> Merged:
    """Join concepts that were learned alone, one a file, by constrained least squares (see `merging`).

    target_prompts: what each concept is asked for by; empty for the paper's. captions: on which little may change, and
    which lend their surroundings to the concepts; with only_targets they do not, as in the paper.
    Raises UserError for files that do not fit the model, prompts for another number of files or with words that theirs
    does not have, and as `merge` does.
    """
    tell("Reading the files")
    check_outputs([output], sources)
    check_delta_name(output)
    read = _Read.all(sources)
    deltas = read.deltas
    _check_each_once(sources, deltas)
    if len(target_prompts) not in (0, len(deltas)):
        raise UserError(f"target prompts are given {len(target_prompts)} times for {len(deltas)} files")
    for source, delta, prompts in zip(sources, deltas, target_prompts):
        _check_prompts(source, delta, prompts)
    given = read_captions(captions) if captions else None
    backend = load_model()
    listed = given or read_captions(backend.captions)
    chosen = listed[:: max(1, len(listed) // MERGE_CAPTIONS)][:MERGE_CAPTIONS]
    _check_words(deltas, backend)
    tell("Text features of the captions")
    words = bundle_words(deltas)
    targets = target_features(backend, deltas, words, target_prompts, authors_rows=only_targets)
    regularization = spoken_features(backend, chosen, {}, list(map(authors_skip, chosen)) if only_targets else None)
    contexts = [] if only_targets else context_features(backend, deltas, words, listed, target_prompts)
    tell("Solving")
    merged = merge(deltas, targets, regularization, contexts)
    joined = merged.delta
    if len(joined.to_bytes()) > MERGED_BYTES:
        tell("Finding the ranks")
        seen = regularization.T @ regularization / len(regularization) + sum(contexts)
        joined = compress(joined, Limit(max_bytes=MERGED_BYTES), seen)
    joined.save(output)
    return Merged(
        *_about(output, joined), merged.renamed, read.dropped,
        target_rows=merged.target_rows,
        residual=merged.residual,
        stored_residual=stored_residual(deltas, merged.targets, Delta.load(output)),
        off=[
            stored_residual([delta], target_features(backend, [delta], bundle_words([delta]), own), Delta.load(output))
            for delta, own in zip(deltas, [[each] for each in target_prompts] or [[]] * len(deltas))
        ],
        captions=len(chosen),
        change=change_on(joined, regularization),
        change_of_sum=change_on(blend(deltas, [1.0] * len(deltas)).delta, regularization),
    )  # fmt: skip


def rename_file(source: Path, old: str, new: str, output: Path) -> Result:
    """Give a word of a file another name. Raises UserError for files that are none, and as `rename_word` does."""
    check_output(output)
    check_delta_name(output)
    read = _Read.all([source])
    delta = rename_word(read.deltas[0], old, new)
    delta.save(output)
    return Result(*_about(output, delta), [], read.dropped)


def moments_of(delta: Delta, load_model: LoadModel, captions: Path | None = None, tell: Tell = silent) -> Moments:
    """Moments of a model's text features, over captions (the model's own if None) and the delta's own prompts.

    Raises UserError if the delta does not fit the model.
    """
    given = read_captions(captions) if captions else None
    backend = load_model()
    listed = given or read_captions(backend.captions)
    delta.check_fits(projections(backend.unet, "crossattn"))
    _check_words([delta], backend)
    tell("Text features of the captions")
    words = {token: delta.provenance.tokens.get(token, "") for token in delta.embeddings}
    vectors = {token: value.float() for token, value in delta.embeddings.items()}
    return second_moments(backend, listed, words, vectors)


def stored_residual(deltas: Sequence[Delta], targets: Sequence[Tensor], stored: Delta) -> float:
    """The constraint residual that is left after rounding for the file, relative."""
    missed = asked = 0.0
    for delta, target in zip(deltas, targets):
        rows = target.float()
        for key in stored.entries:
            wanted = _applied(delta, key, rows)
            missed += (_applied(stored, key, rows) - wanted).square().sum().item()
            asked += wanted.square().sum().item()
    return (missed / asked) ** 0.5 if asked else 0.0


def _applied(delta: Delta, key: str, rows: Tensor) -> Tensor:
    return rows @ dense(delta.entries[key]).T if key in delta.entries else torch.zeros(())


@dataclass(frozen=True)
class _Read:
    """The deltas of files of any format that needs no model, and what a delta has no place for."""

    deltas: list[Delta] = field(default_factory=list)
    dropped: dict[Path, list[str]] = field(default_factory=dict)

    @classmethod
    def all(cls, paths: Sequence[Path]) -> _Read:
        found = {path: formats.read(path) for path in paths}
        return cls(
            [found[path].delta for path in paths],
            {path: imported.dropped for path, imported in found.items() if imported.dropped},
        )


def _about(path: Path, delta: Delta) -> tuple[Path, int, list[str]]:
    return path, path.stat().st_size, list(delta.embeddings)


def _check_each_once(sources: Sequence[Path], deltas: Sequence[Delta], instead: str = "") -> None:
    """Raise UserError if two files are one, or have the same layers, not all zero. instead: how one may be given."""
    for (first, one), (second, other) in itertools.combinations(zip(sources, deltas), 2):
        if one.entries and _same_layers(one, other):
            what = f"{first} is given twice" if first.samefile(second) else f"{second} has the same layers as {first}"
            raise UserError(f"{what}; give each concept once{instead and ', '}{instead}")


def _same_layers(one: Delta, other: Delta) -> bool:
    if one.entries.keys() != other.entries.keys():
        return False
    moved = False
    for key, entry in one.entries.items():  # one at a time: all of SDXL's are gigabytes
        matrix = dense(entry)
        if not torch.equal(matrix, dense(other.entries[key])):
            return False
        moved = moved or bool(matrix.any())
    return moved


def _check_prompts(source: Path, delta: Delta, prompts: Sequence[str]) -> None:
    """Raise UserError if prompts have a word in angle brackets that the file lacks, or lack a word that it has."""
    for prompt in prompts:
        strange = [token for token in tokens_in(prompt) if token not in delta.embeddings]
        if strange:
            raise UserError(
                f"the target prompt {prompt!r} has the word {strange[0]}, and {source} has"
                f" {', '.join(delta.embeddings) or 'none'}; write words as their file has them"
                f"{did_you_mean(strange[0], delta.embeddings)}"
            )
    asked = {part for prompt in prompts for part in split_at_tokens(prompt, delta.embeddings)}
    for token in delta.embeddings:
        if prompts and token not in asked:
            raise UserError(
                f"no target prompt of {source} has its word {token}, and without one what it means would be lost; add"
                f" one, such as 'photo of a {concept_words({token: delta.provenance.tokens.get(token, '')})[0]}'"
            )


def _check_words(deltas: Sequence[Delta], backend: Backend) -> None:
    """Raise UserError if a modifier token is of another width than the model's words."""
    width = backend.token_vectors("a").shape[1]
    for delta in deltas:
        for token, vectors in delta.embeddings.items():
            if vectors.shape[1] != width:
                sizes = f"{vectors.shape[1]} wide, the words of the model {backend.name} {width}"
                raise UserError(f"{token} is {sizes}: made for another model")
