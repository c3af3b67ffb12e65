"""The objective's formulas, with numbers worked by hand."""

import torch

from lib_custom_diffusion.training.objective import masked_errors, prior_preservation_loss, step_generator


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


def test_however_a_batch_is_divided_its_parts_sum_up_to_the_whole() -> None:
    """Four samples, of which the first alone has a regularization sample: 1 + 3 + 5 + 7, and 10 for that."""
    whole, _ = prior_preservation_loss(torch.tensor([1.0, 3.0, 5.0, 7.0, 10.0]), 4, 0.5)
    first, _ = prior_preservation_loss(torch.tensor([1.0, 3.0, 10.0]), 2, 0.5)
    second, _ = prior_preservation_loss(torch.tensor([5.0, 7.0]), 2, 0.5)
    assert whole.item() == (first.item() + second.item()) / 2 == 4 + 0.5 * 10 / 4


def test_random_numbers_of_a_step_depend_on_seed_and_step_alone() -> None:
    def draw(seed: int, step: int) -> list[float]:
        return torch.rand(3, generator=step_generator(seed, step)).tolist()

    assert draw(1, 5) == draw(1, 5)
    assert len({tuple(draw(seed, step)) for seed in range(3) for step in range(3)}) == 9
