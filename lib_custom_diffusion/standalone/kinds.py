"""What a file of weights is, told by the names and shapes in it: a model that can be used, or the reason why not.

Names are those of the programs that wrote the files: CompVis' and Stability's single-file layouts, ComfyUI's, kohya's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from ..attention import TEXT_KEY_ENDING
from ..errors import UserError
from ..reading.kinds import is_checkpoint
from .layout import FIRST_TEXT_PREFIX, SECOND_TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX
from .weights import Weights

USABLE = "Stable Diffusion 1, 2 and XL"

_OTHER_MODELS = (
    ("joint_blocks.0.", "Stable Diffusion 3"),
    ("distilled_guidance_layer.", "Chroma"),
    ("single_stream_modulation.", "FLUX.2"),
    ("txt_in.individual_token_refiner.", "HunyuanVideo or HunyuanImage"),
    ("double_blocks.0.img_attn.", "FLUX"),
    ("single_transformer_blocks.0.", "FLUX"),
    ("double_layers.0.", "AuraFlow"),
    ("double_stream_blocks.0.", "HiDream"),
    ("layers.0.adaLN_modulation.", "Lumina or Z-Image"),
    ("cap_embedder.", "Lumina or Z-Image"),
    ("transformer_blocks.0.img_mod.", "Qwen-Image"),
    ("cross_attn.kv_linear.", "PixArt or Sana"),
    ("patchify_proj.", "LTX-Video"),
    ("time_caption_embed.", "Lumina or OmniGen2"),
    ("visual_transformer_blocks.", "Kandinsky 5"),
    ("adaln_modulation_cross_attn.", "Cosmos-Predict2, or a model made of it"),
    ("condition_embedder.time_embedder.", "Wan, a video model"),
    ("adaln_single.", "PixArt or Sana"),
    ("mlp_t5.", "Hunyuan-DiT"),
    ("attn.add_k_proj.", "Stable Diffusion 3, or another model without a UNet"),
    ("encoder_hid_proj.", "Kolors or DeepFloyd IF"),
    ("add_embedding.image_norm.", "Kandinsky 2"),
    ("blocks.0.attn.qkv_x.", "Mochi, a video model"),
    ("head.modulation", "Wan, a video model"),
    ("extra_pos_embedder.", "Cosmos, a video model"),
    ("pos_embedder.dim_spatial_range", "Cosmos, a video model"),
    ("time_stack.", "Stable Video Diffusion"),
    ("temporal_transformer_blocks.", "Stable Video Diffusion"),
    ("temopral_conv.", "ModelScope's video model"),
    ("clip_txt_mapper.", "Stable Cascade"),
    ("channelwise.0.", "Stable Cascade"),
    ("depth_model.", "Stable Diffusion 2 with depth"),
    ("cc_projection.", "Zero-1-to-3"),
    ("cond_stage_model.roberta.", "AltDiffusion"),
    ("embedder.model.visual.", "an unCLIP model, of pictures' variations"),
    ("edm_mean", "Playground 2.5"),
    ("edm_vpred.", "CosXL, or another model of EDM's noise"),
    ("time_embed.cond_proj.", "a latent consistency model"),
    ("time_embedding.cond_proj.", "a latent consistency model"),
)
"""A part of a name that only this model's files have."""

_NO_MODELS = (
    ("lora_unet_", "a LoRA"),
    ("lora_te", "a LoRA"),
    (".lora_down.", "a LoRA"),
    (".lora_A.", "a LoRA"),
    (".lora.down.", "a LoRA"),
    ("_lora.down.", "a LoRA"),
    (".hada_w1_a", "a LoRA (LoHa)"),
    (".lokr_w1", "a LoRA (LoKr)"),
    (".oft_blocks", "an OFT, which is used like a LoRA"),
    (".oft_R.", "an OFT, which is used like a LoRA"),
    ("motion_modules.", "an AnimateDiff motion module"),
    ("control_model.", "a ControlNet"),
    ("controlnet_", "a ControlNet"),
    ("input_hint_block.", "a ControlNet"),
    ("lllite_unet_", "a ControlNet (LLLite)"),
    ("adapter.body.", "a T2I-Adapter"),
    ("body.0.in_conv.", "a T2I-Adapter"),
    ("ip_adapter", "an IP-Adapter"),
    ("layer_structure", "a hypernetwork"),
    ("768.0.linear", "a hypernetwork"),
    ("1024.0.linear", "a hypernetwork"),
)

