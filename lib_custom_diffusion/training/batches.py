"""Samples of a step, and the batches that the UNet takes them in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.concepts import Example


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
    """An example as one step sees it: its latents, the noise that is put to them, and how much."""

    example: Example
    is_prior: bool
    latents: Tensor
    noise: Tensor
    timestep: Tensor


def draw_sample(
    example: Example, is_prior: bool, timesteps: int, generator: torch.Generator, noise_offset: float
) -> Sample:
    """An example with its posterior sampled, its noise and its timestep."""
    latents = example.mean + example.std * torch.randn(example.mean.shape, generator=generator)
    noise = torch.randn(example.mean.shape, generator=generator)
    if noise_offset:
        noise += noise_offset * torch.randn(len(noise), 1, 1, generator=generator)
    return Sample(example, is_prior, latents, noise, torch.randint(timesteps, (), generator=generator))


def batches_of(
    slots: Sequence[Sequence[Sample]], more_positions: Callable[[str], int], device: torch.device
) -> list[Batch]:
    """The samples by size and length of their captions, as a pass of the UNet takes one of either only."""
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
