"""The trained parts as files: single-file checkpoints, each with its .yaml, and diffusers' configuration beside it."""

import json
import os
import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, PreTrainedModel

from .. import layout
from . import TOY, TOY_XL, Toy, architecture, vocabulary, world
from .train_diffusion import Denoiser
from .train_xl import DenoiserXL

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
        monitor: val/rec_loss
{autoencoder}\
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder
      params:
        version: {tokenizer}
"""
# The text encoder of OpenCLIP's kind has a name by which the WebUI knows its sizes once the extension has told it.
YAML_XL = """\
model:
  target: sgm.models.diffusion.DiffusionEngine
  image_size: {latent_side}
  params:
    scale_factor: {scaling_factor}
    disable_first_stage_autocast: true
    denoiser_config:
      target: sgm.modules.diffusionmodules.denoiser.DiscreteDenoiser
      params:
        num_idx: 1000
        weighting_config:
          target: sgm.modules.diffusionmodules.denoiser_weighting.EpsWeighting
        scaling_config:
          target: sgm.modules.diffusionmodules.denoiser_scaling.EpsScaling
        discretization_config:
          target: sgm.modules.diffusionmodules.discretizer.LegacyDDPMDiscretization
    network_config:
      target: sgm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        adm_in_channels: {added_width}
        num_classes: sequential
        use_checkpoint: false
        in_channels: {latent_channels}
        out_channels: {latent_channels}
        model_channels: {unet_channels}
        attention_resolutions: {attention_resolutions}
        num_res_blocks: {unet_depth}
        channel_mult: {unet_multipliers}
        num_heads: {heads}
        use_spatial_transformer: true
        use_linear_in_transformer: true
        transformer_depth: {transformer_depths}
        context_dim: {text_width}
        spatial_transformer_attn_type: softmax
        legacy: false
    conditioner_config:
      target: sgm.modules.GeneralConditioner
      params:
        emb_models:
          - is_trainable: false
            input_key: txt
            target: sgm.modules.encoders.modules.FrozenCLIPEmbedder
            params:
              layer: hidden
              layer_idx: {layer_read}
              version: {tokenizer}
          - is_trainable: false
            input_key: txt
            target: sgm.modules.encoders.modules.FrozenOpenCLIPEmbedder2
            params:
              arch: {open_clip}
              version: none
              layer: penultimate
              always_return_pooled: true
              legacy: false
{sizes}\
    first_stage_config:
      target: sgm.models.autoencoder.AutoencoderKLInferenceWrapper
      params:
{autoencoder}"""
_SIZE = """\
          - is_trainable: false
            input_key: {name}
            target: sgm.modules.encoders.modules.ConcatTimestepEmbedderND
            params:
              outdim: {waves}
"""
_AUTOENCODER = """\
        embed_dim: {latent_channels}
        ddconfig:
          attn_type: vanilla
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
"""

CAPTIONS = 300
SCALING_FACTOR = 1.0  # train_diffusion.standardize has seen to the latents' scale
_SIZES = ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")


def yaml_text() -> str:
    """The configuration of the checkpoint in Stable Diffusion 1's layout, as LDM reads it."""
    return YAML.format(**_numbers(TOY, architecture.UNET))


def yaml_text_xl() -> str:
    """The configuration of the checkpoint in SDXL's layout, as SGM reads it."""
    unet = architecture.UNET_XL
    return YAML_XL.format(
        **_numbers(TOY_XL, unet),
        added_width=unet["projection_class_embeddings_input_dim"],
        transformer_depths=unet["transformer_layers_per_block"],
        layer_read=architecture.TEXT_LAYERS,
        open_clip=architecture.OPEN_CLIP,
        sizes="".join(_SIZE.format(name=name, waves=architecture.WAVES) for name in _SIZES),
    )


