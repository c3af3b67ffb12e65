"""Algebra on files, for people: compress, blend, merge and convert, and what each did to the numbers.

The arithmetic is in `compression`, `blending`, `merging` and `formats`; here files come in, one file goes out, and a
report says what that cost. A model is loaded only when it is needed, after the files have been read.
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
from ..formats import Base, Imported
from ..prompt_tags import MOST_WEIGHT
from ..storage import check_output, write_atomically
from ..text_features import Moments, concept_words, read_captions, second_moments, spoken_features
from ..tokens import split_at_tokens, tokens_in
from .blending import Renamed, blend, bundle_words, dense, rename_word
from .compression import Limit, compress, functional_error, with_rank
from .factors import QuantizedFactors
from .merging import authors_skip, change_on, context_features, merge, target_features

LoadModel = Callable[[], Backend]
Tell = Callable[[str], None]
"""Is told what is being done, in a few words, before it is done."""

_OF_DRAWING = re.compile(r"<\w+:[^<>]*>|\bBREAK\b|[(\[][^()\[\]]*:\s*[-.\d]+\s*[)\]]")
MERGE_CAPTIONS = 200  # as many as Adobe's code takes
LORAS = ("lora", "lora-diffusers")
_OF_DIFFUSERS = ("pytorch_lora_weights", "pytorch_custom_diffusion_weights")
_EMBEDDING_BYTES = 1_000_000
MERGED_BYTES = 2_000_000  # a merged file that would be larger is compressed
KEPT = 0.1  # how far a concept may be off in a merged file, relative, to be called kept
LORA_ERROR = 0.01  # relative, of a LoRA whose rank is not given


def _silent(_: str) -> None:
    return None


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


def renamed_lines(renamed: Sequence[Renamed]) -> list[str]:
    """What to tell of words that had to be renamed."""
    return [
        f"{each.old} of file {each.index + 1} is now {each.new}: another file has a {each.old} too" for each in renamed
    ]


@dataclass(frozen=True)
class Result:
    """What an operation wrote and read.

    path, size: of the new file, in bytes. words: its modifier tokens.
    renamed:    modifier tokens that had to give way to others of the same name.
    dropped:    names of tensors that a delta has no place for, by file.
    """

    path: Path
    size: int
    words: list[str]
    renamed: list[Renamed]
    dropped: dict[Path, list[str]]


@dataclass(frozen=True)
class Compressed(Result):
    """error: relative, functional on held-out captions if `weighed`, else of the matrices themselves."""

    size_before: int
    error: float
    weighed: bool
    layers: tuple[int, int]
    """Kept, of how many."""
    quantized_layers: int
    ranks: tuple[int, int]
    """The least and the greatest."""
    unchanged: bool
    """Whether it was within the limit as it was, or nothing smaller is."""


@dataclass(frozen=True)
class Blended(Result):
    """error: what compression cost, relative, as in `Compressed`; None if the sum is exact."""

    error: float | None


@dataclass(frozen=True)
class Merged(Result):
    """residual: of the constraints, relative, in float64; stored_residual: as the file has it, rounded.

    target_rows: kept, of how many. off: how far the file is, on each concept's own target prompts, from what that
    concept's own file does there, relative.
    change: (Σ ‖Δ Cᵀ‖²)^½ on `captions` captions; change_of_sum: of the plain sum.
    """

    target_rows: tuple[int, int]
    residual: float
    stored_residual: float
    off: list[float]
    captions: int
    change: float
    change_of_sum: float

    def report(self, names: Sequence[str]) -> dict[str, str]:
        """What came of it, in a plain person's words, by heading. names: of the files."""
        lost = [f"{name} is not" for name, off in zip(names, self.off, strict=True) if off > KEPT]
        kept = "every concept is kept" if len(names) > 1 else "the concept is kept"
        kept_rows, all_rows = self.target_rows
        which = f"{kept_rows} of the {all_rows} in the prompts; the others follow from them"
        rows = {
            "Result": f"{', '.join(lost)} kept well; give prompts that it is used in, or try blend" if lost else kept,
            "Compared with its own file": ", ".join(
                f"{name} acts {off:.1%} differently" for name, off in zip(names, self.off, strict=True)
            )
            + f" on its own prompts; up to {KEPT:.0%} counts as kept",
            "Accuracy": f"{self.stored_residual:.2%} off on the words that had to come out exactly"
            f" ({which if kept_rows < all_rows else f'all {all_rows} in the prompts'})",
        }
        if self.change_of_sum:
            share = self.change / self.change_of_sum
            other = "a blend of the deltas changes them" if len(names) > 1 else "its own file changes them"
            rows["Side effects"] = (
                f"other prompts change {share:.0%} as much as {other}, measured on {self.captions} captions"
            )
        return rows


@dataclass(frozen=True)
class Converted:
    """files: the new format's, by name, made of the delta. dropped: as in `Result`.

    beside: files that were not named, from beside the one that was, by what words they gave.

    rank: of a LoRA's layers, 0 where none is low-rank. cut_layers lost something by it, all layers `error`, relative.
    """

    files: dict[str, bytes]
    delta: Delta
    dropped: dict[Path, list[str]]
    beside: dict[Path, list[str]]
    rank: int = 0
    cut_layers: int = 0
    error: float = 0.0

    def precision(self) -> str:
        """How near a LoRA is to what it was made of, as a phrase."""
        if not self.cut_layers:
            return "exact up to rounding to float16"
        return f"relative error {self.error:.2%}: {self.cut_layers} layers cut to rank {self.rank}"

    def taken(self) -> list[str]:
        """What to tell of words that were not asked for."""
        return [f"{', '.join(words)} was taken from {path.name} beside it" for path, words in self.beside.items()]


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
    tell: Tell = _silent,
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


