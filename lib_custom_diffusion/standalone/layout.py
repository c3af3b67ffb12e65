"""One set of weights under two sets of names: diffusers' modules and LDM's single-file checkpoint.

LDM numbers the UNet's blocks in the order in which they run: `input_blocks.0` is conv_in, then each resolution has its
residual blocks and a downsampler; `output_blocks` come one more a resolution (openaimodel.py and model.py of
CompVis/stable-diffusion, ldm/modules/diffusionmodules). Only names differ, and the shape of the VAE's attention: LDM
has 1×1 convolutions where diffusers has linear layers.
"""

from collections.abc import Iterable

import torch

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model.transformer."
OPEN_CLIP_PREFIX = "cond_stage_model.model."
FIRST_TEXT_PREFIX = "conditioner.embedders.0.transformer."
SECOND_TEXT_PREFIX = "conditioner.embedders.1.model."
"""Of SDXL's two text encoders, CLIP's and OpenCLIP's."""

Tensors = dict[str, torch.Tensor]

_UNET_ENDS = {
    "conv_in.": "input_blocks.0.0.",
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "add_embedding.linear_1.": "label_emb.0.0.",
    "add_embedding.linear_2.": "label_emb.0.2.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
    "mid_block.resnets.0.": "middle_block.0.",
    "mid_block.attentions.0.": "middle_block.1.",
    "mid_block.resnets.1.": "middle_block.2.",
}
_UNET_RESNET = {
    "norm1.": "in_layers.0.",
    "conv1.": "in_layers.2.",
    "time_emb_proj.": "emb_layers.1.",
    "norm2.": "out_layers.0.",
    "conv2.": "out_layers.3.",
    "conv_shortcut.": "skip_connection.",
}
_VAE_ATTENTION = {"group_norm.": "norm.", "to_q.": "q.", "to_k.": "k.", "to_v.": "v.", "to_out.0.": "proj_out."}

_OPEN_CLIP = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_OPEN_CLIP_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def open_clip_state(tensors: Tensors, layers: int) -> Tensors:
    """An OpenCLIP text encoder's tensors under transformers' names, those of its first `layers` layers.

    OpenCLIP keeps query, key and value of a layer in one matrix (3 width, width).
    Raises KeyError for a tensor that isn't there.
    """
    state = {f"text_model.{ours}": tensors[theirs] for theirs, ours in _OPEN_CLIP.items()}
    for layer in range(layers):
        old, new = f"transformer.resblocks.{layer}.", f"text_model.encoder.layers.{layer}."
        for kind in ("weight", "bias"):
            for theirs, ours in _OPEN_CLIP_LAYER.items():
                state[f"{new}{ours}.{kind}"] = tensors[f"{old}{theirs}.{kind}"]
            for part, projection in zip(tensors[f"{old}attn.in_proj_{kind}"].chunk(3), "qkv"):
                state[f"{new}self_attn.{projection}_proj.{kind}"] = part
    return state


def to_open_clip(state: Tensors) -> Tensors:
    """An OpenCLIP text encoder's tensors under its own names, from transformers' of one with a projection."""
    layers = 1 + max(int(name.split(".")[3]) for name in state if name.startswith("text_model.encoder.layers."))
    tensors = {theirs: state[f"text_model.{ours}"] for theirs, ours in _OPEN_CLIP.items()}
    tensors["text_projection"] = state["text_projection.weight"].T
    for layer in range(layers):
        old, new = f"text_model.encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            for theirs, ours in _OPEN_CLIP_LAYER.items():
                tensors[f"{new}{theirs}.{kind}"] = state[f"{old}{ours}.{kind}"]
            parts = [state[f"{old}self_attn.{projection}_proj.{kind}"] for projection in "qkv"]
            tensors[f"{new}attn.in_proj_{kind}"] = torch.cat(parts)
    return tensors


