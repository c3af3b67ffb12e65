"""What a UNet is asked to say of a noisy picture: how pictures are noised, what is right, and what a timestep weighs.

One object a kind of model, as in k-diffusion's `external.py`, so that another kind is another class here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

from torch import Tensor

from ..backend import Backend


class Parametrisation(Protocol):
    """What training asks of a kind of model. Latents and noise are (batch, …), timesteps integers (batch,)."""

    @property
    def timesteps(self) -> int:
        """How many there are; they count from 0, the least noise."""
        ...

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The noised latents that the UNet is shown."""
        ...

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What it should say of them."""
        ...

    def min_snr_weights(self, timesteps: Tensor, gamma: float) -> Tensor:
        """min-SNR-γ weights (batch,) of its squared error (arXiv 2303.09556, §3.4)."""
        ...


class _Discrete(ABC):
    """A noise schedule of discrete steps, ᾱ (timesteps,): DDPM (arXiv 2006.11239)."""

    def __init__(self, alphas_cumprod: Tensor) -> None:
        self.alphas_cumprod = alphas_cumprod

    @property
    def timesteps(self) -> int:
        return len(self.alphas_cumprod)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε: DDPM, eq. 4."""
        signal, rest = self._scales(timesteps, latents)
        return signal * latents + rest * noise

    def min_snr_weights(self, timesteps: Tensor, gamma: float) -> Tensor:
        """min(SNR, γ) for an error of x_0, with SNR = ᾱ_t / (1−ᾱ_t)."""
        signal = self.alphas_cumprod[timesteps]
        snr = signal / (1 - signal)
        return snr.clamp(max=gamma) / self._over_error_of_latents(snr)

    @abstractmethod
    def _over_error_of_latents(self, snr: Tensor) -> Tensor:
        """A squared error of what the UNet says, over that of the x_0 which follows from it."""

    def _scales(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ_t and √(1−ᾱ_t), to multiply latents by."""
        signal = self.alphas_cumprod[timesteps].reshape(-1, *[1] * (like.ndim - 1)).to(like)
        return signal.sqrt(), (1 - signal).sqrt()


class Epsilon(_Discrete):
    """The UNet says the noise: Stable Diffusion 1, SDXL, most of Stable Diffusion 2."""

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """ε."""
        return noise

    def _over_error_of_latents(self, snr: Tensor) -> Tensor:
        return snr


class Velocity(_Discrete):
    """The UNet says v: Stable Diffusion 2.1 at 768 pixels (progressive distillation, arXiv 2202.00512, appendix D)."""

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """v = √ᾱ_t ε − √(1−ᾱ_t) x_0."""
        signal, rest = self._scales(timesteps, latents)
        return signal * noise - rest * latents

    def _over_error_of_latents(self, snr: Tensor) -> Tensor:
        return snr + 1


_KINDS: dict[str, type[Epsilon | Velocity]] = {"epsilon": Epsilon, "v_prediction": Velocity}


def parametrisation(backend: Backend) -> Parametrisation:
    """That of a model, where its UNet computes. Raises ValueError for a prediction type that is not known."""
    if backend.prediction_type not in _KINDS:
        raise ValueError(f"prediction type {backend.prediction_type!r} is none of {', '.join(_KINDS)}")
    return _KINDS[backend.prediction_type](backend.alphas_cumprod.to(backend.device))
