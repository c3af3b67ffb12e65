"""What a step draws, and how it is put together for the UNet."""

from __future__ import annotations

import torch

from lib_custom_diffusion.data.concepts import Example
from lib_custom_diffusion.training.batches import Sample, batches_of, draw_sample

CPU = torch.device("cpu")


def example(caption: str = "a cat", mean: float = 0.0, std: float = 0.0, size: tuple[int, int] = (8, 8)) -> Example:
    return Example(torch.full((4, *size), mean), torch.full((4, *size), std), torch.ones(1, *size), caption)


def drawn(of: Example, is_prior: bool = False, timesteps: int = 10, seed: int = 0, offset: float = 0.0) -> Sample:
    return draw_sample(of, is_prior, timesteps, torch.Generator().manual_seed(seed), offset)


def test_latents_are_drawn_from_their_posterior_apart_from_the_noise() -> None:
    assert drawn(example(mean=3.0)).latents.eq(3.0).all()
    spread = drawn(example(mean=3.0, std=0.5, size=(64, 64)))
    assert abs(spread.latents.mean() - 3.0) < 0.02 and abs(spread.latents.std() - 0.5) < 0.02
    assert abs(spread.noise.mean()) < 0.05 and abs(spread.noise.std() - 1.0) < 0.02
    together = torch.stack([spread.latents.flatten(), spread.noise.flatten()])
    assert abs(torch.corrcoef(together)[0, 1]) < 0.05


def test_every_timestep_is_drawn_and_none_beyond() -> None:
    assert {int(drawn(example(), timesteps=4, seed=seed).timestep) for seed in range(60)} == {0, 1, 2, 3}


def test_offset_noise_is_one_number_a_channel() -> None:
    plain, offset = drawn(example()), drawn(example(), offset=0.1)
    added = (offset.noise - plain.noise).flatten(1)
    assert torch.allclose(added, added[:, :1].expand_as(added), atol=1e-6) and len(set(added[:, 0].tolist())) == 4


def test_a_batch_has_instance_samples_first_and_their_own_noise_timesteps_and_masks() -> None:
    slots = [[drawn(example("cat", n), False, seed=n), drawn(example("class", -n), True, seed=n + 9)] for n in (1, 2)]
    (batch,) = batches_of(slots, lambda caption: 0, CPU)
    own, prior = ([slot[index] for slot in slots] for index in (0, 1))
    assert (batch.instances, [each.caption for each in batch.examples]) == (2, ["cat", "cat", "class", "class"])
    for row, sample in enumerate([*own, *prior]):
        assert torch.equal(batch.latents[row], sample.latents) and torch.equal(batch.noise[row], sample.noise)
        assert batch.timesteps[row] == sample.timestep and torch.equal(batch.mask[row], sample.example.mask)


def test_samples_of_other_sizes_or_longer_captions_have_batches_of_their_own() -> None:
    kinds = [example("cat"), example("cat", size=(8, 16)), example("a long cat")]
    slots = [[drawn(each)] for each in [*kinds, *reversed(kinds)]]
    batches = batches_of(slots, lambda caption: 75 * ("long" in caption), CPU)
    assert [(each.examples, each.instances) for each in batches] == [([kind] * 2, 2) for kind in kinds]
