"""The host's model made ready to be trained beside, and given back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from modules import devices, extra_networks, processing, sd_hijack, shared
from torch import nn

from ..errors import UserError
from . import reforge
from .host_backend import forget_encoded_prompts

_ATTENTION = "sdp-no-mem - scaled dot product without memory efficient attention"
"""The host's name of the one attention that is fast, exact and has gradients everywhere."""


def refuse_untrainable(model: nn.Module) -> None:
    """Raise UserError where the host, or its settings, do not allow training."""
    if reforge.is_of_forge(model):
        reforge.refuse_other_forges()
    if getattr(model, "lowvram", False):
        raise UserError("training needs the whole model on the GPU; start the WebUI without --medvram and --lowvram")
    if getattr(devices, "fp8", False):
        raise UserError("training needs weights that have gradients; switch FP8 weight off in Settings, Optimizations")
    if devices.dtype_unet == torch.float16 and devices.device.type in ("cpu", "mps"):  # torch 2.1 has no autocast there
        raise UserError("without a GPU, or on a Mac, training needs a WebUI that was started with --no-half")


def switch_networks_off() -> None:
    """Have no extra network (delta, LoRA, hypernetwork) and no encoded prompt of an earlier picture live on."""
    p = processing.StableDiffusionProcessingTxt2Img()
    forget_encoded_prompts(p)
    extra_networks.activate(p, {})
    extra_networks.deactivate(p, {})


@contextmanager
def ready_for_training(model: nn.Module) -> Iterator[None]:
    """Within the block: nothing else acts on the model, its own weights ask for no gradients, attention is fast."""
    refuse_untrainable(model)
    switch_networks_off()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    parallel = shared.parallel_processing_allowed
    if reforge.is_of_forge(model):
        reforge.load_whole(model)
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        sd_hijack.model_hijack.apply_optimizations(_ATTENTION)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
            parameter.grad = None
        shared.parallel_processing_allowed = parallel
        if reforge.is_of_forge(model):
            reforge.unload(model)
        else:
            model.first_stage_model.to(devices.device)
        sd_hijack.model_hijack.apply_optimizations()
        switch_networks_off()
