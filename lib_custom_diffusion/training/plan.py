"""A training as a person asks for it: all settings, by diffusers' names, and how each face calls them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeVar, get_type_hints

from ..algebra.compression import Limit
from ..data.captions import captions_of_pictures
from ..data.concepts import Concept, PictureSettings, find_pictures, read_concept
from ..errors import UserError, did_you_mean
from ..storage import size
from ..text_features import concept_words
from ..tokens import DEFAULT_INITIALIZERS, file_name, tokens_in
from . import parallel
from .config import TrainingConfig
from .values import may_be_none, read_value

NAME = "[name]"
"""In a prompt: the new word and what it is a kind of."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class Wording:
    """How a face speaks of settings.

    labels: what the user sees, by name; in those of a concept's settings {} stands for its number.
    prefix: what a name has before it where there is no label.
    asking: how a setting is switched on; {} stands for its label.
    """

    labels: Mapping[str, str] = field(default_factory=dict)
    prefix: str = ""
    asking: str = "set {}"

    def label(self, name: str) -> str:
        """What the user knows a setting as."""
        return self.labels.get(name, f"{self.prefix}{name}")

    def of_concept(self, name: str, number: int) -> str:
        """The same, for a setting of a concept."""
        label = self.label(name)
        return label.format(number) if "{}" in label else f"{label} of concept {number}"

    def ask(self, name: str) -> str:
        """How the user switches a setting on."""
        return self.asking.format(self.label(name))


PLAIN = Wording()
"""Of programs: the names themselves."""


