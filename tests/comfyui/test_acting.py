"""A delta on a model of ComfyUI adds strength · Δ to its weights, and nothing stays."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from lib_custom_diffusion.algebra.factors import QuantizedFactors
from lib_custom_diffusion.attention import projections
from lib_custom_diffusion.comfyui.acting import with_delta
from lib_custom_diffusion.delta import Delta, Entry, Factors
from lib_custom_diffusion.errors import UserError


def dense(out: int, width: int) -> Entry:
    return torch.randn(out, width).half() / 8


def factors(out: int, width: int) -> Entry:
    return Factors(torch.randn(out, 2).half() / 8, torch.randn(2, width).half())


def quantized(out: int, width: int) -> Entry:
    us, vh = torch.randn(out, 2).sign() / 4, torch.randn(2, width).sign() / 4
    bits = torch.ones(2, dtype=torch.uint8)
    return QuantizedFactors.of_levels(us, vh, torch.tensor([[0.5, 1.0]]), bits, bits)


def delta_of(model, kind) -> Delta:
    torch.manual_seed(1)
    layers = projections(model.model.diffusion_model)
    return Delta({key: kind(*layer.shape) for key, layer in layers.items()})


def prompt_and_latents(model) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    width = next(iter(projections(model.model.diffusion_model).values())).shape[1]
    return torch.randn(1, 4, 16, 16), torch.randn(1, 12, width)


def by_hand(model, change: dict[str, Tensor]) -> nn.Module:
    """A copy of the UNet whose weights have the changes added."""
    unet = copy.deepcopy(model.model.diffusion_model)
    for key, layer in projections(unet).items():
        layer.module.weight.data += change[key]
    return unet


def step_of(unet: nn.Module, latents: Tensor, context: Tensor) -> Tensor:
    with torch.no_grad():
        return unet(latents, torch.tensor([50.0]), context)


@pytest.mark.parametrize("kind", [dense, factors, quantized])
def test_every_kind_of_delta_acts_with_its_strength(model, step, kind) -> None:
    delta = delta_of(model, kind)
    matrices = {
        key: entry.dense() if isinstance(entry, Factors) else entry.float() for key, entry in delta.entries.items()
    }
    latents, context = prompt_and_latents(model)
    plain = step(model, latents, context)
    expected = step_of(by_hand(model, {key: 0.75 * matrix for key, matrix in matrices.items()}), latents, context)
    acting = step(with_delta(model, delta, 0.75), latents, context)
    assert (expected - plain).abs().max() > 1e-2
    torch.testing.assert_close(acting, expected, atol=1e-5, rtol=1e-5)


def test_the_model_given_and_its_weights_stay_as_they_were(model, step) -> None:
    latents, context = prompt_and_latents(model)
    plain = step(model, latents, context)
    before = copy.deepcopy(model.model.state_dict())
    step(with_delta(model, delta_of(model, dense), 1.0), latents, context)
    assert torch.equal(step(model, latents, context), plain)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.model.state_dict().items())


def test_deltas_of_several_nodes_add_up(model, step) -> None:
    one, other = delta_of(model, dense), delta_of(model, factors)
    latents, context = prompt_and_latents(model)
    sums = {key: one.entries[key].float() - 0.5 * other.entries[key].dense() for key in one.entries}
    both = with_delta(with_delta(model, one, 1.0), other, -0.5)
    expected = step_of(by_hand(model, sums), latents, context)
    torch.testing.assert_close(step(both, latents, context), expected, atol=1e-5, rtol=1e-5)


def test_a_delta_of_another_model_is_refused(model) -> None:
    key = next(iter(projections(model.model.diffusion_model)))
    with pytest.raises(UserError, match=r"does not fit this model.* in the delta"):
        with_delta(model, Delta({key: torch.zeros(3, 5)}), 1.0)
    with pytest.raises(UserError, match="which has no layer"):
        with_delta(model, Delta({key.replace(".1.1.", ".99.1."): torch.zeros(3, 5)}), 1.0)


def test_a_layer_that_the_host_cannot_patch_is_refused(model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(model), "add_patches", lambda self, patches, strength: list(patches)[1:])
    with pytest.raises(UserError, match="ComfyUI cannot patch its layer diffusion_model"):
        with_delta(model, delta_of(model, dense), 1.0)
