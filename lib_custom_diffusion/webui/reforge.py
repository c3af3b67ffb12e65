"""reForge's model, which is ComfyUI's behind the names of the WebUI's: brought to the GPU whole, and asked directly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..backend import Conditioning
from ..errors import UserError


def is_of_forge(model: Any) -> bool:
    """Whether a loaded model is that of Forge, or of a program made of it, such as reForge."""
    return hasattr(model, "forge_objects")


def refuse_other_forges() -> None:
    """Raise UserError in Forge itself, and in what was made of it but reForge."""
    try:
        import ldm_patched.modules.patcher_extension  # noqa: F401 - which Forge never had in its ldm_patched
    except ImportError:
        raise UserError(
            "Forge keeps its models in a form that cannot be trained here; train in AUTOMATIC1111's WebUI, in reForge"
            " or with `python -m lib_custom_diffusion ui`, and use the delta here"
        ) from None


def load_whole(model: Any) -> None:
    """Have the UNet, the text encoders and the VAE on the GPU, without the LoRAs of an earlier picture.

    Where the GPU's memory is short, reForge leaves a part of a model in the computer's, and it writes LoRAs into the
    weights; both end when it is asked for the plain model in full. What it loads while it draws lets no gradients
    through (PyTorch's inference mode), and is replaced by copies that do.
    """
    from ldm_patched.modules import model_management

    plain = model.forge_objects_original
    model.forge_objects = plain.shallow_copy()
    parts = [plain.unet, plain.clip.patcher, plain.vae.patcher]
    model_management.load_models_gpu(parts, force_full_load=True)
    for part in parts:
        _let_gradients_through(part.model)


def unload(model: Any) -> None:
    """Take the models off the GPU; reForge brings there what it needs for the next picture."""
    from ldm_patched.modules import model_management

    model_management.unload_all_models()
    patcher = model.forge_objects_original.vae.patcher
    patcher.model.to(patcher.offload_device)  # where `HostBackend.autoencoder_aside` moved it, reForge knows nothing


def _let_gradients_through(module: nn.Module) -> None:
    for each in module.modules():
        for name, parameter in each._parameters.items():
            if parameter is not None and parameter.is_inference():
                each._parameters[name] = nn.Parameter(parameter.clone(), requires_grad=False)
        for name, buffer in each._buffers.items():
            if buffer is not None and buffer.is_inference():
                each._buffers[name] = buffer.clone()


def predict(model: Any, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    """What the UNet makes of latents, in float32. reForge's own way to ask it is by sigmas, for samplers."""
    unet = model.forge_objects_original.unet.model
    dtype: torch.dtype = unet.manual_cast_dtype or unet.get_dtype()
    vector = None if conditioning.vector is None else conditioning.vector.to(dtype)
    made = unet.diffusion_model(
        noisy_latents.to(dtype), timesteps, context=conditioning.crossattn.to(dtype), y=vector, transformer_options={}
    )
    return made.float()