@dataclass(frozen=True)
class TrainingPlan(TrainingConfig, PictureSettings):
    """All settings of a training. Those of `TrainingConfig` and `PictureSettings` mean what they mean there, but:

    modifier_token:          none for those that the prompts have, such as <new1>.
    initializer_token:       more than there are new words do no harm.
    checkpointing_steps:     0 for a save at the end alone.
    validation_steps:        0 for no pictures, neither on the way nor at the end.
    num_class_images:        drawn until there are so many; 0 for those of class_data_dir as they are.

    concepts:                what to learn. In an instance_prompt [name] stands for the word and what it is a kind of.
    name:                    of the delta; made of the words if empty.
    overwrite:               whether it may replace a training, and a delta, of that name.
    resume_from_checkpoint:  the save to go on from, or "latest".
    allow_changes:           go on though pictures, captions or settings are not those of the save.
    with_prior_preservation: train on pictures of the class as well.
    real_prior:              take those of class_data_dir whose captions are nearest to the class prompt; draw none.
    sample_batch_size:       how many of them are drawn at once.
    scale_lr:                multiply the rates by the pictures of a step, and by 2 with prior preservation.
    max_size, energy:        what the delta is compressed to, at most one of them, see `compression.Limit`.
    """

    modifier_token: tuple[str, ...] = ()
    initializer_token: tuple[str, ...] = tuple(DEFAULT_INITIALIZERS.split("+"))
    concepts: tuple[Concept, ...] = ()
    name: str = ""
    overwrite: bool = False
    resume_from_checkpoint: str | None = None
    allow_changes: bool = False
    with_prior_preservation: bool = False
    real_prior: bool = False
    sample_batch_size: int = 4
    scale_lr: bool = False
    max_size: str = ""
    energy: float | None = None

    @classmethod
    def of(
        cls, given: Mapping[str, Any], recipe: Mapping[str, Any] | None = None, wording: Wording = PLAIN
    ) -> TrainingPlan:
        """The plan of settings by name, as JSON has them; those of `recipe` where they say nothing.

        Nothing in the place of a number that there must be is not given. A rate of the vectors that is not given is
        that of the deltas, if that is. Concepts are objects with the keys of `Concept`.

        Raises UserError for a setting that there is not, and a value of another type.
        """
        known = get_type_hints(cls)
        unknown = [name for name in given if name not in known]
        if unknown:
            near = did_you_mean(unknown[0], known)
            raise UserError(f"there is no setting {', '.join(map(repr, unknown))}; there are {', '.join(known)}{near}")
        asked = {name: value for name, value in given.items() if value is not None or may_be_none(known[name])}
        if asked.get("learning_rate") is not None:
            asked.setdefault("embedding_learning_rate", asked["learning_rate"])
        concepts = asked.pop("concepts", [])
        if not isinstance(concepts, (list, tuple)):
            raise UserError(f"{wording.label('concepts')} must be a list, not {concepts!r}")
        read = [
            each if isinstance(each, Concept) else read_concept(each, f"concept {number}")
            for number, each in enumerate(concepts, start=1)
        ]
        every = {**(recipe or {}), **asked}
        values = {name: read_value(wording.label(name), name, value, known[name]) for name, value in every.items()}
        return cls(**values, concepts=tuple(read))

    def to_json(self) -> dict[str, Any]:
        """The settings as `of` reads them."""
        return json.loads(json.dumps(asdict(self), default=str))

    @property
    def tokens(self) -> tuple[str, ...]:
        """The words to be learned."""
        found = [token for concept in self.concepts for token in tokens_in(concept.instance_prompt)]
        return self.modifier_token or tuple(dict.fromkeys(found)) or TrainingConfig.modifier_token

    @property
    def result_name(self) -> str:
        """What the delta is called."""
        return self.name or "-".join(file_name(token) for token in self.tokens)

    @property
    def prompt_to_try(self) -> str:
        """What shows all concepts, once they are learned."""
        return " and ".join(concept.instance_prompt for concept in self.named_concepts())

    @property
    def limit(self) -> Limit | None:
        """What the delta is compressed to, if it is. Raises UserError if that cannot be."""
        if not self.max_size and self.energy is None:
            return None
        return Limit(size(self.max_size) if self.max_size else None, None, self.energy)

    def clipped(self) -> TrainingPlan:
        """The plan with no larger a batch than there are pictures, as in the WebUI."""
        pictures = sum(len(set(find_pictures(concept.instance_data_dir))) for concept in self.concepts)
        return replace(self, train_batch_size=min(self.train_batch_size, pictures))

    def config(self) -> TrainingConfig:
        """What the training loop is told."""
        tokens, scale = self.tokens, 1.0
        if self.scale_lr:
            scale = float(self.train_batch_size * self.gradient_accumulation_steps * parallel.world_size())
            scale *= 2 if self.with_prior_preservation else 1
        return replace(
            _part(TrainingConfig, self),
            modifier_token=tokens,
            initializer_token=self.initializer_token[: len(tokens)],
            learning_rate_scale=self.learning_rate_scale * scale,
            checkpointing_steps=self.checkpointing_steps or self.max_train_steps,
            validation_prompt=self.validation_prompt if self.validation_steps else None,
            validation_steps=self.validation_steps or self.max_train_steps,
        )

    def pictures(self) -> PictureSettings:
        """How pictures become examples."""
        return _part(PictureSettings, self)

    def named_concepts(self) -> list[Concept]:
        """The concepts with [name] put in, and without class pictures where these are not trained on.

        Captions that come from elsewhere have a [name] of their own, which the prompt stands for: then it is the word.
        """
        named = []
        for index, concept in enumerate(self.concepts):
            token = self.tokens[index] if index < len(self.tokens) else ""
            [words] = concept_words({token: concept.class_prompt})
            prompt = concept.instance_prompt.replace(NAME, words)
            if self.caption_source != "prompt" and (NAME in concept.instance_prompt or not prompt.strip()):
                prompt = words
            folder = concept.class_data_dir if self.with_prior_preservation else None
            named.append(replace(concept, instance_prompt=prompt, class_data_dir=folder))
        return named

    def captions_of(self, concept: Concept) -> list[str]:
        """All captions that the pictures of a concept may get. Raises UserError as `captions.captioner` does."""
        return captions_of_pictures(
            find_pictures(concept.instance_data_dir), self.caption_source, concept.instance_prompt, self.template,
            self.filename_word_regex, self.filename_join_string,
        )  # fmt: skip


def _part(settings: type[_T], plan: TrainingPlan) -> _T:
    return settings(**{each.name: getattr(plan, each.name) for each in fields(settings)})  # type: ignore[arg-type]
