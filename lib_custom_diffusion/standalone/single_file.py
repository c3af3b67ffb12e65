"""A single-file checkpoint as a diffusers pipeline, without a network: what diffusers asks the Hub for is in the file.

How many blocks, channels and layers a model has is told by the shapes of its weights. What no shape tells (heads, noise
schedule, what the UNet predicts) is the same in all models of a kind, or stands in the .yaml beside the file, which is
the WebUI's way to describe any other model.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor

from ..attention import TEXT_KEY_ENDING
from ..errors import UserError
from .checkpoint_parts import filled, part_of, whole
from .description import NOTHING, Described, description_of, read_description
from .kinds import FIRST_LAYER, USABLE, is_sdxl, refuse_other_kinds
from .layout import (
    FIRST_TEXT_PREFIX,
    OPEN_CLIP_PREFIX,
    SECOND_TEXT_PREFIX,
    TEXT_PREFIX,
    UNET_PREFIX,
    VAE_PREFIX,
    Tensors,
    count,
    unet_name,
)
from .other_names import under_ldm_names
from .text_encoders import clip_text, open_clip_text, second_text_of_sdxl
from .vae import load_autoencoder, load_vae
from .weights import Weights, read_weights

logger = logging.getLogger(__name__)

_WAVES = 256
_HEADS = 8  # of all attentions in Stable Diffusion 1
_HEAD_WIDTH = 64  # in Stable Diffusion 2 and XL
_LATENT_SCALE, _LATENT_SCALE_OF_SDXL = 0.18215, 0.13025
_SIDE, _SIDE_OF_SDXL = 64, 128  # of the latents that the models were trained at
_SIDE_OF_VELOCITY = 96  # of those of Stable Diffusion 2 that predict velocity
_PREDICTIONS = {
    "eps": "epsilon",
    "epsilon": "epsilon",
    **dict.fromkeys(("v", "v_pred", "v_prediction"), "v_prediction"),
}

_OF_TEXT_ENCODERS = ("cond_stage_model.", "text_encoder", "clip_l.", "clip_g.", "te1.", "te2.")
"""How names of text encoders begin in files of other programs than those that are read."""


def load_checkpoint(path: Path, vae: Path | None = None, prediction_type: str | None = None) -> DiffusionPipeline:
    """The checkpoint, in evaluation mode, in its own precision, on the CPU.

    vae:             a VAE to take instead of the file's own.
    prediction_type: what the UNet predicts, if neither the file nor its .yaml tells; otherwise that is found out.

    Raises UserError for what is no checkpoint, one of a kind that cannot be used, or one that lacks a part.
    """
    weights = read_weights(path)
    tensors = under_ldm_names(weights.tensors)
    weights = replace(weights, tensors=tensors)
    refuse_other_kinds(weights)
    described = read_description(description_of(path, tensors))
    if is_sdxl(tensors):
        return _load_sdxl(weights, described, vae, prediction_type)
    second = any(name.startswith(OPEN_CLIP_PREFIX) for name in tensors)
    if not second and not any(name.startswith(f"{TEXT_PREFIX}text_model.") for name in tensors):
        if any(name.startswith("cond_stage_model.") for name in tensors):
            raise UserError(f"{path} has a text encoder of another kind; only {USABLE} can be used")
        raise UserError(f"{path} has no text encoder: it was left out to save room; give the whole checkpoint")
    unet = load_unet(path, tensors, described)
    text_encoder, tokenizer = (open_clip_text if second else clip_text)(path, tensors, described)
    _check_width(path, unet, text_encoder.config.hidden_size)
    prediction = asked_prediction_type(path, prediction_type, _told_prediction_type(described, weights))
    if prediction is None:
        prediction = measured_prediction_type(unet) if second else "epsilon"
    side = int(described.model.get("image_size", _SIDE))  # Stability's .yaml files say 64 for both heads
    of_velocity = second and prediction == "v_prediction" and side == _SIDE
    unet.register_to_config(sample_size=_SIDE_OF_VELOCITY if of_velocity else side)
    return StableDiffusionPipeline(
        vae=_autoencoder(path, tensors, vae, float(described.model.get("scale_factor", _LATENT_SCALE))),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=_scheduler(described, prediction, tensors),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _load_sdxl(
    weights: Weights, described: Described, vae: Path | None, prediction_type: str | None
) -> StableDiffusionXLPipeline:
    path, tensors = weights.path, weights.tensors
    prefixes = {"first": FIRST_TEXT_PREFIX, "second": SECOND_TEXT_PREFIX}
    lacking = [which for which, prefix in prefixes.items() if not any(name.startswith(prefix) for name in tensors)]
    strange = min((name for name in tensors if name.startswith(_OF_TEXT_ENCODERS)), default=None)
    if lacking and strange is not None:
        raise UserError(
            f"{path} names its text encoders in a way that is not known, such as {strange}; give a file with SDXL's own"
            f" names ({FIRST_TEXT_PREFIX}…, {SECOND_TEXT_PREFIX}…)"
        )
    if len(lacking) == 2:
        raise UserError(f"{path} has no text encoders: they were left out to save room; give the whole checkpoint")
    if lacking:
        raise UserError(f"{path} lacks the {lacking[0]} of its two text encoders; give the whole checkpoint")
    unet = load_unet(path, tensors, described)
    first, tokenizer = clip_text(path, tensors, described, FIRST_TEXT_PREFIX)
    second, tokenizer_2 = second_text_of_sdxl(path, tensors, tokenizer)
    _check_width(path, unet, first.config.hidden_size + second.config.hidden_size)
    unet.register_to_config(sample_size=int(described.model.get("image_size", _SIDE_OF_SDXL)))
    told = _told_prediction_type(described, weights)
    prediction = asked_prediction_type(path, prediction_type, told) or "epsilon"
    return StableDiffusionXLPipeline(
        vae=_autoencoder(path, tensors, vae, float(described.model.get("scale_factor", _LATENT_SCALE_OF_SDXL))),
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=unet,
        scheduler=_scheduler(described, prediction, tensors),
        add_watermarker=False,
    )


def _check_width(path: Path, unet: UNet2DConditionModel, width: int) -> None:
    wanted = unet.config.cross_attention_dim
    if width != wanted:
        raise UserError(f"{path} does not fit together: its UNet reads text {wanted} wide, its text is {width} wide")


def _autoencoder(path: Path, tensors: Tensors, vae: Path | None, scale: float) -> AutoencoderKL:
    return load_autoencoder(path, part_of(tensors, VAE_PREFIX), scale) if vae is None else load_vae(vae, scale)


def unet_config(tensors: Mapping[str, Tensor], described: Described = NOTHING) -> dict[str, Any]:
    """The configuration of a diffusers UNet, by the names and shapes of an LDM checkpoint's. Values are not read."""
    blocks = [f"{UNET_PREFIX}input_blocks.{number}." for number in range(count(tensors, UNET_PREFIX + "input_blocks."))]
    levels: list[list[str]] = [[]]
    for block in blocks[1:]:
        if f"{block}0.op.weight" in tensors:
            levels.append([])
        else:
            levels[-1].append(block)
    channels = [tensors[f"{level[0]}0.out_layers.3.weight"].shape[0] for level in levels]
    depths = [count(tensors, f"{level[0]}1.transformer_blocks.") for level in levels]
    key = next(name for name in tensors if name.startswith(UNET_PREFIX) and name.endswith(TEXT_KEY_ENDING))
    linear = tensors[f"{key.partition('transformer_blocks')[0]}proj_in.weight"].ndim == 2
    heads: Any = int(described.unet.get("num_heads", -1))
    if heads < 1:
        width = int(described.unet.get("num_head_channels", _HEAD_WIDTH if linear else -1))
        heads = [max(1, channel // width) for channel in channels] if width > 0 else _HEADS
    attend = [depth > 0 for depth in depths]
    return {
        "in_channels": tensors[FIRST_LAYER].shape[1],
        "out_channels": tensors[f"{UNET_PREFIX}out.2.weight"].shape[0],
        "down_block_types": ["CrossAttnDownBlock2D" if each else "DownBlock2D" for each in attend],
        "up_block_types": ["CrossAttnUpBlock2D" if each else "UpBlock2D" for each in reversed(attend)],
        "block_out_channels": channels,
        "layers_per_block": len(levels[0]),
        "transformer_layers_per_block": [max(1, depth) for depth in depths],
        "attention_head_dim": heads,
        "cross_attention_dim": tensors[key].shape[1],
        "use_linear_projection": linear,
        **_added_conditioning(tensors),
    }


def _added_conditioning(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What SDXL's UNet is told beside the text: pooled text, and six numbers of sizes, each as 256 waves."""
    first = tensors.get(f"{UNET_PREFIX}label_emb.0.0.weight")
    if first is None:
        return {}
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": _WAVES,
        "projection_class_embeddings_input_dim": first.shape[1],
    }


def load_unet(path: Path, tensors: Tensors, described: Described) -> UNet2DConditionModel:
    """The UNet of a checkpoint's tensors. Raises UserError if it is incomplete."""
    with whole(path, "UNet"):
        config = unet_config(tensors, described)
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(config)
    own = {key: unet_name(key, config) for key in unet.state_dict()}
    others = {name for name in tensors if name.startswith(UNET_PREFIX)}.difference(own.values())
    if others:
        raise UserError(
            f"the UNet of {path} has parts that Stable Diffusion's does not have, such as {min(others)}: it is of"
            " another kind, or quantized; give a file in float16 or float32"
        )
    return filled(path, "UNet", unet, lambda key: tensors.get(own[key]))


def measured_prediction_type(unet: UNet2DConditionModel) -> str:
    """What a UNet of Stable Diffusion 2 predicts, told by its answer where all is noise, as the WebUI tells it.

    There the noise is the input itself, and velocity is far below it. (is_using_v_parameterization_for_sd2 in the
    WebUI's modules/sd_models_config.py has the input and the threshold.)
    """
    unet.float()
    noise = torch.full((1, 4, 8, 8), 0.5)
    text = torch.full((1, 2, unet.config.cross_attention_dim), 0.5)
    with torch.no_grad():
        answer = unet(noise, torch.tensor([999]), encoder_hidden_states=text).sample
    return "v_prediction" if (answer - noise).mean().item() < -1 else "epsilon"


def asked_prediction_type(path: Path, asked: str | None, told: str | None) -> str | None:
    """What the UNet is to predict: as a person asked, else as the model tells; where they differ, that is said."""
    if asked is not None and told not in (None, asked):
        logger.warning(
            "%s says that it predicts %s; it is used as one that predicts %s, as you asked", path, told, asked
        )
    return asked or told


def _told_prediction_type(described: Described, weights: Weights) -> str | None:
    """What the .yaml, a key of the file (`v_pred`) or its metadata (modelspec) say that the UNet predicts."""
    said = described.model.get("parameterization") or weights.metadata.get("modelspec.prediction_type")
    if said is not None:
        prediction = _PREDICTIONS.get(str(said).lower().replace("-", "_"))
        if prediction is None:
            raise UserError(f"{weights.path} predicts {said!r}; only epsilon and v_prediction can be trained")
        return prediction
    return "v_prediction" if "v_pred" in weights.tensors else None


def _scheduler(described: Described, prediction_type: str, keys: Collection[str]) -> DDIMScheduler:
    """The noise schedule; it ends in nothing but noise if the file says so (`ztsnr`), which takes velocity to learn."""
    model, zero_terminal_snr = described.model, "ztsnr" in keys and prediction_type == "v_prediction"
    return DDIMScheduler(
        num_train_timesteps=int(model.get("timesteps", 1000)),
        beta_start=float(model.get("linear_start", 0.00085)),
        beta_end=float(model.get("linear_end", 0.012)),
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        rescale_betas_zero_snr=zero_terminal_snr,
        timestep_spacing="trailing" if zero_terminal_snr else "leading",
    )
