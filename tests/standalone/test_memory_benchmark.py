"""The count of memory is what the allocator gives, and goes through on any machine."""

from collections.abc import Callable
from types import ModuleType

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint


def test_a_tensor_counts_once_from_its_making_until_nothing_refers_to_it(
    benchmark_script: Callable[[str], ModuleType],
) -> None:
    with benchmark_script("memory").Ledger() as ledger:
        first = torch.zeros(1000)
        seen = first.view(10, 100)
        assert (ledger.alive, ledger.most) == (4000, 4000)
        second = first.half() + 1  # two tensors of 2,000 bytes, of which one stays
        assert (ledger.alive, ledger.most) == (6000, 8000)
        del first, second
        assert (ledger.alive, ledger.most) == (4000, 8000)  # a view holds the memory
        del seen
        ledger.restart()
        assert (ledger.alive, ledger.most) == (0, 0)


def test_the_count_without_numbers_is_what_the_allocator_gives_with_them(
    benchmark_script: Callable[[str], ModuleType],
) -> None:
    module = benchmark_script("memory")

    def step(layers: nn.Sequential) -> None:
        hidden = torch.ones(64, 32)
        for layer in layers:
            hidden = checkpoint(layer, hidden, use_reentrant=False)
        hidden.square().mean().backward()

    def made() -> nn.Sequential:
        return nn.Sequential(*[nn.Sequential(nn.Linear(32, 256), nn.SiLU(), nn.Linear(256, 32)) for _ in range(3)])

    layers = made()
    step(layers)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step(layers)
    with torch.device("meta"):
        counted = made()
    with module.without_numbers(), module.Ledger() as ledger:
        module.take_memory(counted)
        counted.requires_grad_(True)
        step(counted)
        ledger.restart()
        before = ledger.alive
        step(counted)
    given = module.most_given(seen)
    assert given > 100_000
    assert 0.9 * given < ledger.most - before <= given  # what an operation takes for itself is not counted