_TEXT_ENCODER = re.compile(r"^(?:\w+\.)?(?:transformer\.)?(?:text_model\.encoder\.layers|resblocks)\.", re.MULTILINE)

FIRST_LAYER = f"{UNET_PREFIX}input_blocks.0.0.weight"

_TEXT_WIDTH_OF_SDXL, _TEXT_WIDTH_OF_REFINER = 2048, 1280
_MIDDLE = "UNetMidBlock2DCrossAttn"

_CHANNELS = {
    9: "an inpainting model",
    8: "an InstructPix2Pix model",
    7: "an upscaler",
    5: "a depth model",
}
"""What models are that take other latents beside the noisy one's four channels."""


def refuse_other_kinds(weights: Weights) -> None:
    """Raise UserError, which names what the file is, unless it is a checkpoint of a kind that can be used."""
    path, names = weights.path, weights.tensors
    lines = "\n".join(names)
    if FIRST_LAYER not in names:
        raise UserError(f"{path} {_without_unet(weights)}")
    for part, model in _OTHER_MODELS:
        if part in lines:
            raise UserError(f"{path} is {model}; only {USABLE} can be used")
    refuse_channels(str(path), _channels(weights.tensors), _out_channels(weights.tensors))
    if (
        not any(name.startswith(f"{UNET_PREFIX}middle_block.") for name in names)
        and _text_width(names) < _TEXT_WIDTH_OF_SDXL
    ):
        raise UserError(
            f"{path} is a distilled Stable Diffusion, such as small-sd or tiny-sd; only {USABLE} can be used"
        )
    if any(name.startswith(f"{UNET_PREFIX}label_emb.") for name in names) and not is_sdxl(names):
        kind = _with_other_conditioning(weights.tensors)
        if kind is None:
            raise UserError(f"{path} has no text encoders, which would tell what kind it is; give the whole checkpoint")
        raise UserError(f"{path} is {kind}; only {USABLE} can be used")


