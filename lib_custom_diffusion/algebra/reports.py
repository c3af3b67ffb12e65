"""What an operation on files did to the numbers, and how people are told of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..delta import Delta
from .blending import Renamed

KEPT = 0.1  # how far a concept may be off in a merged file, relative, to be called kept


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


def compressed_text(done: Compressed) -> str:
    """What compression did, as a sentence."""
    if done.unchanged:
        return f"It was already small enough: {done.size / 1e6:.2f} MB, nothing was lost."
    return (
        f"Compressed to {done.size / 1e6:.2f} MB from {done.size_before / 1e6:.2f}; what it does to prompts differs by"
        f" {done.error:.1%}."
    )


def renamed_lines(renamed: Sequence[Renamed]) -> list[str]:
    """What to tell of words that had to be renamed."""
    return [
        f"{each.old} of file {each.index + 1} is now {each.new}: another file has a {each.old} too" for each in renamed
    ]


def plain_word_note(word: str) -> str:
    """What to tell of a new name that is written as ordinary words are; nothing of others."""
    if not word.isalpha():
        return ""
    return f"With this delta, any {word} in a prompt means the concept; <{word}> could not be mistaken for a word."
