"""Pictures of a delta, and what they measure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from torch import Tensor

from ...backend import Sampling
from ...delta import Delta
from ...injection import Injection
from ..diffusers_backend import DiffusersBackend
from ..generate import words_of
from .alignment import image_alignment, kernel_distance, likeness_of_references, score, text_alignment, told_apart
from .eyes import DinoEyes, Eyes
from .questions import Question, question

_PARTS = 50
"""Into how many parts pictures are divided at most to see how much the score depends on them."""
_OTHER_SEEDS = 100_000
"""Added to the seeds of pictures of the class that others are compared with: KID supposes independent ones."""


@dataclass(frozen=True)
class Measures:
    """What one delta's pictures measured; None where it was not asked for."""

    image_alignment: float
    text_alignment: float
    told_apart: float | None
    dino_image_alignment: float | None
    kid: float | None


@dataclass(frozen=True)
class Looks:
    """What the eyes made of pictures, one a row, and of the caption of each."""

    things: Tensor
    meanings: Tensor
    texts: Tensor
    captions: list[str]

    def without(self, part: int, parts: int) -> Looks:
        """These without every `parts`th picture, from number `part` on."""
        kept = [number for number in range(len(self.captions)) if number % parts != part]
        captions = [self.captions[number] for number in kept]
        return Looks(self.things[kept], self.meanings[kept], self.texts[kept], captions)


@dataclass(frozen=True)
class Candidate:
    """A delta to measure, with what to call it and the steps it was trained."""

    name: str
    path: Path
    delta: Delta


@dataclass(frozen=True)
class Measured:
    """A candidate with its pictures and measures. Without a candidate it is the model alone.

    scores_without: the score without each part of the pictures in turn, for `alignment.chance`.
    """

    candidate: Candidate | None
    questions: list[Question]
    pictures: list[Image.Image] = field(repr=False)
    looks: Looks = field(repr=False)
    measures: Measures
    score: float | None = None
    scores_without: list[float] = field(default_factory=list)


class Measuring:
    """Draws and measures one delta after another, with the same seeds for each."""

    def __init__(
        self,
        backend: DiffusersBackend,
        eyes: Eyes,
        dino: DinoEyes | None,
        references: Sequence[Image.Image],
        sampling: Sampling,
        seeds: Sequence[int],
        drawn: Callable[[int], object],
    ) -> None:
        """references: the concept's own pictures; drawn: told of each batch of pictures."""
        self.backend, self.eyes, self.dino = backend, eyes, dino
        self.sampling, self.seeds, self._drawn = sampling, seeds, drawn
        self.references = eyes.things(references)
        self.dino_references = None if dino is None else dino.things(references)
        self.class_prompts: list[str] = []
        self.class_references: Tensor | None = None

    def watch_class(self, prompts: Sequence[str], references: Sequence[Image.Image]) -> None:
        """Measure KID, too: of pictures of these prompts to the references, or to those of the model alone."""
        self.class_prompts = list(prompts)
        seeds = range(_OTHER_SEEDS, _OTHER_SEEDS + len(prompts))
        references = references or self._draw(self.class_prompts, seeds, None)
        self.class_references = self.eyes.contents(references)

    def alone(self, questions: Sequence[Question]) -> Measured:
        """The model without a delta, asked for the captions: what it gives for the class."""
        plain = [Question(question.caption, question.caption) for question in questions]
        return Measured(None, plain, *self._measure(plain, None))

    def of(self, candidate: Candidate, lines: Sequence[str], class_prompt: str, alone: Measured) -> Measured:
        """One delta, with its score against the model alone."""
        questions = [question(line, candidate.delta, class_prompt) for line in lines]
        pictures, looks, measures = self._measure(questions, candidate.delta)
        parts = min(len(pictures), _PARTS)
        without = [self._score(looks.without(part, parts), alone.looks.without(part, parts)) for part in range(parts)]
        own = self._score(looks, alone.looks)
        return Measured(candidate, questions, pictures, looks, measures, own, without if parts > 1 else [])

    def _score(self, looks: Looks, alone: Looks) -> float:
        obedience = _share(_told_apart(looks), _told_apart(alone))
        if obedience is None:
            obedience = _share(_text_alignment(looks), _text_alignment(alone))
        likeness = image_alignment(looks.things, self.references)
        return score(likeness, likeness_of_references(self.references), 1.0 if obedience is None else obedience)

    def _measure(self, questions: Sequence[Question], delta: Delta | None) -> tuple[list[Image.Image], Looks, Measures]:
        asked = [question for question in questions for _ in self.seeds]
        pictures = self._draw([each.prompt for each in asked], [*self.seeds] * len(questions), delta)
        captions = [each.caption for each in asked]
        looks = Looks(self.eyes.things(pictures), self.eyes.meanings(pictures), self.eyes.captions(captions), captions)
        return (
            pictures,
            looks,
            Measures(
                image_alignment(looks.things, self.references),
                text_alignment(looks.meanings, looks.texts, self.eyes.text_scale),
                _told_apart(looks),
                None
                if self.dino is None or self.dino_references is None
                else image_alignment(self.dino.things(pictures), self.dino_references),
                self._kid(delta),
            ),
        )

    def _kid(self, delta: Delta | None) -> float | None:
        if self.class_references is None:
            return None
        pictures = self._draw(self.class_prompts, range(len(self.class_prompts)), delta)
        return kernel_distance(self.eyes.contents(pictures), self.class_references)

    def _draw(self, prompts: Sequence[str], seeds: Sequence[int], delta: Delta | None) -> list[Image.Image]:
        vectors = words_of(self.backend, [delta] if delta else [])
        pictures: list[Image.Image] = []
        with Injection(self.backend.unet, [(delta, 1.0)] if delta else []):
            for start in range(0, len(prompts), self.sampling.batch_size):
                part = slice(start, start + self.sampling.batch_size)
                pictures += self.backend.generate(prompts[part], seeds[part], self.sampling, vectors)
                self._drawn(len(prompts[part]))
        return pictures


def _told_apart(looks: Looks) -> float | None:
    return told_apart(looks.meanings, looks.texts, looks.captions)


def _text_alignment(looks: Looks) -> float:
    return text_alignment(looks.meanings, looks.texts)


def _share(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole
