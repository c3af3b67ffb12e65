"""Checkpoints of SDXL and Stable Diffusion 2 for the WebUI: its own classes, CLIP's vocabulary, few random weights.

OpenCLIP's text encoder is the smallest that it knows by name.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "standalone"))

from lib_custom_diffusion.standalone import clip  # noqa: E402
from tiny_checkpoints import WIDTH, make_sdxl, make_stable_diffusion_2, sd2, sdxl  # noqa: E402

OPEN_CLIP, OPEN_CLIP_WIDTH, OPEN_CLIP_LAYERS = "ViT-S-32-alt", 256, 10
AUTOENCODER = """\
        ddconfig:
          attn_type: vanilla
          double_z: true
          z_channels: 4
          resolution: 256
          in_channels: 3
          out_ch: 3
          ch: 32
          ch_mult: [1, 1, 1, 1]
          num_res_blocks: 1
          attn_resolutions: []
          dropout: 0.0
        lossconfig:
          target: torch.nn.Identity
"""
CONFIG = f"""\
model:
  target: sgm.models.diffusion.DiffusionEngine
  params:
    scale_factor: 0.13025
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
        adm_in_channels: {OPEN_CLIP_WIDTH + 6 * 256}
        num_classes: sequential
        use_checkpoint: false
        in_channels: 4
        out_channels: 4
        model_channels: 64
        attention_resolutions: [2]
        num_res_blocks: 1
        channel_mult: [1, 2]
        num_head_channels: 64
        use_spatial_transformer: true
        use_linear_in_transformer: true
        transformer_depth: [1, 2]
        context_dim: {WIDTH + OPEN_CLIP_WIDTH}
        spatial_transformer_attn_type: softmax
        legacy: false
    conditioner_config:
      target: sgm.modules.GeneralConditioner
      params:
        emb_models:
          - is_trainable: false
            input_key: txt
            target: sgm.modules.encoders.modules.FrozenCLIPEmbedder
            params: {{version: "TOKENIZER", layer: hidden, layer_idx: 1}}
          - is_trainable: false
            input_key: txt
            target: sgm.modules.encoders.modules.FrozenOpenCLIPEmbedder2
            params: {{arch: {OPEN_CLIP}, version: none, layer: penultimate, always_return_pooled: true, legacy: false}}
          - is_trainable: false
            input_key: original_size_as_tuple
            target: sgm.modules.encoders.modules.ConcatTimestepEmbedderND
            params: {{outdim: 256}}
          - is_trainable: false
            input_key: crop_coords_top_left
            target: sgm.modules.encoders.modules.ConcatTimestepEmbedderND
            params: {{outdim: 256}}
          - is_trainable: false
            input_key: target_size_as_tuple
            target: sgm.modules.encoders.modules.ConcatTimestepEmbedderND
            params: {{outdim: 256}}
    first_stage_config:
      target: sgm.models.autoencoder.AutoencoderKLInferenceWrapper
      params:
        embed_dim: 4
{AUTOENCODER}"""
CONFIG_OF_SD2 = f"""\
model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    parameterization: PREDICTION
    linear_start: 0.00085
    linear_end: 0.0120
    num_timesteps_cond: 1
    timesteps: 1000
    first_stage_key: jpg
    cond_stage_key: txt
    image_size: 16
    channels: 4
    cond_stage_trainable: false
    conditioning_key: crossattn
    scale_factor: 0.18215
    use_ema: false
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        use_checkpoint: false
        image_size: 16
        in_channels: 4
        out_channels: 4
        model_channels: 64
        attention_resolutions: [1]
        num_res_blocks: 1
        channel_mult: [1, 2]
        num_head_channels: 64
        use_spatial_transformer: true
        use_linear_in_transformer: true
        transformer_depth: 1
        context_dim: {OPEN_CLIP_WIDTH}
        legacy: false
    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: 4
{AUTOENCODER}\
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder
      params: {{arch: {OPEN_CLIP}, version: none, freeze: true, layer: penultimate}}
"""


def write_stable_diffusion_2(folder: Path, name: str, prediction: str) -> Path:
    """Write NAME.safetensors and NAME.yaml, which says that it predicts "eps" or "v"; the first one's path.

    The layer beyond those that are read is the encoder's tenth. What it gives must not be 0 on average, as
    it is without a bias: the WebUI divides by that.
    """
    pipeline = make_stable_diffusion_2(
        OPEN_CLIP_WIDTH, OPEN_CLIP_LAYERS - 1, OPEN_CLIP_WIDTH // 64, 4 * OPEN_CLIP_WIDTH
    )
    torch.nn.init.normal_(pipeline.text_encoder.text_model.final_layer_norm.bias)
    tensors = sd2(pipeline)
    path = folder / f"{name}.safetensors"
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path)
    path.with_suffix(".yaml").write_text(CONFIG_OF_SD2.replace("PREDICTION", prediction))
    return path


def write_inpainting(folder: Path, name: str) -> Path:
    """The same Stable Diffusion 2 as one for inpainting, of nine channels."""
    path = write_stable_diffusion_2(folder, name, "eps")
    tensors, first = load_file(path), "model.diffusion_model.input_blocks.0.0.weight"
    tensors[first] = torch.cat([tensors[first], tensors[first][:, :4], tensors[first][:, :1]], dim=1)
    save_file(tensors, path)
    config = path.with_suffix(".yaml").read_text().replace("LatentDiffusion", "LatentInpaintDiffusion")
    config = config.replace("conditioning_key: crossattn", "conditioning_key: hybrid\n    finetune_keys: null")
    path.with_suffix(".yaml").write_text(config.replace("        in_channels: 4\n", "        in_channels: 9\n"))
    return path


def write_checkpoint(folder: Path, name: str, velocity: bool = False) -> Path:
    """Write NAME.safetensors and NAME.yaml, as the WebUI reads them, and the folder of the tokenizer; the first's path.

    velocity: what it predicts, with zero terminal SNR, as its keys and the .yaml say; else noise.
    """
    pipeline = make_sdxl(OPEN_CLIP_WIDTH, OPEN_CLIP_LAYERS, OPEN_CLIP_WIDTH // 64, 4 * OPEN_CLIP_WIDTH)
    tensors = sdxl(pipeline) | {"conditioner.embedders.1.model.logit_scale": torch.tensor(1.0)}
    if velocity:
        tensors |= {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}
    path = folder / f"{name}.safetensors"
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path)
    tokenizer = folder / f"{name}-tokenizer"
    tokenizer.mkdir()
    (tokenizer / "vocab.json").write_text(json.dumps(clip.tokenizer().get_vocab()), encoding="utf-8")
    merges = gzip.decompress(clip.MERGES.read_bytes()).decode()
    (tokenizer / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
    special = {"bos_token": "<|startoftext|>", "eos_token": clip.END, "unk_token": clip.END, "pad_token": clip.END}
    settings = {**special, "tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings))
    (tokenizer / "config.json").write_text(pipeline.text_encoder.config.to_json_string())
    config = CONFIG.replace("TOKENIZER", str(tokenizer))
    path.with_suffix(".yaml").write_text(
        config.replace("EpsWeighting", "VWeighting").replace("EpsScaling", "VScaling") if velocity else config
    )
    return path
