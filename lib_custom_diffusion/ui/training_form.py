"""What a person asks of a training, on a page or through the API, and what the core makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..algebra.compression import Limit
from ..data.concepts import Concept, PictureSettings
from ..errors import UserError
from ..tokens import file_name
from ..training.loop import TrainingConfig
from ..training.prior import PRIORS

MAX_CONCEPTS = 4
CLIP_MODES = ("norm", "value", "disabled")
PICTURE_SHAPES = {"cropped to a square": "crop", "padded to a square": "pad", "as they are": "bucket"}
"""What is shown of pictures that are not square; by the core's words."""

PRESETS: dict[str, dict[str, Any]] = {
    "thing or pet": {
        "learning_rate": "8e-5", "embedding_learning_rate": "8e-5", "steps": 250, "select": "crossattn_kv",
        "snr_gamma": 0.0, "prompt": "photo of a [name]",
    },
    "style": {
        "learning_rate": "8e-5", "embedding_learning_rate": "8e-5", "steps": 250, "select": "crossattn_kv",
        "snr_gamma": 0.0, "prompt": "painting in the style of [name]",
    },
    "two things together": {
        "learning_rate": "8e-5", "embedding_learning_rate": "8e-5", "steps": 500, "select": "crossattn_kv",
        "snr_gamma": 0.0, "prompt": "photo of a [name]",
    },
    "face": {
        "learning_rate": "4e-5", "embedding_learning_rate": "4e-5", "steps": 1000, "select": "crossattn",
        "snr_gamma": 0.0, "prompt": "photo of a [name]",
    },
}  # fmt: skip
"""The published recipes: their rate times the batch of 8 that it was used with."""
TOY_PRESETS: dict[str, dict[str, Any]] = {
    "toy model: thing": {
        "learning_rate": "3e-4", "embedding_learning_rate": "5e-3", "steps": 200, "select": "crossattn_kv",
        "snr_gamma": 0.1, "prompt": "photo of a [name]",
    },
}  # fmt: skip
"""The toy model is small, and takes larger steps than Stable Diffusion."""


