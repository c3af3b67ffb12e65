"""Models of Stable Diffusion's sizes with random weights, made here: a step's time does not depend on their values."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from lib_custom_diffusion.standalone import clip
from lib_custom_diffusion.standalone.toy import TOY


def stable_diffusion_1() -> StableDiffusionPipeline:
    """All three models as large as Stable Diffusion 1's (860, 123 and 84 million numbers); the toy's vocabulary."""
    tokenizer = CLIPTokenizer.from_pretrained(TOY.config / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    return StableDiffusionPipeline(
        _vae(), CLIPTextModel(text), tokenizer, unet, _scheduler(), None, None, requires_safety_checker=False
    )


def sdxl() -> StableDiffusionXLPipeline:
    """All four models as large as SDXL's (2,567, 123, 695 and 84 million numbers), with CLIP's vocabulary."""
    ends = {"bos_token_id": 49406, "eos_token_id": 49407}
    first = CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, **ends
    )
    second = CLIPTextConfig(
        vocab_size=49408, hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20,
        hidden_act="gelu", projection_dim=1280, **ends,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        _vae(), CLIPTextModel(first), CLIPTextModelWithProjection(second), clip.tokenizer(), clip.tokenizer("!"),
        sdxl_unet(), _scheduler(), add_watermarker=False,
    )  # fmt: skip


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, layers_per_block=2,
    )  # fmt: skip


def _scheduler() -> DDIMScheduler:
    with torch.device("cpu"):  # as where a model is loaded
        return DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
            set_alpha_to_one=False, steps_offset=1,
        )  # fmt: skip


def sdxl_unet() -> UNet2DConditionModel:
    """A UNet as large as SDXL's (2.6 billion numbers)."""
    return UNet2DConditionModel(
        sample_size=128, cross_attention_dim=2048, block_out_channels=(320, 640, 1280), use_linear_projection=True,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(5, 10, 20),
        transformer_layers_per_block=(1, 2, 10), addition_embed_type="text_time", addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )  # fmt: skip