def _numbers(toy: Toy, unet: dict) -> dict[str, object]:
    vae = architecture.VAE
    attended = [2**level for level, kind in enumerate(unet["down_block_types"]) if kind.startswith("CrossAttn")]
    autoencoder = _AUTOENCODER.format(
        latent_channels=architecture.LATENT_CHANNELS,
        picture_side=architecture.PICTURE_SIDE,
        vae_channels=vae["block_out_channels"][0],
        vae_multipliers=[channels // vae["block_out_channels"][0] for channels in vae["block_out_channels"]],
        vae_depth=vae["layers_per_block"],
    )
    return dict(
        latent_side=architecture.LATENT_SIDE,
        latent_channels=architecture.LATENT_CHANNELS,
        scaling_factor=SCALING_FACTOR,
        unet_channels=unet["block_out_channels"][0],
        unet_multipliers=[channels // unet["block_out_channels"][0] for channels in unet["block_out_channels"]],
        unet_depth=unet["layers_per_block"],
        attention_resolutions=attended[::-1],
        heads=architecture.HEADS,
        text_width=unet["cross_attention_dim"],
        autoencoder=autoencoder,
        tokenizer=f"{toy.config.name}/tokenizer",
    )


def export(vae: AutoencoderKL, denoiser: Denoiser, toy: Toy = TOY) -> None:
    """Write the files of the toy in Stable Diffusion 1's layout, the weights last and whole."""
    _write_text_config(denoiser.text_encoder, toy.config, "text_encoder", "tokenizer")
    toy.description.write_text(yaml_text())
    tensors = _write_parts(vae, denoiser, toy)
    _write_weights(tensors | _prefixed(layout.TEXT_PREFIX, denoiser.text_encoder.state_dict()), toy.checkpoint)


def export_xl(vae: AutoencoderKL, denoiser: DenoiserXL, toy: Toy = TOY_XL) -> None:
    """Write the files of the toy in SDXL's layout, the weights last and whole."""
    first, second = denoiser.text_encoder, denoiser.text_encoder_2
    vocabulary.write(world.words(), toy.config / "tokenizer")
    vocabulary.write(world.words(), toy.config / "tokenizer_2", pad=vocabulary.byte_letters()[0])
    _write_text_config(first, toy.config, "text_encoder", "tokenizer")
    _write_text_config(second, toy.config, "text_encoder_2")
    _write_json(toy.config / "open_clip" / f"{architecture.OPEN_CLIP}.json", _open_clip_sizes(second.config))
    toy.description.write_text(yaml_text_xl())
    tensors = _write_parts(vae, denoiser, toy)
    tensors |= _prefixed(layout.FIRST_TEXT_PREFIX, first.state_dict())
    tensors |= _prefixed(layout.SECOND_TEXT_PREFIX, layout.to_open_clip(second.state_dict()))
    _write_weights(tensors, toy.checkpoint)


def replace_vae(vae: AutoencoderKL) -> None:
    """Put a VAE into the checkpoints of both toys; the rest of these stays as it is."""
    named = layout.to_checkpoint({}, {}, vae.state_dict(), dict(vae.config), {})
    for toy in (TOY, TOY_XL):
        _write_weights(load_file(toy.checkpoint) | named, toy.checkpoint)


def _write_parts(vae: AutoencoderKL, denoiser: Denoiser, toy: Toy) -> layout.Tensors:
    """What both layouts share: configurations, and the tensors of UNet and VAE."""
    unet = denoiser.unet
    vae.register_to_config(scaling_factor=SCALING_FACTOR)
    # Without the private ones: local paths, and _use_default_values, which would put the scaling factor back to
    # 0.18215.
    for model, part in ((unet, "unet"), (vae, "vae")):
        config = {key: value for key, value in model.config.items() if not key.startswith("_")}
        _write_json(toy.config / part / "config.json", {"_class_name": type(model).__name__} | config)
    architecture.scheduler().save_pretrained(toy.config / "scheduler")
    _write_json(toy.config / "model_index.json", MODEL_INDEX_XL if isinstance(denoiser, DenoiserXL) else MODEL_INDEX)
    return layout.to_checkpoint(unet.state_dict(), dict(unet.config), vae.state_dict(), dict(vae.config), {})


def _write_text_config(text_encoder: PreTrainedModel, config: Path, *folders: str) -> None:
    """Beside the tokenizer too: the WebUI looks for both in one folder."""
    content = text_encoder.config.to_diff_dict() | {"architectures": [type(text_encoder).__name__]}
    for folder in folders:
        _write_json(config / folder / "config.json", content)


def _open_clip_sizes(config: CLIPTextConfig) -> dict[str, object]:
    """The text encoder as OpenCLIP's model_configs describe one; what reads pictures is as small as it can be."""
    text = dict(
        context_length=config.max_position_embeddings,
        vocab_size=config.vocab_size,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        layers=config.num_hidden_layers,
    )
    vision = dict(image_size=32, layers=1, width=64, patch_size=32)
    return dict(embed_dim=config.projection_dim, vision_cfg=vision, text_cfg=text)


def _prefixed(prefix: str, tensors: layout.Tensors) -> layout.Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _write_weights(tensors: layout.Tensors, path: Path) -> None:
    halves = {name: tensor.to("cpu", torch.float16).contiguous() for name, tensor in tensors.items()}
    aside = path.with_suffix(".partial")
    save_file(halves, aside, metadata={"format": "pt"})
    os.replace(aside, path)


def write_captions() -> None:
    """Write captions of the world, by which the text prior and compression know what is ordinary (text_features.py)."""
    rng = random.Random("ordinary captions")
    captions = [world.caption(world.random_scene(rng), rng) for _ in range(CAPTIONS)]
    for toy in (TOY, TOY_XL):
        toy.checkpoint.with_suffix(".captions.txt").write_text("\n".join(captions) + "\n")


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
MODEL_INDEX_XL = {
    "_class_name": "StableDiffusionXLPipeline",
    "force_zeros_for_empty_prompt": True,
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def _write_json(path: Path, data: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2) + "\n")
