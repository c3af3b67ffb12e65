"""What a person asks of a training, on the Train tab or through the API."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from modules import shared
from modules.textual_inversion import textual_inversion

from ..concepts import Concept, PictureSettings
from ..errors import UserError
from ..training import TrainingConfig

MAX_CONCEPTS = 4

PRESETS: dict[str, dict[str, Any]] = {
    "thing or pet": {
        "learning_rate": "8e-5", "embedding_learning_rate": "8e-5", "steps": 250, "select": "crossattn_kv",
        "prompt": "photo of a [name]",
    },
    "style": {
        "learning_rate": "8e-5", "embedding_learning_rate": "8e-5", "steps": 250, "select": "crossattn_kv",
        "prompt": "painting in the style of [name]",
    },
    "face": {"learning_rate": "4e-5", "embedding_learning_rate": "4e-5", "steps": 1000, "select": "crossattn",
        "prompt": "photo of a [name]",
    },
}  # fmt: skip
"""The published recipes: their rate times the batch of 8 that it was used with."""


@dataclass
class ConceptForm:
    """One thing to learn.

    embedding:      name of an embedding of the WebUI that stands for it in prompts.
    pictures:       folder with pictures of it.
    class_word:     what it is a kind of, such as cat.
    regularization: folder with pictures of other such things; "" for none.
    """

    embedding: str
    pictures: str
    class_word: str = ""
    regularization: str = ""

    def check(self, number: int) -> None:
        """Raise UserError unless the fields can be trained with."""
        if not self.embedding:
            raise UserError(f"concept {number} has no embedding; choose one, or create it above")
        if not self.pictures.strip():
            raise UserError(f"concept {number} has no folder of pictures")


@dataclass
class TrainingForm:
    """The settings of a training. `resolution` 0 is the model's own; captions are as `captions.captioner` says."""

    concepts: list[ConceptForm]
    name: str = ""
    overwrite: bool = False
    learning_rate: str = "8e-5"
    embedding_learning_rate: str = "8e-5"
    steps: int = 250
    batch_size: int = 4
    gradient_accumulation: int = 1
    clip_mode: str = "norm"
    clip_value: float = 1.0
    resolution: int = 0
    augment: bool = True
    flip: bool = False
    use_alpha: bool = False
    captions: str = "prompt"
    prompt: str = "photo of a [name]"
    template: str = "subject_filewords.txt"
    prior_loss_weight: float = 1.0
    select: str = "crossattn_kv"
    gradient_checkpointing: bool = False
    save_every: int = 0
    preview_every: int = 0
    preview_prompt: str = ""
    seed: int = 42

    def check(self) -> None:
        """Raise UserError for what no training can have; the rest is checked where it is used."""
        if not 1 <= len(self.concepts) <= MAX_CONCEPTS:
            raise UserError(f"a training has 1 to {MAX_CONCEPTS} concepts, not {len(self.concepts)}")
        for number, concept in enumerate(self.concepts, start=1):
            concept.check(number)
        names = [concept.embedding for concept in self.concepts]
        if len(set(names)) < len(names):
            raise UserError("two concepts have the same embedding; each needs its own")
        if self.clip_mode not in ("norm", "value", "disabled"):
            raise UserError(f"gradients are clipped by norm, value or disabled, not {self.clip_mode!r}")

    @property
    def file_name(self) -> str:
        """What the delta is to be called: the name asked for, or the embeddings', as the host allows in file names."""
        asked = self.name.strip() or "-".join(concept.embedding for concept in self.concepts)
        name = "".join(character for character in asked if character.isalnum() or character in "._- ").strip(" .")
        if not name:
            raise UserError(f"{asked!r} has no letter or digit to name a file by")
        return name

    def core_concepts(self) -> list[Concept]:
        """As the core wants them: [name] in captions is the embedding with its class word."""
        prior = self.prior_loss_weight > 0
        return [
            Concept(
                self._caption_of(concept),
                Path(concept.pictures).expanduser(),
                concept.class_word,
                Path(concept.regularization).expanduser() if concept.regularization.strip() and prior else None,
            )
            for concept in self.concepts
        ]

    def _caption_of(self, concept: ConceptForm) -> str:
        name = f"{concept.embedding} {concept.class_word}".strip()
        return self.prompt.replace("[name]", name) if self.captions == "prompt" else name

    def picture_settings(self) -> PictureSettings:
        template = None
        if self.captions == "template":
            found = textual_inversion.textual_inversion_templates.get(self.template)
            if found is None:
                raise UserError(f"there is no prompt template {self.template!r}")
            template = Path(found.path)
        return PictureSettings(
            resolution=self.resolution or None,
            augment=self.augment,
            hflip=self.flip,
            use_alpha=self.use_alpha,
            caption_source=self.captions,
            template=template,
            filename_word_regex=shared.opts.dataset_filename_word_regex,
            filename_join_string=shared.opts.dataset_filename_join_string,
        )

    def core_config(self, vectors_per_token: int, mixed_precision: str, validation_prompt: str) -> TrainingConfig:
        """The core's settings. Each embedding starts from the vectors that it has."""
        names = tuple(concept.embedding for concept in self.concepts)
        return TrainingConfig(
            modifier_tokens=names,
            initializer_tokens=names,
            vectors_per_token=vectors_per_token,
            freeze_model=self.select,
            learning_rate=self.learning_rate,
            embedding_learning_rate=self.embedding_learning_rate,
            max_train_steps=self.steps,
            train_batch_size=self.batch_size,
            gradient_accumulation_steps=self.gradient_accumulation,
            prior_loss_weight=self.prior_loss_weight,
            max_grad_norm=self.clip_value if self.clip_mode == "norm" else None,
            max_grad_value=self.clip_value if self.clip_mode == "value" else None,
            mixed_precision=mixed_precision,
            gradient_checkpointing=self.gradient_checkpointing,
            checkpointing_steps=self.save_every or self.steps,
            checkpoints_total_limit=1,
            validation_prompt=validation_prompt or None,
            validation_steps=self.preview_every or self.steps,
            num_validation_images=1,
            report_to="tensorboard" if _wants_tensorboard() else "none",
            seed=self.seed,
        )


def _wants_tensorboard() -> bool:
    """The host's setting; without the package the host trains on as well."""
    return shared.opts.training_enable_tensorboard and find_spec("tensorboard") is not None