def compressed_text(done: Compressed) -> str:
    """What compression did, as a sentence."""
    if done.unchanged:
        return f"It was already small enough: {done.size / 1e6:.2f} MB, nothing was lost."
    return (
        f"Compressed to {done.size / 1e6:.2f} MB from {done.size_before / 1e6:.2f}; what it does to prompts differs by"
        f" {done.error:.1%}."
    )


def blend_files(
    sources: Sequence[Path],
    weights: Sequence[float],
    output: Path,
    limit: Limit | None = None,
    load_model: LoadModel | None = None,
    tell: Tell = _silent,
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
    tell: Tell = _silent,
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


def convert_files(
    sources: Sequence[Path],
    kind: str,
    load_model: LoadModel | None = None,
    rank: int | None = None,
    tell: Tell = _silent,
    exact: bool = False,
) -> Converted:
    """One file with layers, and any with words, as another program's files; nothing is written.

    load_model: of the model they belong to, for formats with full weights. rank: the highest of a LoRA's layers; the
    least at which LORA_ERROR is kept if None. exact: a LoRA's dense layers become full differences instead.
    Raises UserError for files that are none, more than one with layers, and as `formats.write` does.
    """
    backend = load_model() if load_model is not None else None
    base = Base.of(backend.unet) if backend is not None else None
    tell("Reading the files")
    delta, found = _joined(sources, base)
    dropped = {path: imported.dropped for path, imported in found.items() if imported.dropped}
    beside = {path: list(imported.delta.embeddings) for path, imported in found.items() if path not in sources}
    delta.provenance.architecture = delta.provenance.architecture or (backend.architecture if backend else "")
    if not (delta.entries or delta.embeddings):
        raise UserError(f"{sources[0]} has neither layers nor words: nothing would be written")
    if kind not in LORAS:
        return Converted(formats.write(delta, kind, base), delta, dropped, beside)
    cut, error = 0, 0.0
    if not exact:
        tell("Finding the factors")
        delta, cut, error = _low_rank(delta, rank)
    ranks = [entry.us.shape[1] for entry in delta.entries.values() if isinstance(entry, Factors)]
    files = formats.write(delta, kind, base)
    return Converted(files, delta, dropped, beside, max(ranks, default=0), cut, error)


def rename_file(source: Path, old: str, new: str, output: Path) -> Result:
    """Give a word of a file another name. Raises UserError for files that are none, and as `rename_word` does."""
    check_output(output)
    check_delta_name(output)
    read = _Read.all([source])
    delta = rename_word(read.deltas[0], old, new)
    delta.save(output)
    return Result(*_about(output, delta), [], read.dropped)


def plain_word_note(word: str) -> str:
    """What to tell of a new name that is written as ordinary words are; nothing of others."""
    if not word.isalpha():
        return ""
    return f"With this delta, any {word} in a prompt means the concept; <{word}> could not be mistaken for a word."


def moments_of(delta: Delta, load_model: LoadModel, captions: Path | None = None, tell: Tell = _silent) -> Moments:
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


def _joined(paths: Sequence[Path], base: Base | None) -> tuple[Delta, dict[Path, Imported]]:
    """One delta of the only file with layers and of all files with words, those beside it included."""
    found = {path: formats.read(path, base) for path in paths}
    with_layers = [path for path, imported in found.items() if imported.delta.entries]
    if len(with_layers) > 1:
        raise UserError(
            f"{with_layers[0]} and {with_layers[1]} both hold layers; convert one by one, or use blend or merge"
        )
    for path in with_layers:
        if not found[path].delta.embeddings and len(paths) == 1:
            found |= _words_beside(path)
    delta = found[with_layers[0]].delta if with_layers else Delta({})
    for path, imported in found.items():
        for token, vectors in imported.delta.embeddings.items():
            if delta.embeddings.setdefault(token, vectors) is not vectors:
                raise UserError(f"{path} has a word {token}, and so has another file; rename one")
    return delta, found


def _words_beside(path: Path) -> dict[Path, Imported]:
    """Embeddings beside diffusers' weights: files named <…>, as its script has them, or that say such a token."""
    found = {}
    for other in sorted(path.parent.glob("<*>.*" if not path.name.startswith(_OF_DIFFUSERS) else "*")):
        if other != path and other.is_file() and other.stat().st_size < _EMBEDDING_BYTES:
            try:
                imported = formats.read(other)
            except UserError:
                continue  # whatever else lies there
            if not imported.delta.entries and all(token.startswith("<") for token in imported.delta.embeddings):
                found[other] = imported
    return found


def _low_rank(delta: Delta, rank: int | None) -> tuple[Delta, int, float]:
    """The delta with no layer above the rank, how many layers were cut for it, and the relative error of all.

    Layers that are factors within the rank stay as they are.
    """
    low, rank = with_rank(delta, rank, LORA_ERROR)
    made = [key for key, entry in low.entries.items() if entry is not delta.entries[key]]
    if not made:
        return delta, 0, 0.0
    return low, sum(min(delta.entries[key].shape) > rank for key in made), functional_error(delta, low)