def unet_modules(config: dict) -> dict[str, str]:
    """LDM's name of every block, residual block, transformer and sampler of a diffusers UNet, by diffusers' name."""
    levels, depth = len(config["block_out_channels"]), config["layers_per_block"]
    names = dict(_UNET_ENDS)
    for level in range(levels):
        first = 1 + level * (depth + 1)
        for layer in range(depth):
            names[f"down_blocks.{level}.resnets.{layer}."] = f"input_blocks.{first + layer}.0."
            names[f"down_blocks.{level}.attentions.{layer}."] = f"input_blocks.{first + layer}.1."
        names[f"down_blocks.{level}.downsamplers.0.conv."] = f"input_blocks.{first + depth}.0.op."
        first = level * (depth + 1)
        for layer in range(depth + 1):
            names[f"up_blocks.{level}.resnets.{layer}."] = f"output_blocks.{first + layer}.0."
            names[f"up_blocks.{level}.attentions.{layer}."] = f"output_blocks.{first + layer}.1."
        # The upsampler follows whatever the level's last block holds: a residual block and perhaps a transformer.
        place = 2 if config["up_block_types"][level].startswith("CrossAttn") else 1
        names[f"up_blocks.{level}.upsamplers.0.conv."] = f"output_blocks.{first + depth}.{place}.conv."
    return names


def vae_modules(config: dict) -> dict[str, str]:
    """LDM's name of every block and sampler of a diffusers AutoencoderKL, by diffusers' name."""
    levels, depth = len(config["block_out_channels"]), config["layers_per_block"]
    names = {}
    for level in range(levels):
        for layer in range(depth):
            names[f"encoder.down_blocks.{level}.resnets.{layer}."] = f"encoder.down.{level}.block.{layer}."
        names[f"encoder.down_blocks.{level}.downsamplers.0."] = f"encoder.down.{level}.downsample."
        # LDM counts the decoder's levels from the finest, diffusers in the order in which they run.
        for layer in range(depth + 1):
            names[f"decoder.up_blocks.{level}.resnets.{layer}."] = f"decoder.up.{levels - 1 - level}.block.{layer}."
        names[f"decoder.up_blocks.{level}.upsamplers.0."] = f"decoder.up.{levels - 1 - level}.upsample."
    for half in ("encoder", "decoder"):
        names[f"{half}.mid_block.resnets.0."] = f"{half}.mid.block_1."
        names[f"{half}.mid_block.attentions.0."] = f"{half}.mid.attn_1."
        names[f"{half}.mid_block.resnets.1."] = f"{half}.mid.block_2."
        names[f"{half}.conv_norm_out."] = f"{half}.norm_out."
    return names


def _renamed(key: str, modules: dict[str, str], inner: dict[str, str]) -> str:
    for ours, theirs in modules.items():
        if key.startswith(ours):
            rest = key.removeprefix(ours)
            for part, other in inner.items():
                if rest.startswith(part):
                    return theirs + other + rest.removeprefix(part)
            return theirs + rest
    return key


def unet_name(key: str, config: dict) -> str:
    """LDM's name of a parameter of a diffusers UNet."""
    inner = _UNET_RESNET if ".resnets." in key else {}
    return UNET_PREFIX + _renamed(key, unet_modules(config), inner)


def count(names: Iterable[str], prefix: str) -> int:
    """How many numbers follow the prefix in names such as PREFIX3.weight."""
    return len({name[len(prefix) :].partition(".")[0] for name in names if name.startswith(prefix)})


def vae_name(key: str, config: dict) -> str:
    """LDM's name of a parameter of a diffusers AutoencoderKL."""
    inner = _VAE_ATTENTION if ".attentions." in key else {"conv_shortcut.": "nin_shortcut."}
    return VAE_PREFIX + _renamed(key, vae_modules(config), inner)


def to_checkpoint(unet: Tensors, unet_config: dict, vae: Tensors, vae_config: dict, text_encoder: Tensors) -> Tensors:
    """The tensors of three diffusers models under their names in a single-file checkpoint."""
    checkpoint = {unet_name(key, unet_config): tensor for key, tensor in unet.items()}
    for key, tensor in vae.items():
        is_projection = ".attentions." in key and tensor.ndim == 2
        checkpoint[vae_name(key, vae_config)] = tensor[:, :, None, None] if is_projection else tensor
    return checkpoint | {TEXT_PREFIX + key: tensor for key, tensor in text_encoder.items()}
