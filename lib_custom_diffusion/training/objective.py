"""The denoising objective beside what the model is asked for (`parametrisation`): masks and prior preservation."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_errors(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of each sample (batch,) over where its mask (batch, 1, h, w) weighs.

    A sample's error does not depend on how large its mask is. (The diffusers script divides the sum over all channels
    by the mask's area alone, which weighs masked samples by the number of channels, 4, against the prior's.)
    """
    errors = (prediction.float() - target.float()).pow(2).mean(dim=1, keepdim=True)
    return (errors * mask).sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3))


def prior_preservation_loss(errors: Tensor, instances: int, weight: float) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Mean over the concept's samples of their error plus the weighted one of their regularization samples (paper,
    §3.1).

    errors (batch,) has the concept's `instances` samples first; not all of them need a regularization sample, as some
    concepts may do without. What lacks one counts as 0 in that mean, so the sum over a divided batch is that over the
    whole. Returns the loss and its two parts, detached, the second unweighted.
    """
    instance, prior = errors[:instances].mean(), errors[instances:].sum() / instances
    return instance + weight * prior, (instance.detach(), prior.detach())


def step_generator(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step, told by seed and step alone.

    So a resumed run draws what an uninterrupted one would have drawn, and every process of a distributed run draws the
    whole batch's and takes its share.
    """
    return torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + step + 1) % 2**63)
