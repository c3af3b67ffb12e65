"""Models of diffusers' own classes, small and untrained, for files that diffusers reads and writes."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

WIDTH = 24  # of the text features


def small_unet(resnets: int = 2) -> UNet2DConditionModel:
    """Stable Diffusion's layout with cross-attention in two levels and the middle."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16, 16),
        layers_per_block=resnets,
        attention_head_dim=2,
        cross_attention_dim=WIDTH,
        norm_num_groups=4,
    ).eval()


def small_pipeline(unet: UNet2DConditionModel) -> StableDiffusionPipeline:
    """A pipeline around the UNet, for loaders that are methods of pipelines; it has no text encoder."""
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=4, latent_channels=4)
    return StableDiffusionPipeline(
        vae=vae, text_encoder=None, tokenizer=None, unet=unet, scheduler=DDIMScheduler(), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def output(unet: UNet2DConditionModel) -> torch.Tensor:
    """The UNet's output for one fixed input."""
    generator = torch.Generator().manual_seed(3)
    latents, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 7, WIDTH, generator=generator)
    with torch.no_grad():
        return unet(latents, torch.tensor([10, 700]), encoder_hidden_states=text).sample
