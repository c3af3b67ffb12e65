"""A training as a person asks for it: all settings, by diffusers' names, and what can be refused of them at once."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import torch

from ..algebra.compression import Limit
from ..data.captions import captions_of_pictures, class_captions, has_listing, is_listing
from ..data.concepts import Concept, PictureSettings, find_pictures, read_concept
from ..data.pictures import check_usable
from ..data.regularization import check_same_prompt, to_pick_from
from ..errors import UserError, check_range, check_text
from ..storage import check_writable, given_path, size
from ..text_features import concept_words
from ..tokens import DEFAULT_INITIALIZERS, file_name, split_tokens, tokens_in
from . import parallel
from .loop import TrainingConfig, check_precision
from .optimizers import check_optimizer_works

_NAME = "[name]"
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
    validation_steps:        0 for no pictures on the way.
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
            raise UserError(f"there is no setting {', '.join(map(repr, unknown))}; there are {', '.join(known)}")
        asked = {name: value for name, value in given.items() if value is not None or _may_be_none(known[name])}
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
        values = {name: _converted(wording.label(name), name, value, known[name]) for name, value in every.items()}
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
            prompt = concept.instance_prompt.replace(_NAME, words)
            if self.caption_source != "prompt" and (_NAME in concept.instance_prompt or not prompt.strip()):
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

    def check_settings(self, wording: Wording = PLAIN) -> None:
        """Refuse what no training can have, before a model is loaded or a file written: values, names, files, folders.

        Raises UserError, in the words of the face.
        """
        label = wording.label
        if not self.concepts:
            raise UserError("a training has 1 concept or more; say what to learn")
        self._check_texts(wording)
        check_range(self, "sample_batch_size", 1, 1000, label)
        check_range(self, "checkpointing_steps", 0, math.inf, label)
        check_range(self, "validation_steps", 0, math.inf, label)
        self.config().check(label)
        self.pictures().check(label)
        self._check_names(wording)
        if self.limit is not None and self.max_size and size(self.max_size) < 1:
            raise UserError(f"{label('max_size')} must be above 0, not {self.max_size}")
        asked = self.with_prior_preservation
        if asked and not self.num_class_images and not any(concept.class_data_dir for concept in self.concepts):
            raise UserError(
                f"{label('with_prior_preservation')} needs class pictures: give"
                f" {wording.of_concept('class_data_dir', 1)}, or {label('num_class_images')} to have them drawn"
            )
        for number, concept in enumerate(self.named_concepts(), start=1):
            self._check_concept(number, concept, wording)
        self._check_class_folders(wording)

    def check_device(self, device: torch.device, wording: Wording = PLAIN) -> None:
        """Refuse what cannot be done on a device, and with the libraries that are installed; it needs no model either.

        Raises UserError, in the words of the face.
        """
        check_precision(self.mixed_precision, device, wording.label)
        check_optimizer_works(self.optimizer, device)
        if self.report_to == "tensorboard" and find_spec("tensorboard") is None:
            raise UserError(
                f"TensorBoard is not installed; pip install tensorboard, or use {wording.label('report_to')} none"
            )

    def _check_texts(self, wording: Wording) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            for text in value if isinstance(value, tuple) else (value,):
                if isinstance(text, str):
                    check_text(text, wording.label(each.name))
        for number, concept in enumerate(self.concepts, start=1):
            for name in ("instance_prompt", "class_prompt"):
                check_text(getattr(concept, name), wording.of_concept(name, number))

    def _check_names(self, wording: Wording) -> None:
        if self.name and file_name(self.name) != self.name:
            raise UserError(
                f"{wording.label('name')} {self.name!r} has characters that not every file's name can have;"
                f" call it {file_name(self.name)!r}"
            )
        file_name(self.result_name)
        files = [file_name(token).casefold() for token in self.tokens]
        for index, name in enumerate(files):
            if name in files[:index]:
                first, second = self.tokens[files.index(name)], self.tokens[index]
                raise UserError(f"the words {first} and {second} are the same, or make the same file; take another")

    def _check_concept(self, number: int, concept: Concept, wording: Wording) -> None:
        if number > len(self.tokens) and _NAME in self.concepts[number - 1].instance_prompt:
            raise UserError(f"concept {number} has no word; give {wording.of_concept('modifier_token', number)}")
        if not concept.instance_prompt.strip():
            raise UserError(f"{wording.of_concept('instance_prompt', number)} is empty; write photo of a [name]")
        check_usable(find_pictures(concept.instance_data_dir), self.use_alpha)
        self.captions_of(concept)
        if self.with_prior_preservation:
            self._check_class(number, concept, wording)

    def _check_class(self, number: int, concept: Concept, wording: Wording) -> None:
        folder = concept.class_data_dir
        if self.real_prior:
            if folder is None:
                raise UserError(
                    f"concept {number} needs a folder of captioned pictures for {wording.label('real_prior')}; give"
                    f" {wording.of_concept('class_data_dir', number)}"
                )
            check_usable([path for path, _ in to_pick_from(folder)])
        if (self.real_prior or self.num_class_images) and not concept.class_prompt.strip():
            raise UserError(
                f"concept {number} needs a class_prompt for prior preservation, such as cat; give"
                f" {wording.of_concept('class_prompt', number)}"
            )
        if folder is None or self.real_prior:
            return
        if is_listing(folder) or not self.num_class_images:
            check_usable([path for path, _ in class_captions(folder, concept.class_prompt)])
        else:
            check_same_prompt(folder, concept.class_prompt)
            check_writable(folder)

    def _check_class_folders(self, wording: Wording) -> None:
        """Refuse to draw class pictures among those to be learned, and those of two classes into one folder."""
        concepts = self.named_concepts()
        own = {path.parent.resolve() for each in concepts for path in find_pictures(each.instance_data_dir)}
        drawn: dict[Path, str] = {}
        for number, concept in enumerate(concepts, start=1):
            folder = concept.class_data_dir
            if folder is None:
                continue
            where = f"{wording.of_concept('class_data_dir', number)} is {folder}"
            if folder.resolve() in own:
                raise UserError(f"{where}, where pictures to be learned are; give another folder")
            if self.real_prior or not self.num_class_images or has_listing(folder):
                continue
            other = drawn.setdefault(folder.resolve(), concept.class_prompt)
            if other != concept.class_prompt:
                raise UserError(f"{where}, where those of {other!r} are drawn; give another folder")


def _part(settings: type[_T], plan: TrainingPlan) -> _T:
    return settings(**{each.name: getattr(plan, each.name) for each in fields(settings)})  # type: ignore[arg-type]


def _may_be_none(hint: Any) -> bool:
    return type(None) in get_args(hint)


def _converted(label: str, name: str, value: Any, hint: Any) -> Any:
    """A value of JSON, of a flag or of a page's field, as the setting's type. Raises UserError if it is none such."""
    if _may_be_none(hint):
        inner = next(each for each in get_args(hint) if each is not type(None))
        return None if value is None or value == "" else _converted(label, name, value, inner)
    if get_origin(hint) is tuple:
        if isinstance(value, str):
            return _split(name, value)
        if isinstance(value, Sequence) and all(isinstance(part, str) for part in value):
            return tuple(part.strip() for part in value)
        raise UserError(f"{label} must be a list of texts, not {value!r}")
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and number and math.isfinite(value) and value == int(value):
        return int(value)
    if hint is float and number:
        return float(value)
    if hint is str and isinstance(value, str):
        value = value if name == "filename_join_string" else value.strip()
        return str(given_path(value)) if name == "prior_captions" and value else value
    if hint is str and number and name.endswith("learning_rate"):
        return str(value)
    if hint is Path and isinstance(value, (str, Path)):
        return given_path(value)
    wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}[hint]
    raise UserError(f"{label} must be {wanted}, not {value!r}")


def _split(name: str, text: str) -> tuple[str, ...]:
    """The parts of a list as flags have it: words joined by +, blocks by commas."""
    if name == "modifier_token":
        return tuple(split_tokens(text)) if text.strip() else ()
    parts = text.split("+" if name == "initializer_token" else ",")
    return tuple(part.strip() for part in parts if part.strip() or name == "initializer_token")
