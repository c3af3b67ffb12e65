"""What each step draws: samples of the examples, and the batches that the UNet takes them in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.concepts import ConceptExamples, Example
from . import parallel
from .config import TrainingConfig
from .example_order import ExampleOrder
from .objective import step_generator


@dataclass(frozen=True)
class Batch:
    """Samples of one size, for one pass of the UNet: instance samples first, then regularization samples."""

    latents: Tensor  # (batch, channels, h, w)
    noise: Tensor  # the same
    timesteps: Tensor  # (batch,)
    mask: Tensor  # (batch, 1, h, w)
    examples: list[Example]
    instances: int


@dataclass(frozen=True)
class Sample:
    """An example as one step sees it: its latents, the noise that is put to them, and how much, on the CPU."""

    example: Example
    is_prior: bool
    latents: Tensor  # (channels, h, w)
    noise: Tensor  # the same
    timestep: Tensor  # (), an integer


class Drawing:
    """What the steps of a training draw, told by its seed and a step alone.

    The whole batch over all processes and accumulation steps is drawn alike everywhere and then divided, so how it is
    divided does not change what is learned. Concepts take turns.

    concepts:  the examples of each.
    timesteps: how many the model has.
    """

    def __init__(self, concepts: Sequence[ConceptExamples], config: TrainingConfig, timesteps: int) -> None:
        self.config, self.timesteps = config, timesteps
        self.orders = [
            (ExampleOrder(each.instance, config.seed), ExampleOrder(each.prior, config.seed) if each.prior else None)
            for each in concepts
        ]

    def micro_batches(self, step: int) -> list[list[list[Sample]]]:
        """Those of a step for this process, each a list of slots: an instance sample, and its regularization sample."""
        config, size, world = self.config, self.config.train_batch_size, parallel.world_size()
        generator = step_generator(config.seed, step)
        whole = size * world * config.gradient_accumulation_steps
        begin = step * whole
        slots = [self.slot(begin + index, begin, generator) for index in range(whole)]
        first = [micro * size * world + parallel.rank() * size for micro in range(config.gradient_accumulation_steps)]
        return [slots[start : start + size] for start in first]

    def slot(self, position: int, begin: int, generator: torch.Generator) -> list[Sample]:
        """The instance sample at a position of the training, and its regularization sample if the concept has any.

        begin: the first position of the step.
        """
        turn, number = divmod(position, len(self.orders))
        first = -((number - begin) // len(self.orders))  # the concept's first turn in this step
        instance, prior = self.orders[number]
        examples = [instance.take(turn, first)]
        if prior is not None:
            examples.append(prior.take_like(examples[0], turn, first))
        return [
            draw_sample(example, is_prior, self.timesteps, generator, self.config.noise_offset)
            for example, is_prior in zip(examples, (False, True))
        ]


def draw_sample(
    example: Example, is_prior: bool, timesteps: int, generator: torch.Generator, noise_offset: float
) -> Sample:
    """An example with latents drawn from their posterior, noise and a timestep.

    timesteps:    how many the model has; the one that is drawn lies from 0 to one less.
    noise_offset: how much noise is added that is one number a channel.
    """
    latents = example.mean + example.std * torch.randn(example.mean.shape, generator=generator)
    noise = torch.randn(example.mean.shape, generator=generator)
    if noise_offset:
        noise += noise_offset * torch.randn(len(noise), 1, 1, generator=generator)
    return Sample(example, is_prior, latents, noise, torch.randint(timesteps, (), generator=generator))


def batches_of(
    slots: Sequence[Sequence[Sample]], more_positions: Callable[[str], int], device: torch.device
) -> list[Batch]:
    """The samples of some slots in batches, since one pass of the UNet takes latents of one size, texts of one length.

    more_positions: how many positions a caption has beyond those of a short one.
    """
    by_size: dict[tuple[torch.Size, int], list[Sample]] = {}
    for sample in sorted((sample for slot in slots for sample in slot), key=lambda sample: sample.is_prior):
        by_size.setdefault((sample.latents.shape, more_positions(sample.example.caption)), []).append(sample)
    return [_batch(samples, device) for samples in by_size.values()]


def _batch(samples: Sequence[Sample], device: torch.device) -> Batch:
    def stacked(tensors: list[Tensor]) -> Tensor:
        return torch.stack(tensors).to(device, non_blocking=True)

    return Batch(
        stacked([sample.latents for sample in samples]),
        stacked([sample.noise for sample in samples]),
        stacked([sample.timestep for sample in samples]),
        stacked([sample.example.mask for sample in samples]),
        [sample.example for sample in samples],
        sum(not sample.is_prior for sample in samples),
    )
