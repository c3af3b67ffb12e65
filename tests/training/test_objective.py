"""The objective's formulas, with numbers worked by hand."""

import pytest
import torch

from lib_custom_diffusion.training.objective import (
    add_noise,
    masked_errors,
    min_snr_weights,
    prediction_target,
    prior_preservation_loss,
    step_generator,
)

ALPHAS = torch.tensor([0.64, 0.36])  # √ᾱ = 0.8, 0.6 and √(1−ᾱ) = 0.6, 0.8
ONE = torch.ones(1, 1, 1, 1)


def test_noisy_latents_keep_root_alpha_of_the_signal() -> None:
    noisy = add_noise(torch.full((2, 1, 1, 1), 10.0), torch.ones(2, 1, 1, 1), torch.tensor([0, 1]), ALPHAS)
    assert noisy.flatten().tolist() == pytest.approx([8.6, 6.8])


def test_targets() -> None:
    latents, noise, timesteps = 10 * ONE, 1 * ONE, torch.tensor([0])
    assert prediction_target("epsilon", latents, noise, timesteps, ALPHAS) is noise
    velocity = prediction_target("v_prediction", latents, noise, timesteps, ALPHAS)
    assert velocity.item() == pytest.approx(0.8 * 1 - 0.6 * 10)
    with pytest.raises(ValueError, match="sample"):
        prediction_target("sample", latents, noise, timesteps, ALPHAS)


def test_min_snr_weights() -> None:
    alphas = torch.tensor([10 / 11, 0.5])  # SNR 10 and 1
    timesteps = torch.tensor([0, 1])
    assert min_snr_weights("epsilon", timesteps, alphas, 5.0).tolist() == pytest.approx([0.5, 1.0])
    assert min_snr_weights("v_prediction", timesteps, alphas, 5.0).tolist() == pytest.approx([5 / 11, 0.5])


def test_masked_error_is_the_mean_inside_the_mask_whatever_its_size() -> None:
    prediction = torch.zeros(2, 4, 2, 2)
    target = torch.ones(2, 4, 2, 2) * torch.tensor([[3.0, 100.0], [100.0, 100.0]])
    mask = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]], [[[1.0, 0.0], [0.0, 1.0]]]])
    assert masked_errors(prediction, target, mask).tolist() == [9.0, (9 + 10_000) / 2]


def test_prior_loss_is_weighed_against_the_mean_of_the_concepts_samples() -> None:
    errors = torch.tensor([1.0, 3.0, 10.0, 20.0])
    loss, (instance, prior) = prior_preservation_loss(errors, 2, 0.5)
    assert (loss.item(), instance.item(), prior.item()) == (2 + 0.5 * 15, 2, 15)


def test_without_regularization_samples_only_the_concept_counts() -> None:
    loss, (_, prior) = prior_preservation_loss(torch.tensor([1.0, 3.0]), 2, 1.0)
    assert (loss.item(), prior.item()) == (2, 0)


def test_parts_of_a_batch_have_its_loss_however_regularization_samples_fall_into_them() -> None:
    whole, _ = prior_preservation_loss(torch.tensor([1.0, 3.0, 5.0, 7.0, 10.0, 20.0]), 4, 0.5)
    assert whole.item() == 4 + 0.5 * 15
    for first, second in (([1, 3, 10, 20], [5, 7]), ([1, 3, 10], [5, 7, 20])):
        parts = [
            prior_preservation_loss(torch.tensor(part, dtype=torch.float32), 2, 0.5, 1.0) for part in (first, second)
        ]
        assert sum(loss.item() for loss, _ in parts) / 2 == whole.item()
        assert sum(prior.item() for _, (_, prior) in parts) / 2 == 15


def test_random_numbers_of_a_step_depend_on_seed_and_step_alone() -> None:
    def draw(seed: int, step: int) -> list[float]:
        return torch.rand(3, generator=step_generator(seed, step)).tolist()

    assert draw(1, 5) == draw(1, 5)
    assert len({tuple(draw(seed, step)) for seed in range(3) for step in range(3)}) == 9
