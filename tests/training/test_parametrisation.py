"""What the model is asked for, with numbers worked by hand."""

import pytest
import torch

from lib_custom_diffusion.backend import PREDICTION_TYPES
from lib_custom_diffusion.training.parametrisation import Epsilon, Velocity, parametrisation
from tiny import TinyBackend

ALPHAS = torch.tensor([0.64, 0.36])  # √ᾱ = 0.8, 0.6 and √(1−ᾱ) = 0.6, 0.8
ONE = torch.ones(1, 1, 1, 1)


@pytest.mark.parametrize("kind", [Epsilon, Velocity])
def test_noisy_latents_keep_root_alpha_of_the_signal(kind: type[Epsilon]) -> None:
    noisy = kind(ALPHAS).add_noise(torch.full((2, 1, 1, 1), 10.0), torch.ones(2, 1, 1, 1), torch.tensor([0, 1]))
    assert noisy.flatten().tolist() == pytest.approx([8.6, 6.8])


def test_targets() -> None:
    latents, noise, timesteps = 10 * ONE, 1 * ONE, torch.tensor([0])
    assert Epsilon(ALPHAS).target(latents, noise, timesteps) is noise
    assert Velocity(ALPHAS).target(latents, noise, timesteps).item() == pytest.approx(0.8 * 1 - 0.6 * 10)


def test_min_snr_weights() -> None:
    """min(SNR, 5) / SNR, and / (SNR + 1) for v, at an SNR of 10 and 1."""
    alphas, timesteps = torch.tensor([10 / 11, 0.5]), torch.tensor([0, 1])
    assert Epsilon(alphas).min_snr_weights(timesteps, 5.0).tolist() == pytest.approx([0.5, 1.0])
    assert Velocity(alphas).min_snr_weights(timesteps, 5.0).tolist() == pytest.approx([5 / 11, 0.5])


def test_there_is_one_for_all_that_a_backend_may_say() -> None:
    backend = TinyBackend()
    for backend.prediction_type in PREDICTION_TYPES:
        parametrisation(backend)


def test_a_model_says_which_it_has_and_one_that_is_not_known_is_refused() -> None:
    backend = TinyBackend()
    assert isinstance(parametrisation(backend), Epsilon) and parametrisation(backend).timesteps == 100
    backend.prediction_type = "v_prediction"
    assert isinstance(parametrisation(backend), Velocity)
    backend.prediction_type = "sample"
    with pytest.raises(ValueError, match="'sample' is none of epsilon, v_prediction"):
        parametrisation(backend)
