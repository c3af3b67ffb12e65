"""Hooks act while they are held, in copies and compiled code too, and leave nothing behind."""

import copy
import gc
import pickle

import pytest
import torch
from torch import Tensor, nn

from lib_custom_diffusion.attention import projections, recorded_attention
from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.hooks import Hooks
from lib_custom_diffusion.injection import Injection, TrainableDelta
from tiny import TinyUNet

LATENTS, TIMESTEPS, CONTEXT = torch.ones(2, 4, 2, 2), torch.tensor([10, 20]), torch.ones(2, 5, 6)


@pytest.fixture
def unet() -> TinyUNet:
    torch.manual_seed(0)
    return TinyUNet().requires_grad_(False)


@pytest.fixture
def delta(unet: TinyUNet) -> Delta:
    return Delta({key: torch.randn(layer.shape) for key, layer in projections(unet).items()})


def output(unet: nn.Module) -> Tensor:
    with torch.no_grad():
        return unet(LATENTS, TIMESTEPS, CONTEXT)


def doubled(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
    return 2 * output


def hooks_of(module: nn.Module) -> int:
    return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in module.modules())


def test_hooks_that_nothing_refers_to_any_more_are_gone() -> None:
    layer = nn.Linear(2, 2)
    hooks = Hooks([(layer, doubled)])
    assert hooks_of(layer) == 1
    del hooks
    gc.collect()
    assert hooks_of(layer) == 0


def test_a_delta_that_was_let_go_of_without_remove_is_gone(unet: TinyUNet, delta: Delta) -> None:
    bare = output(unet)
    acting: object = Injection(unet, [(delta, 1.0)])
    assert not torch.equal(output(unet), bare)
    acting = TrainableDelta(projections(unet), torch.device("cpu"))
    gc.collect()
    assert torch.equal(output(unet), bare) and hooks_of(unet) == len(delta.entries)
    del acting
    gc.collect()
    assert hooks_of(unet) == 0


def test_a_copy_of_the_unet_acts_alike_and_stops_with_the_original(unet: TinyUNet, delta: Delta) -> None:
    bare = output(unet)
    with Injection(unet, [(delta, 1.0)]) as injection:
        twin = copy.deepcopy(unet)
        assert torch.equal(output(twin), output(unet)) and not torch.equal(output(twin), bare)
    assert torch.equal(output(twin), bare)
    injection.resume()
    assert torch.equal(output(twin), bare)
    injection.remove()


def test_an_unpickled_unet_is_free_of_the_delta(unet: TinyUNet, delta: Delta) -> None:
    bare = output(unet)
    small = len(pickle.dumps(unet))
    with Injection(unet, [(delta, 1.0)]):
        pickled = pickle.dumps(unet)
        acting = output(unet)
        assert torch.equal(output(pickle.loads(pickled)), bare)
        assert torch.equal(output(unet), acting)
    assert len(pickled) < small + 4 * sum(entry.numel() for entry in delta.entries.values())


@pytest.mark.parametrize("compiled_first", [True, False])
def test_a_compiled_unet_takes_notice_of_a_delta_that_comes_and_goes(
    unet: TinyUNet, delta: Delta, compiled_first: bool
) -> None:
    bare = output(unet)
    compiled = torch.compile(unet, backend="eager")
    if compiled_first:
        assert torch.equal(output(compiled), bare)
    with Injection(unet, [(delta, 1.0)]):
        acting = output(unet)
        assert torch.allclose(output(compiled), acting, atol=1e-6) and not torch.allclose(acting, bare, atol=0.1)
    assert torch.equal(output(compiled), bare)


def test_what_is_made_of_a_compiled_unet_has_the_names_of_its_layers(unet: TinyUNet, delta: Delta) -> None:
    compiled = torch.compile(unet, backend="eager")
    assert list(projections(compiled)) == list(projections(unet))
    bare = output(compiled)
    with Injection(compiled, [(delta, 1.0)]):
        assert not torch.allclose(output(compiled), bare, atol=0.1)


def test_a_delta_is_learned_on_a_unet_that_was_compiled_before(unet: TinyUNet) -> None:
    compiled = torch.compile(unet, backend="eager")
    output(compiled)
    delta = TrainableDelta(projections(unet), torch.device("cpu"))
    compiled(LATENTS, TIMESTEPS, torch.rand(CONTEXT.shape)).pow(2).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in delta.parameters.values())
    delta.remove()


def test_attention_of_a_compiled_unet_is_recorded(unet: TinyUNet) -> None:
    compiled = torch.compile(unet, backend="eager")
    output(compiled)
    shares: list[Tensor] = []
    with recorded_attention(unet, shares):
        output(compiled)
    assert [each.shape for each in shares] == [(2, 5)] * 3
    assert hooks_of(unet) == 0