def is_sdxl(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a checkpoint is of SDXL's kind: its UNet is told of sizes, and reads two text encoders."""
    text = any(name.startswith((FIRST_TEXT_PREFIX, SECOND_TEXT_PREFIX)) for name in tensors)
    two = text or _text_width(tensors) == _TEXT_WIDTH_OF_SDXL
    has_middle = any(name.startswith(f"{UNET_PREFIX}middle_block.1.") for name in tensors)
    return f"{UNET_PREFIX}label_emb.0.0.weight" in tensors and two and has_middle


def refuse_channels(path: str, channels: int | None, out_channels: int | None) -> None:
    """Raise UserError unless a UNet takes and gives four channels, as those numbers say."""
    if channels is not None and channels != 4:
        kind = _CHANNELS.get(channels, "a model of another kind")
        raise UserError(f"{path} is {kind}: its UNet takes {channels} channels, not 4; only {USABLE} can be used")
    if out_channels is not None and out_channels != 4:
        raise UserError(f"{path} is a model of another kind: its UNet gives {out_channels} channels, not 4")


def refuse_folder(path: str, sdxl: bool, unet: Mapping[str, Any], scheduler: str) -> None:
    """Raise UserError for a folder in diffusers' layout of a kind that cannot be used, though its pipeline's can.

    unet: its configuration. scheduler: what model_index.json names.
    """
    refuse_channels(path, unet.get("in_channels", 4), unet.get("out_channels", 4))
    if "EDM" in scheduler:
        raise UserError(f"{path} is Playground 2.5, or another model of EDM's noise; only {USABLE} can be used")
    if unet.get("time_cond_proj_dim"):
        raise UserError(f"{path} is a latent consistency model; train on the model that it was made of")
    if sdxl and unet.get("cross_attention_dim") == _TEXT_WIDTH_OF_REFINER:
        raise UserError(f"{path} is SDXL's refiner; only {USABLE} can be used")
    whole = unet.get("mid_block_type", _MIDDLE) == _MIDDLE and not unet.get("reverse_transformer_layers_per_block")
    if sdxl and not whole:
        raise UserError(f"{path} is a distilled SDXL (SSD-1B, Segmind Vega or KOALA); only {USABLE} can be used")


def _channels(tensors: dict[str, Tensor]) -> int | None:
    first = tensors[FIRST_LAYER]
    return first.shape[1] if first.ndim == 4 else None


def _out_channels(tensors: dict[str, Tensor]) -> int | None:
    last = tensors.get(f"{UNET_PREFIX}out.2.weight")
    return None if last is None or last.ndim != 4 else last.shape[0]


def _text_width(tensors: Mapping[str, Tensor]) -> int:
    keys = (tensors[name] for name in tensors if name.endswith(TEXT_KEY_ENDING) and name.startswith(UNET_PREFIX))
    return next((key.shape[1] for key in keys if key.ndim == 2), 0)


def _with_other_conditioning(tensors: Mapping[str, Tensor]) -> str | None:
    """What a model is that is told more than a text and is no SDXL; None if nothing in the file tells."""
    if f"{UNET_PREFIX}label_emb.weight" in tensors:
        return "an upscaler"
    width = _text_width(tensors)
    if width == _TEXT_WIDTH_OF_REFINER:
        return "SDXL's refiner"
    if width == _TEXT_WIDTH_OF_SDXL:
        return "a distilled SDXL (SSD-1B, Segmind Vega or KOALA)"
    if not any(name.startswith(("conditioner.", "cond_stage_model.")) for name in tensors):
        return None
    return "an unCLIP model, of pictures' variations, or another that is told more than a text"


def _without_unet(weights: Weights) -> str:
    """What a file is that has no UNet under its name in a checkpoint."""
    names, tensors = frozenset(weights.tensors), weights.tensors
    lines = "\n".join(names | weights.entries)
    if "string_to_param" in weights.entries or "emb_params" in names or {"clip_l", "clip_g"} & names:
        return "is an embedding, not a model; give the model that it belongs to, and the embedding by --embedding"
    if _is_delta(weights):
        return "is a delta, not a model; give the model, and the delta in the prompt (<delta:NAME>)"
    for part, thing in _NO_MODELS:
        if part in lines:
            return f"is {thing}, not a model; give the checkpoint that it belongs to"
    for part, model in _OTHER_MODELS:
        if part in lines:
            return f"is {model}; only {USABLE} can be used"
    if "model_ema.diffusion_model" in lines:
        return "has only averaged (EMA) weights under their names in training; give a file that was made for drawing"
    if _starts(names, "down_blocks.") and _starts(names, "mid_block."):
        return "is only the UNet of a diffusers folder; give the folder, which holds model_index.json"
    if any(_starts(names, f"{of}input_blocks.") for of in ("", "diffusion_model.")):
        return "is only a UNet, without a text encoder and a VAE; give the whole checkpoint"
    if is_checkpoint(name for name in names if not name.startswith(VAE_PREFIX)):
        return "has no UNet, only other parts of a checkpoint; give the whole checkpoint"
    if _starts(names, "decoder.conv_in.") or _starts(names, VAE_PREFIX):
        return "is only a VAE; give the model by --model, and the VAE by --vae"
    if _TEXT_ENCODER.search(lines):
        return "is only a text encoder; give the whole checkpoint"
    if "RRDB_trunk" in lines or "model.1.sub." in lines or "rdb1.conv1" in lines:
        return "is an upscaler, not a model to train"
    if "encoder.block.0.layer.0.SelfAttention" in lines:
        return "is only a text encoder (T5) of another kind of model"
    if "vision_model." in lines:
        return "is only an encoder of pictures (CLIP vision)"
    if 0 < len(tensors) <= 2 and all(tensor.ndim <= 2 for tensor in tensors.values()):
        return "is an embedding, or another small file, and no model; give the model that it belongs to"
    if not names and not weights.entries:
        return "holds no weights"
    found = min(names or weights.entries)[:80]
    return f"is not a Stable Diffusion checkpoint: it has no UNet (model.diffusion_model…), but {found}"


def _is_delta(weights: Weights) -> bool:
    described = "custom_diffusion" in weights.metadata or '"entries"' in weights.metadata.get("json", "")
    return described or any(
        name.startswith("embedding.") or name.endswith(f"{TEXT_KEY_ENDING}.US") for name in weights.tensors
    )


def _starts(names: Collection[str], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)