@dataclass
class ConceptForm:
    """One thing to learn.

    embedding:      the word that stands for it in prompts; in the WebUI, the name of an embedding.
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
        if not (self.embedding or "").strip():
            raise UserError(f"concept {number} has no word; choose one, or make a new one")
        if not self.pictures.strip():
            raise UserError(f"concept {number} has no folder of pictures")


@dataclass
class TrainingForm:
    """The settings of a training; those not named here are the core's, see `TrainingConfig` and `PictureSettings`.

    name:           of the result; "" for the words'.
    overwrite:      whether it may replace a delta of that name.
    resume:         go on from the last save of a training of that name.
    clip_mode, clip_value: what gradients are clipped by, and at.
    snr_gamma:      γ of the loss's min-SNR weighting; 0 for none.
    resolution:     0 for the model's own.
    shape:          one of PICTURE_SHAPES.
    prior, text_prior_weight: prior preservation in text space, see `prior.text_prior`; prior_loss_weight: of
                    regularization pictures, which a concept may have besides.
    captions, prompt, template: see `captions.captioner`; [name] stands for the word with its class word.
    max_megabytes, rank: what the delta is compressed to; both 0 to leave it as it is.
    save_every, preview_every: steps between copies, and between previews; 0 for none on the way.
    """

    concepts: list[ConceptForm]
    name: str = ""
    overwrite: bool = False
    resume: bool = False
    learning_rate: str = "8e-5"
    embedding_learning_rate: str = "8e-5"
    steps: int = 250
    batch_size: int = 4
    gradient_accumulation: int = 1
    clip_mode: str = "norm"
    clip_value: float = 1.0
    snr_gamma: float = 0.0
    resolution: int = 0
    shape: str = next(iter(PICTURE_SHAPES))
    augment: bool = True
    flip: bool = False
    use_alpha: bool = False
    captions: str = "prompt"
    prompt: str = "photo of a [name]"
    template: str = "subject_filewords.txt"
    prior: str = PRIORS[0]
    text_prior_weight: float = 0.1
    prior_loss_weight: float = 1.0
    select: str = "crossattn_kv"
    gradient_checkpointing: bool = False
    max_megabytes: float = 0.0
    rank: int = 0
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
        if len(set(self.words)) < len(self.words):
            raise UserError("two concepts have the same word; each needs its own")
        if self.clip_mode not in CLIP_MODES:
            raise UserError(f"gradients are clipped by {', '.join(CLIP_MODES)}, not {self.clip_mode!r}")
        if self.shape not in PICTURE_SHAPES:
            raise UserError(f"pictures are {', '.join(PICTURE_SHAPES)}, not {self.shape!r}")
        self.limit()

    def limit(self) -> Limit | None:
        """What the delta is to be compressed to, if it is. Raises UserError if that cannot be."""
        if not (self.max_megabytes or self.rank):
            return None
        if self.max_megabytes < 0:
            raise UserError(f"a file has more than {self.max_megabytes} MB")
        return Limit(max_bytes=int(self.max_megabytes * 1e6) or None, rank=self.rank or None)

    @property
    def words(self) -> list[str]:
        """The words to be learned, in the order of the concepts."""
        return [concept.embedding for concept in self.concepts]

    @property
    def file_name(self) -> str:
        """What the delta is called: the name asked for, or the words'. Raises UserError if no file can be."""
        return file_name(self.name.strip() or "-".join(self.words))

    def core_concepts(self) -> list[Concept]:
        """As the core wants them: [name] in captions is the word with its class word."""
        prior = self.prior_loss_weight > 0
        return [
            Concept(
                self._caption_of(concept),
                Path(concept.pictures.strip()).expanduser(),
                concept.class_word,
                Path(concept.regularization.strip()).expanduser() if concept.regularization.strip() and prior else None,
            )
            for concept in self.concepts
        ]

    def _caption_of(self, concept: ConceptForm) -> str:
        name = f"{concept.embedding} {concept.class_word}".strip()
        return self.prompt.replace("[name]", name) if self.captions == "prompt" else name

    @property
    def prompt_to_try(self) -> str:
        """What shows all concepts, once they are learned."""
        captions = [concept.instance_prompt for concept in self.core_concepts()]
        return f"{' and '.join(captions)} <delta:{self.file_name}:1>"

    def picture_settings(
        self, template: Path | None, filename_word_regex: str = "", filename_join_string: str = " "
    ) -> PictureSettings:
        """How pictures become examples; `template` and the rules for file names are the face's."""
        return PictureSettings(
            resolution=self.resolution or None,
            augment=self.augment,
            hflip=self.flip,
            resize_mode=PICTURE_SHAPES[self.shape],
            use_alpha=self.use_alpha,
            caption_source=self.captions,
            template=template,
            filename_word_regex=filename_word_regex,
            filename_join_string=filename_join_string,
        )

    def core_config(
        self,
        initializer_tokens: Sequence[str],
        vectors_per_token: int,
        mixed_precision: str = "no",
        report_to: str = "none",
    ) -> TrainingConfig:
        """The core's settings. Initializer tokens: what each word starts from."""
        return TrainingConfig(
            modifier_tokens=tuple(self.words),
            initializer_tokens=tuple(initializer_tokens),
            vectors_per_token=vectors_per_token,
            freeze_model=self.select,
            learning_rate=self.learning_rate,
            embedding_learning_rate=self.embedding_learning_rate,
            max_train_steps=self.steps,
            train_batch_size=self.batch_size,
            gradient_accumulation_steps=self.gradient_accumulation,
            prior=self.prior,
            text_prior_weight=self.text_prior_weight,
            prior_loss_weight=self.prior_loss_weight,
            max_grad_norm=self.clip_value if self.clip_mode == "norm" else None,
            max_grad_value=self.clip_value if self.clip_mode == "value" else None,
            snr_gamma=self.snr_gamma or None,
            mixed_precision=mixed_precision,
            gradient_checkpointing=self.gradient_checkpointing,
            checkpointing_steps=self.save_every or self.steps,
            checkpoints_total_limit=1,
            validation_prompt=self._preview() or None,
            validation_steps=self.preview_every or self.steps,
            num_validation_images=1,
            report_to=report_to,
            seed=self.seed,
        )

    def _preview(self) -> str:
        """What previews show: nothing without an interval, else the prompt asked for or the first concept's caption."""
        if not self.preview_every:
            return ""
        return self.preview_prompt.strip() or self.core_concepts()[0].instance_prompt
