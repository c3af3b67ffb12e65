"""The gradients of a step, beside those of diffusers' own processors for Custom Diffusion."""

from __future__ import annotations

import torch
from diffusers.models.attention_processor import CustomDiffusionAttnProcessor
from torch.nn import functional as F

from lib_custom_diffusion.attention import projections
from lib_custom_diffusion.formats.names import diffusers_path
from lib_custom_diffusion.injection import TrainableDelta
from tiny_pipeline import WIDTH, stable_diffusion_2

CONTEXT = torch.randn(2, 7, WIDTH, generator=torch.Generator().manual_seed(1))
LATENTS = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
TARGET = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))


def loss(unet: torch.nn.Module, text: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(unet(LATENTS, torch.tensor([300, 800]), encoder_hidden_states=text).sample, TARGET)


def test_keys_values_and_words_get_the_gradients_that_diffusers_processors_give() -> None:
    unet = stable_diffusion_2().unet.requires_grad_(False)
    ours_text = CONTEXT.clone().requires_grad_()
    delta = TrainableDelta(projections(unet), torch.device("cpu"))
    loss(unet, ours_text).backward()
    delta.remove()

    weights, processors = unet.state_dict(), {}
    for name in unet.attn_processors:
        layer = name.removesuffix(".processor")
        cross = layer.endswith("attn2")
        processors[name] = CustomDiffusionAttnProcessor(
            train_kv=cross, train_q_out=False, hidden_size=unet.get_submodule(layer).to_q.in_features,
            cross_attention_dim=WIDTH if cross else None,
        )  # fmt: skip
        if cross:
            processors[name].load_state_dict(
                {f"to_{role}_custom_diffusion.weight": weights[f"{layer}.to_{role}.weight"] for role in "kv"}
            )
    unet.set_attn_processor(processors)
    theirs_text = CONTEXT.clone().requires_grad_()
    loss(unet, theirs_text).backward()

    for key, parameter in delta.parameters.items():
        layer, _, role = diffusers_path(key, resnets=1).rpartition(".")
        theirs = unet.attn_processors[f"{layer}.processor"].get_parameter(f"{role}_custom_diffusion.weight").grad
        assert (parameter.grad - theirs).norm() < 1e-5 * theirs.norm(), key
    # Beyond the start token, whose features no word can move, the text gets the same gradients.
    difference = ours_text.grad[:, 1:] - theirs_text.grad[:, 1:]
    assert difference.norm() < 1e-5 * theirs_text.grad[:, 1:].norm()
