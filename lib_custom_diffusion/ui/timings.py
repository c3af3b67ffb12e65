"""How long trainings took on this machine, and so how long the next one will take."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..backend import Backend
from ..data.captions import class_captions
from ..data.concepts import Concept, PictureSettings
from ..data.pictures import find_pictures
from ..storage import write_atomically
from ..training.config import TrainingConfig

_KEPT = 50


@dataclass(frozen=True)
class Circumstances:
    """What changes the time of a step otherwise than in proportion to the number and the size of its pictures."""

    device: str
    architecture: str
    mixed_precision: str
    freeze_model: str
    gradient_checkpointing: bool

    @classmethod
    def of(cls, backend: Backend, config: TrainingConfig) -> Circumstances:
        """Those of a training on this machine."""
        names = config.mixed_precision, config.freeze_model, config.gradient_checkpointing
        return cls(_device_name(backend.device), backend.architecture, *names)


@dataclass(frozen=True)
class Amounts:
    """What a training has to do: pictures to encode before it, steps, and pictures in each of these.

    megapixels: of one picture.
    """

    encoded: int
    steps: int
    pictures_per_step: int
    megapixels: float

    @classmethod
    def of(
        cls, concepts: Sequence[Concept], backend: Backend, pictures: PictureSettings, config: TrainingConfig
    ) -> Amounts:
        """Those of a training to come. Raises UserError for folders that are not there or empty."""
        own = sum(len(find_pictures(concept.instance_data_dir)) for concept in concepts)
        prior = [
            len(class_captions(concept.class_data_dir, concept.class_prompt)[: pictures.num_class_images or None])
            for concept in concepts
            if concept.class_data_dir
        ]
        batch = config.train_batch_size * config.gradient_accumulation_steps
        return cls(
            own * pictures.drawn_variants + sum(prior),
            config.max_train_steps,
            round(batch * (1 + len(prior) / len(concepts))),
            (pictures.resolution or backend.resolution) ** 2 / 1e6,
        )


@dataclass(frozen=True)
class Timing:
    """Seconds that a megapixel took to be encoded, and in a step, on a day (ISO 8601); memory: how much it took."""

    circumstances: Circumstances
    encoding: float
    training: float
    day: str
    memory: str = ""

    @classmethod
    def measured(
        cls, circumstances: Circumstances, amounts: Amounts, encoding_seconds: float, seconds_per_step: float,
        memory: str = "",
    ) -> Timing:  # fmt: skip
        """From what a training of these amounts took."""
        return cls(
            circumstances,
            encoding_seconds / (amounts.encoded * amounts.megapixels),
            seconds_per_step / (amounts.pictures_per_step * amounts.megapixels),
            datetime.date.today().isoformat(),
            memory,
        )

    def seconds(self, amounts: Amounts) -> tuple[float, float]:
        """What the encoding and all steps of a training will take, in proportion to its pictures' number and size."""
        per_step = self.training * amounts.pictures_per_step * amounts.megapixels
        return self.encoding * amounts.encoded * amounts.megapixels, per_step * amounts.steps


def read_timings(path: Path) -> list[Timing]:
    """What was measured on this machine, the newest last; nothing if the file is not there or damaged."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return [Timing(**{**entry, "circumstances": Circumstances(**entry["circumstances"])}) for entry in entries]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return []


def keep_timing(path: Path, timing: Timing) -> None:
    """Add a measurement to the file, for `read_timings`. Raises UserError if it cannot be written."""
    others = [other for other in read_timings(path) if other.circumstances != timing.circumstances]
    entries = [asdict(each) for each in [*others, timing][-_KEPT:]]
    write_atomically(path, (json.dumps(entries, indent=1) + "\n").encode())


def comparable_timing(path: Path, circumstances: Circumstances) -> Timing | None:
    """The last measurement in the same circumstances."""
    return next((each for each in reversed(read_timings(path)) if each.circumstances == circumstances), None)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
