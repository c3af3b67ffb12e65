"""Checkpoints of one file as people download them, tiny and untrained, with CLIP's true vocabulary."""

from __future__ import annotations

from functools import lru_cache

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lib_custom_diffusion.standalone import clip, layout

WIDTH = 64
WORDS = 49408
Tensors = dict[str, Tensor]


def _text_encoder(
    hidden_act: str, width: int = WIDTH, layers: int = 2, heads: int = 1, intermediate_size: int = 96
) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=WORDS, hidden_size=width, intermediate_size=intermediate_size, num_hidden_layers=layers,
            num_attention_heads=heads, hidden_act=hidden_act, bos_token_id=WORDS - 2, eos_token_id=WORDS - 1,
        )
    )  # fmt: skip


def _unet(width: int = WIDTH, **more: object) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        block_out_channels=(64, 128), layers_per_block=1, cross_attention_dim=width,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **more,
    )  # fmt: skip


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(32, 32, 32, 32), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, layers_per_block=1,
    )  # fmt: skip


def _pipeline(unet: UNet2DConditionModel, text_encoder: CLIPTextModel, padding: str) -> StableDiffusionPipeline:
    vae = _vae()
    for part in (unet, vae, text_encoder):
        part.eval().requires_grad_(False)
    return StableDiffusionPipeline(
        vae, text_encoder, clip.tokenizer(padding), unet, DDIMScheduler(clip_sample=False, steps_offset=1), None, None,
        requires_safety_checker=False,
    )  # fmt: skip


@lru_cache(maxsize=1)
def stable_diffusion_1() -> StableDiffusionPipeline:
    """Eight heads, convolutions around attentions, CLIP's activation."""
    torch.manual_seed(1)
    return _pipeline(_unet(attention_head_dim=8), _text_encoder("quick_gelu"), "<|endoftext|>")


@lru_cache(maxsize=1)
def stable_diffusion_2() -> StableDiffusionPipeline:
    """Heads 64 wide, linear layers around attentions, OpenCLIP's activation and padding."""
    return make_stable_diffusion_2(width=WIDTH, layers=2, heads=1, intermediate_size=96)


def make_stable_diffusion_2(width: int, layers: int, heads: int, intermediate_size: int) -> StableDiffusionPipeline:
    """The same, with a text encoder of that size."""
    torch.manual_seed(2)
    unet = _unet(width, attention_head_dim=(1, 2), use_linear_projection=True)
    return _pipeline(unet, _text_encoder("gelu", width, layers, heads, intermediate_size), "!")


@lru_cache(maxsize=1)
def sdxl_pipeline() -> StableDiffusionXLPipeline:
    """Two text encoders, pooled text and sizes; two transformers deep where SDXL has ten."""
    return make_sdxl(width=WIDTH, layers=3, heads=1, intermediate_size=80)


def make_sdxl(width: int, layers: int, heads: int, intermediate_size: int) -> StableDiffusionXLPipeline:
    """The same, with a second text encoder of that size."""
    torch.manual_seed(3)
    second = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=WORDS, hidden_size=width, intermediate_size=intermediate_size, num_hidden_layers=layers,
            num_attention_heads=heads, hidden_act="gelu", projection_dim=width, bos_token_id=WORDS - 2,
            eos_token_id=WORDS - 1,
        )
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(64, 128), layers_per_block=1, cross_attention_dim=WIDTH + width,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2), attention_head_dim=(1, 2), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=width + 6 * 256,
    )  # fmt: skip
    first, vae = _text_encoder("quick_gelu"), _vae()
    for part in (unet, vae, first, second):
        part.eval().requires_grad_(False)
    return StableDiffusionXLPipeline(
        vae, first, second, clip.tokenizer(), clip.tokenizer("!"), unet,
        DDIMScheduler(clip_sample=False, steps_offset=1), add_watermarker=False,
    )  # fmt: skip


def sdxl(pipeline: StableDiffusionXLPipeline | None = None) -> Tensors:
    """As sd_xl_base_1.0.safetensors names its tensors."""
    pipeline = pipeline or sdxl_pipeline()
    first = {f"conditioner.embedders.0.transformer.{n}": v for n, v in pipeline.text_encoder.state_dict().items()}
    prefix = "conditioner.embedders.1.model."
    second = open_clip(pipeline.text_encoder_2, prefix)
    layers = pipeline.text_encoder_2.config.num_hidden_layers
    second = {n: v for n, v in second.items() if f".resblocks.{layers}." not in n}
    projection = pipeline.text_encoder_2.text_projection.weight.T.contiguous()
    return _ldm(pipeline) | first | second | {f"{prefix}text_projection": projection}


def _ldm(pipeline: StableDiffusionPipeline | StableDiffusionXLPipeline) -> Tensors:
    unet, vae = pipeline.unet, pipeline.vae
    return layout.to_checkpoint(unet.state_dict(), dict(unet.config), vae.state_dict(), dict(vae.config), {})


def sd1() -> Tensors:
    """As v1-5-pruned.safetensors names its tensors."""
    pipeline = stable_diffusion_1()
    text = {f"cond_stage_model.transformer.{name}": value for name, value in pipeline.text_encoder.state_dict().items()}
    positions = {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None]}
    return _ldm(pipeline) | text | positions | {"betas": torch.zeros(1000), "model_ema.num_updates": torch.tensor(1)}


def sd2(pipeline: StableDiffusionPipeline | None = None) -> Tensors:
    """As v2-1_768-ema-pruned.safetensors names its tensors."""
    pipeline = pipeline or stable_diffusion_2()
    text = open_clip(pipeline.text_encoder, "cond_stage_model.model.")
    return _ldm(pipeline) | text | {"cond_stage_model.model.logit_scale": torch.tensor(1.0)}


def open_clip(text_encoder: CLIPTextModel | CLIPTextModelWithProjection, prefix: str) -> Tensors:
    """A text encoder as OpenCLIP keeps it: query, key and value in one matrix, and one layer more than are read."""
    state = {name.removeprefix("text_model."): value for name, value in text_encoder.state_dict().items()}
    made = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "text_projection": torch.zeros(text_encoder.config.hidden_size, text_encoder.config.hidden_size),
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
    }
    layers = text_encoder.config.num_hidden_layers
    for layer in range(layers + 1):
        of = f"encoder.layers.{min(layer, layers - 1)}."
        block = f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            parts = [state[f"{of}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            made[f"{block}attn.in_proj_{kind}"] = torch.cat(parts)
            made[f"{block}attn.out_proj.{kind}"] = state[f"{of}self_attn.out_proj.{kind}"]
            made[f"{block}ln_1.{kind}"] = state[f"{of}layer_norm1.{kind}"]
            made[f"{block}ln_2.{kind}"] = state[f"{of}layer_norm2.{kind}"]
            made[f"{block}mlp.c_fc.{kind}"] = state[f"{of}mlp.fc1.{kind}"]
            made[f"{block}mlp.c_proj.{kind}"] = state[f"{of}mlp.fc2.{kind}"]
    return {prefix + name: value for name, value in made.items()}
