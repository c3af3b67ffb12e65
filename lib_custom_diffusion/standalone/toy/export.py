"""The trained parts as files: the single-file checkpoint with its .yaml, and diffusers' configuration beside it."""

import json
import os
import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file

from .. import layout
from . import CHECKPOINT, CHECKPOINT_CONFIG, CONFIG, architecture, world
from .train_diffusion import Denoiser

# `version` is where FrozenCLIPEmbedder finds the tokenizer and the text encoder's config.json: a path from the folder
# in which the WebUI runs, so whoever installs the checkpoint there writes the right one.
YAML = """\
model:
  base_learning_rate: 1.0e-4
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
    linear_end: 0.0120
    num_timesteps_cond: 1
    log_every_t: 200
    timesteps: 1000
    first_stage_key: jpg
    cond_stage_key: txt
    image_size: {latent_side}
    channels: {latent_channels}
    cond_stage_trainable: false
    conditioning_key: crossattn
    monitor: val/loss_simple_ema
    scale_factor: {scaling_factor}
    use_ema: false
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        image_size: {latent_side}
        in_channels: {latent_channels}
        out_channels: {latent_channels}
        model_channels: {unet_channels}
        attention_resolutions: {attention_resolutions}
        num_res_blocks: {unet_depth}
        channel_mult: {unet_multipliers}
        num_heads: {heads}
        use_spatial_transformer: true
        transformer_depth: 1
        context_dim: {text_width}
        use_checkpoint: false
        legacy: false
    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: {latent_channels}
        monitor: val/rec_loss
        ddconfig:
          double_z: true
          z_channels: {latent_channels}
          resolution: {picture_side}
          in_channels: 3
          out_ch: 3
          ch: {vae_channels}
          ch_mult: {vae_multipliers}
          num_res_blocks: {vae_depth}
          attn_resolutions: []
          dropout: 0.0
        lossconfig:
          target: torch.nn.Identity
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder
      params:
        version: {tokenizer}
"""


CAPTIONS = 300
SCALING_FACTOR = 1.0  # train_diffusion.standardize has seen to the latents' scale


def yaml_text() -> str:
    """The checkpoint's configuration, as LDM reads it."""
    unet, vae = architecture.UNET, architecture.VAE
    attended = [2**level for level, kind in enumerate(unet["down_block_types"]) if kind.startswith("CrossAttn")]
    return YAML.format(
        latent_side=architecture.LATENT_SIDE,
        latent_channels=architecture.LATENT_CHANNELS,
        picture_side=architecture.PICTURE_SIDE,
        scaling_factor=SCALING_FACTOR,
        unet_channels=unet["block_out_channels"][0],
        unet_multipliers=[channels // unet["block_out_channels"][0] for channels in unet["block_out_channels"]],
        unet_depth=unet["layers_per_block"],
        attention_resolutions=attended[::-1],
        heads=architecture.HEADS,
        text_width=architecture.TEXT_WIDTH,
        vae_channels=vae["block_out_channels"][0],
        vae_multipliers=[channels // vae["block_out_channels"][0] for channels in vae["block_out_channels"]],
        vae_depth=vae["layers_per_block"],
        tokenizer=f"{CONFIG.name}/tokenizer",
    )


def export(vae: AutoencoderKL, denoiser: Denoiser) -> None:
    """Write the model's files, the weights last and whole."""
    unet, text_encoder = denoiser.unet, denoiser.text_encoder
    vae.register_to_config(scaling_factor=SCALING_FACTOR)
    # Without the private ones: local paths, and _use_default_values, which would put the scaling factor back to
    # 0.18215.
    for model, part in ((unet, "unet"), (vae, "vae")):
        config = {key: value for key, value in model.config.items() if not key.startswith("_")}
        _write_json(CONFIG / part / "config.json", {"_class_name": type(model).__name__} | config)
    architecture.scheduler().save_pretrained(CONFIG / "scheduler")
    text_config = text_encoder.config.to_diff_dict() | {"architectures": ["CLIPTextModel"]}
    for folder in ("text_encoder", "tokenizer"):  # beside the tokenizer too: the WebUI looks for both in one folder
        _write_json(CONFIG / folder / "config.json", text_config)
    _write_json(CONFIG / "model_index.json", MODEL_INDEX)
    CHECKPOINT_CONFIG.write_text(yaml_text())
    checkpoint = layout.to_checkpoint(
        unet.state_dict(), dict(unet.config), vae.state_dict(), dict(vae.config), text_encoder.state_dict()
    )
    halves = {name: tensor.to("cpu", torch.float16).contiguous() for name, tensor in checkpoint.items()}
    aside = CHECKPOINT.with_suffix(".partial")
    save_file(halves, aside, metadata={"format": "pt"})
    os.replace(aside, CHECKPOINT)


def write_captions() -> None:
    """Write captions of the world, by which the text prior and compression know what is ordinary (text_features.py)."""
    rng = random.Random("ordinary captions")
    captions = [world.caption(world.random_scene(rng), rng) for _ in range(CAPTIONS)]
    CHECKPOINT.with_suffix(".captions.txt").write_text("\n".join(captions) + "\n")


MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def _write_json(path: Path, data: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2) + "\n")
