"""The VAE of a checkpoint, or one by itself, of which the shapes tell how many levels and channels it has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from ..errors import UserError
from .checkpoint_parts import filled, part_of, whole
from .layout import VAE_PREFIX, Tensors, count, vae_name
from .weights import read_weights

_OLD_VAE_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def autoencoder_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The configuration of an AutoencoderKL, by names and shapes under LDM's names or diffusers', without a prefix."""
    ldm = count(tensors, "decoder.up.")
    levels = ldm or count(tensors, "decoder.up_blocks.")
    # LDM counts the decoder's levels from the finest, diffusers in the order in which they run.
    blocks = [
        f"decoder.up.{level}.block." if ldm else f"decoder.up_blocks.{levels - 1 - level}.resnets."
        for level in range(levels)
    ]
    return {
        "in_channels": tensors["encoder.conv_in.weight"].shape[1],
        "out_channels": tensors["decoder.conv_out.weight"].shape[0],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": [tensors[f"{block}0.conv1.weight"].shape[0] for block in blocks],
        "layers_per_block": count(tensors, blocks[0]) - 1,
        "latent_channels": tensors["decoder.conv_in.weight"].shape[1],
    }


def load_vae(path: Path, scale: float) -> AutoencoderKL:
    """A VAE by itself: a file in either layout, or a diffusers folder. Latents keep the model's own `scale`.

    Raises UserError if it is none, is incomplete, or belongs to models of other latents.
    """
    path = vae_file(path)
    tensors = read_weights(path).tensors
    return load_autoencoder(path, part_of(tensors, VAE_PREFIX) or tensors, scale)


def vae_file(path: Path) -> Path:
    """The file of a VAE that is named by a file or folder. Raises UserError if there is none."""
    if path.is_dir():
        inside = [path / "vae"] if (path / "vae").is_dir() else [path]
        found = sorted(file for folder in inside for kind in ("*.safetensors", "*.bin") for file in folder.glob(kind))
        if not found:
            raise UserError(f"{path} holds no VAE: it has no .safetensors and no .bin file")
        found = [file for file in found if file.name.startswith("diffusion_pytorch_model")] or found
        if len(found) > 1 and not found[0].name.startswith("diffusion_pytorch_model"):
            raise UserError(f"{path} holds {len(found)} files; give the one that is the VAE, such as {found[0].name}")
        path = found[-1]
    if not path.is_file():
        raise UserError(f"there is no VAE {path}")
    return path


def load_autoencoder(path: Path, tensors: Tensors, scale: float) -> AutoencoderKL:
    """A VAE of tensors under LDM's or diffusers' names. Raises as `load_vae`."""
    if "decoder.conv_in.weight" not in tensors:
        raise UserError(f"{path} has no VAE; give one that belongs to the model by --vae FILE")
    with whole(path, "VAE"):
        config = autoencoder_config(tensors)
    if config["latent_channels"] != 4:
        raise UserError(
            f"{path} holds a VAE of another kind of model: its latents have {config['latent_channels']} channels, not 4"
        )
    with torch.device("meta"):
        vae = AutoencoderKL.from_config({**config, "scaling_factor": scale})
    if any(name.startswith("decoder.up_blocks.") for name in tensors):
        renamed = {_new_vae_name(name): tensor for name, tensor in tensors.items()}
        return filled(path, "VAE", vae, renamed.get)
    return filled(path, "VAE", vae, lambda key: tensors.get(vae_name(key, config).removeprefix(VAE_PREFIX)))


def _new_vae_name(name: str) -> str:
    """The name of today for the parts of an attention in a VAE that an older diffusers wrote."""
    for old, new in _OLD_VAE_NAMES.items():
        name = name.replace(old, new)
    return name
