"""An SDXL checkpoint for the WebUI: sgm's own classes, CLIP's vocabulary, few and random weights.

Its second text encoder is the smallest that OpenCLIP knows by name.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "standalone"))

from lib_custom_diffusion.standalone import clip  # noqa: E402
from tiny_checkpoints import WIDTH, make_sdxl, sdxl  # noqa: E402

OPEN_CLIP, OPEN_CLIP_WIDTH, OPEN_CLIP_LAYERS = "ViT-S-32-alt", 256, 10
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


def write_checkpoint(folder: Path, name: str) -> None:
    """Write NAME.safetensors and NAME.yaml, as the WebUI reads them, and the folder of the tokenizer."""
    pipeline = make_sdxl(OPEN_CLIP_WIDTH, OPEN_CLIP_LAYERS, OPEN_CLIP_WIDTH // 64, 4 * OPEN_CLIP_WIDTH)
    tensors = sdxl(pipeline) | {"conditioner.embedders.1.model.logit_scale": torch.tensor(1.0)}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / f"{name}.safetensors")
    tokenizer = folder / f"{name}-tokenizer"
    tokenizer.mkdir()
    (tokenizer / "vocab.json").write_text(json.dumps(clip.tokenizer().get_vocab()), encoding="utf-8")
    merges = gzip.decompress(clip.MERGES.read_bytes()).decode()
    (tokenizer / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
    special = {"bos_token": "<|startoftext|>", "eos_token": clip.END, "unk_token": clip.END, "pad_token": clip.END}
    settings = {**special, "tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings))
    (tokenizer / "config.json").write_text(pipeline.text_encoder.config.to_json_string())
    (folder / f"{name}.yaml").write_text(CONFIG.replace("TOKENIZER", str(tokenizer)))
