"""The denoising objective: noise, target, masks, weighting, prior preservation."""

from __future__ import annotations

import torch
from torch import Tensor


def _broadcast(per_sample: Tensor, like: Tensor) -> Tensor:
    return per_sample.reshape(-1, *[1] * (like.ndim - 1)).to(like)


def add_noise(latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε for latents and noise (batch, …) at timesteps (batch,): DDPM, eq. 4."""
    signal = _broadcast(alphas_cumprod[timesteps], latents)
    return signal.sqrt() * latents + (1 - signal).sqrt() * noise


def prediction_target(
    prediction_type: str, latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor
) -> Tensor:
    """What the UNet should say: ε, or v = √ᾱ_t ε − √(1−ᾱ_t) x_0 (progressive distillation, appendix D).

    Raises ValueError for another prediction type.
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        signal = _broadcast(alphas_cumprod[timesteps], latents)
        return signal.sqrt() * noise - (1 - signal).sqrt() * latents
    raise ValueError(f"prediction type {prediction_type!r} is neither epsilon nor v_prediction")


def min_snr_weights(prediction_type: str, timesteps: Tensor, alphas_cumprod: Tensor, gamma: float) -> Tensor:
    """min-SNR-γ weights (batch,) of the squared error (arXiv 2303.09556, §3.4).

    min(SNR, γ) / SNR for ε-prediction, min(SNR, γ) / (SNR + 1) for v-prediction, SNR = ᾱ_t / (1−ᾱ_t).
    """
    signal = alphas_cumprod[timesteps]
    snr = signal / (1 - signal)
    return snr.clamp(max=gamma) / (snr + 1 if prediction_type == "v_prediction" else snr)


def masked_errors(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of each sample (batch,) over where its mask (batch, 1, h, w) weighs.

    A sample's error does not depend on how large its mask is. (The diffusers script divides the sum over all channels
    by the mask's area alone, which weighs masked samples by the number of channels, 4, against the prior's.)
    """
    errors = (prediction.float() - target.float()).pow(2).mean(dim=1, keepdim=True)
    return (errors * mask).sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3))


def prior_preservation_loss(
    errors: Tensor, instances: int, weight: float, priors: float | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Mean error of the concept's samples plus the weighted mean of the regularization ones (paper, §3.1).

    errors (batch,) has the concept's `instances` samples first. Of one of n equal parts of a batch, `priors` is the
    number of regularization samples in the whole batch divided by n: the mean loss of the parts is then that of the
    whole batch, however its regularization samples fall into them. By default the batch is one part.

    Returns the loss and its two parts, detached; without regularization samples the second is 0.
    """
    count = len(errors) - instances if priors is None else priors
    instance, prior = errors[:instances].mean(), errors[instances:].sum() / (count or 1)
    return instance + weight * prior, (instance.detach(), prior.detach())


def step_generator(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step, told by seed and step alone.

    So a resumed run draws what an uninterrupted one would have drawn, and every process of a distributed run draws the
    whole batch's and takes its share.
    """
    return torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + step + 1) % 2**63)
