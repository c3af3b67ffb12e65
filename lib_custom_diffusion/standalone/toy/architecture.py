"""The toys' parts: Stable Diffusion 1 and SDXL, made small. Only sizes differ, so their loaders load them.

Sources of the layouts: configs/stable-diffusion/v1-inference.yaml of CompVis/stable-diffusion, and
configs/inference/sd_xl_base.yaml of Stability-AI/generative-models. Channels are multiples of 32 because LDM's
GroupNorm always has 32 groups. Both have one VAE.
"""

from typing import Any

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

TEXT_WIDTH = 128
TEXT_LAYERS = 3
SECOND_TEXT_LAYERS, SECOND_TEXT_HEADS = 2, 2  # of SDXL's second text encoder, which is as wide as the first
OPEN_CLIP = "custom-diffusion-toy-xl"  # what OpenCLIP knows that one as
HEADS = 4  # of every other attention, in the UNet and in the text encoders
LATENT_CHANNELS = 4
PICTURE_SIDE = 128
LATENT_SIDE = PICTURE_SIDE // 8

# LDM's GroupNorm has 32 groups. With one or two channels a group it removes a flat colour altogether, and a VAE of 32
# channels does not learn; 96 everywhere does. One residual block a level in the encoder, two in the decoder.
VAE: dict[str, Any] = dict(
    in_channels=3,
    out_channels=3,
    down_block_types=["DownEncoderBlock2D"] * 4,
    up_block_types=["UpDecoderBlock2D"] * 4,
    block_out_channels=[96, 96, 96, 96],
    layers_per_block=1,
    latent_channels=LATENT_CHANNELS,
    norm_num_groups=32,
    sample_size=PICTURE_SIDE,
)
UNET: dict[str, Any] = dict(
    sample_size=LATENT_SIDE,
    in_channels=LATENT_CHANNELS,
    out_channels=LATENT_CHANNELS,
    down_block_types=["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    up_block_types=["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    block_out_channels=[64, 128, 128],
    layers_per_block=1,
    attention_head_dim=HEADS,  # diffusers' name for the number of heads in SD1's layout
    cross_attention_dim=TEXT_WIDTH,
    norm_num_groups=32,
    use_linear_projection=False,
)
WAVES = 256  # in which each of SDXL's six sizes is told
# SDXL attends at the coarse levels only, but the words of toy.safetensors are read at the finest: without, what was
# learned there is lost.
UNET_XL: dict[str, Any] = UNET | dict(
    down_block_types=["CrossAttnDownBlock2D"] * 3,
    up_block_types=["CrossAttnUpBlock2D"] * 3,
    transformer_layers_per_block=[1, 1, 2],
    cross_attention_dim=2 * TEXT_WIDTH,
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=WAVES,
    projection_class_embeddings_input_dim=TEXT_WIDTH + 6 * WAVES,
)
SCHEDULE: dict[str, Any] = dict(
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    prediction_type="epsilon",
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
)


def autoencoder() -> AutoencoderKL:
    """Pictures (n, 3, 128, 128) in [-1, 1] to latents (n, 4, 16, 16) and back; untrained."""
    return AutoencoderKL(**VAE)


def unet() -> UNet2DConditionModel:
    """Noise in latents (n, 4, 16, 16) given timesteps (n,) and text features (n, 77, 128); untrained."""
    return UNet2DConditionModel(**UNET)


def unet_xl() -> UNet2DConditionModel:
    """The same given text features (n, 77, 256), pooled text (n, 128) and sizes (n, 6) as well; untrained."""
    return UNet2DConditionModel(**UNET_XL)


def text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Token ids (n, 77) to text features (n, 77, 128); untrained."""
    return CLIPTextModel(_text_config(tokenizer))


def first_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """SDXL's first, which has a layer more than are read; untrained."""
    return CLIPTextModel(_text_config(tokenizer, num_hidden_layers=TEXT_LAYERS + 1))


def second_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """SDXL's second, OpenCLIP's: the last layer but one is read, and of the last one vector (n, 128); untrained."""
    config = _text_config(
        tokenizer,
        num_hidden_layers=SECOND_TEXT_LAYERS,
        num_attention_heads=SECOND_TEXT_HEADS,
        hidden_act="gelu",
        pad_token_id=0,
    )
    return CLIPTextModelWithProjection(config)


def _text_config(tokenizer: CLIPTokenizer, **others: Any) -> CLIPTextConfig:
    config = dict(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=TEXT_WIDTH,
        hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextConfig(**{**config, **others})


def scheduler() -> DDIMScheduler:
    """Stable Diffusion 1's noise schedule, which is SDXL's."""
    return DDIMScheduler(**SCHEDULE)
