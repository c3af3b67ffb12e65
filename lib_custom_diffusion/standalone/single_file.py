"""A single-file checkpoint as a diffusers pipeline, without a network: what diffusers asks the Hub for is in the file.

How many blocks, channels and layers a model has is told by the shapes of its weights. What no shape tells (heads, noise
schedule, what the UNet predicts) is the same in all models of a kind, or stands in the .yaml beside the file, which is
the WebUI's way to describe any other model.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ..attention import TEXT_KEY_ENDING
from ..errors import UserError
from ..storage import read_text
from . import clip, toy
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
    open_clip_state,
    unet_name,
    vae_name,
)
from .other_names import under_ldm_names
from .weights import Weights, read_weights

logger = logging.getLogger(__name__)

_ZERO_AT_FIRST = ("conv_out.weight", "proj_out.weight", "conv2.weight")
"""Layers of UNets that are zero before any training, by diffusers' names."""
_WAVES = 256
_HEADS = 8  # of all attentions in Stable Diffusion 1
_HEAD_WIDTH = 64  # in Stable Diffusion 2 and XL, and in every CLIP
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
_READ_OF_OPEN_CLIP = 23  # of 24 layers, by Stable Diffusion 2
_OLD_VAE_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


@dataclass(frozen=True)
class Described:
    """What a .yaml in LDM's layout says of a checkpoint beside it; empty without one.

    model, unet, text: `params` of the model, its unet_config (SDXL's network_config) and its cond_stage_config, or of
                       the first text encoder of SDXL.
    folder: where the .yaml lies; paths in it are meant from there.
    """

    model: Mapping[str, Any] = field(default_factory=dict)
    unet: Mapping[str, Any] = field(default_factory=dict)
    text: Mapping[str, Any] = field(default_factory=dict)
    folder: Path = Path()


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
    described = read_description(_description_of(path, tensors))
    if is_sdxl(tensors):
        return _load_sdxl(weights, described, vae, prediction_type)
    second = any(name.startswith(OPEN_CLIP_PREFIX) for name in tensors)
    if not second and not any(name.startswith(f"{TEXT_PREFIX}text_model.") for name in tensors):
        if any(name.startswith("cond_stage_model.") for name in tensors):
            raise UserError(f"{path} has a text encoder of another kind; only {USABLE} can be used")
        raise UserError(f"{path} has no text encoder: it was left out to save room; give the whole checkpoint")
    unet = load_unet(path, tensors, described)
    text_encoder, tokenizer = (_open_clip if second else _clip)(path, tensors, described)
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
    first, tokenizer = _clip(path, tensors, described, FIRST_TEXT_PREFIX)
    second, tokenizer_2 = _second_of_sdxl(path, tensors, tokenizer)
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
    return load_autoencoder(path, _part(tensors, VAE_PREFIX), scale) if vae is None else load_vae(vae, scale)


def _description_of(path: Path, tensors: Tensors) -> Path:
    """The .yaml of a checkpoint: that beside it, or for a copy of a toy, which its vocabulary tells, the toy's."""
    beside = path.with_suffix(".yaml")
    if not beside.is_file():
        for prefix, each in ((TEXT_PREFIX, toy.TOY), (FIRST_TEXT_PREFIX, toy.TOY_XL)):
            words = tensors.get(f"{prefix}text_model.embeddings.token_embedding.weight")
            if words is not None and words.shape == _word_shape(each):
                return each.description
    return beside


def _word_shape(each: toy.Toy) -> tuple[int, int]:
    """Of a toy's table of words."""
    config = CLIPTextConfig.from_pretrained(each.config / "text_encoder")
    return config.vocab_size, config.hidden_size


def read_description(path: Path) -> Described:
    """What the .yaml says; nothing if it isn't there. Raises UserError if it is in no layout of LDM's."""
    if not path.is_file():
        return Described()
    written = read_text(path)
    try:
        content = yaml.safe_load(written)
        model = content["model"]["params"]
        unet = (model.get("unet_config") or model["network_config"])["params"]
        text = (model.get("cond_stage_config") or _first_encoder(model)).get("params") or {}
        if "VScaling" in str(model.get("denoiser_config")):  # the way of SDXL's .yaml files to say v
            model = {"parameterization": "v"} | model
        if "image_size" in content["model"]:  # which SDXL's parts don't take
            model = {"image_size": content["model"]["image_size"]} | model
    except (ValueError, RecursionError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} describes no checkpoint in LDM's layout; mend it, or take it away") from error
    return Described(model, unet, text, path.parent)


def _first_encoder(model: Mapping[str, Any]) -> Mapping[str, Any]:
    encoders = (model.get("conditioner_config") or {}).get("params", {}).get("emb_models") or [{}]
    return encoders[0]


def unet_config(tensors: Mapping[str, Tensor], described: Described = Described()) -> dict[str, Any]:
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


def autoencoder_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The configuration of an AutoencoderKL, by names and shapes under LDM's names or diffusers', without a prefix."""
    ldm = count(tensors, "decoder.up.")
    levels = ldm or count(tensors, "decoder.up_blocks.")
    # LDM counts the decoder's levels from the finest, diffusers in the order in which they run.
    blocks = [
        f"decoder.up.{level}.block." if ldm else f"decoder.up_blocks.{levels - 1 - level}.resnets."
        for level in range(levels)
    ]
    return {
        "in_channels": tensors["encoder.conv_in.weight"].shape[1],
        "out_channels": tensors["decoder.conv_out.weight"].shape[0],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": [tensors[f"{block}0.conv1.weight"].shape[0] for block in blocks],
        "layers_per_block": count(tensors, blocks[0]) - 1,
        "latent_channels": tensors["decoder.conv_in.weight"].shape[1],
    }


def load_unet(path: Path, tensors: Tensors, described: Described) -> UNet2DConditionModel:
    """The UNet of a checkpoint's tensors. Raises UserError if it is incomplete."""
    with _whole(path, "UNet"):
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
    return _filled(path, "UNet", unet, lambda key: tensors.get(own[key]))


def load_vae(path: Path, scale: float) -> AutoencoderKL:
    """A VAE by itself: a file in either layout, or a diffusers folder. Latents keep the model's own `scale`.

    Raises UserError if it is none, is incomplete, or belongs to models of other latents.
    """
    path = vae_file(path)
    tensors = read_weights(path).tensors
    return load_autoencoder(path, _part(tensors, VAE_PREFIX) or tensors, scale)


def vae_file(path: Path) -> Path:
    """The file of a VAE that is named by a file or folder. Raises UserError if there is none."""
    if path.is_dir():
        inside = [path / "vae"] if (path / "vae").is_dir() else [path]
        found = sorted(file for folder in inside for kind in ("*.safetensors", "*.bin") for file in folder.glob(kind))
        if not found:
            raise UserError(f"{path} holds no VAE: it has no .safetensors and no .bin file")
        found = [file for file in found if file.name.startswith("diffusion_pytorch_model")] or found
        if len(found) > 1 and not found[0].name.startswith("diffusion_pytorch_model"):
            raise UserError(f"{path} holds {len(found)} files; give the one that is the VAE, such as {found[0].name}")
        path = found[-1]
    if not path.is_file():
        raise UserError(f"there is no VAE {path}")
    return path


def load_autoencoder(path: Path, tensors: Tensors, scale: float) -> AutoencoderKL:
    """A VAE of tensors under LDM's or diffusers' names. Raises as `load_vae`."""
    if "decoder.conv_in.weight" not in tensors:
        raise UserError(f"{path} has no VAE; give one that belongs to the model by --vae FILE")
    with _whole(path, "VAE"):
        config = autoencoder_config(tensors)
    if config["latent_channels"] != 4:
        raise UserError(
            f"{path} holds a VAE of another kind of model: its latents have {config['latent_channels']} channels, not 4"
        )
    with torch.device("meta"):
        vae = AutoencoderKL.from_config({**config, "scaling_factor": scale})
    if any(name.startswith("decoder.up_blocks.") for name in tensors):
        renamed = {_new_vae_name(name): tensor for name, tensor in tensors.items()}
        return _filled(path, "VAE", vae, renamed.get)
    return _filled(path, "VAE", vae, lambda key: tensors.get(vae_name(key, config).removeprefix(VAE_PREFIX)))


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


def _clip(
    path: Path, tensors: Tensors, described: Described, prefix: str = TEXT_PREFIX
) -> tuple[CLIPTextModel, CLIPTokenizer]:
    """The text encoder of Stable Diffusion 1, or the first of SDXL, and its tokenizer."""
    own = _part(tensors, prefix)
    with _whole(path, "text encoder"):
        words, width = own["text_model.embeddings.token_embedding.weight"].shape
        config: dict[str, Any] = dict(
            vocab_size=words,
            hidden_size=width,
            intermediate_size=own["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
            num_hidden_layers=count(own, "text_model.encoder.layers."),
            max_position_embeddings=own["text_model.embeddings.position_embedding.weight"].shape[0],
            hidden_act="quick_gelu",
        )
    folder = described.folder / str(described.text.get("version", ""))
    if not (folder / "vocab.json").is_file():
        of_toy = toy.TOY if prefix == TEXT_PREFIX else toy.TOY_XL
        folder = of_toy.config / "tokenizer"  # a .yaml of the toy that was copied without it
        if words == clip.WORDS:
            return _text_model(path, config, own.get), clip.tokenizer(positions=config["max_position_embeddings"])
        if CLIPTextConfig.from_pretrained(folder).vocab_size != words:
            raise UserError(
                f"{path} has a vocabulary of its own, of {words:,} words: name the folder of its tokenizer"
                f" (cond_stage_config.params.version) in {path.with_suffix('.yaml').name}"
            )
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    if (folder / "config.json").is_file():
        config["num_attention_heads"] = CLIPTextConfig.from_pretrained(folder).num_attention_heads
    return _text_model(path, config, own.get, tokenizer), tokenizer


def _open_clip(path: Path, tensors: Tensors, described: Described) -> tuple[CLIPTextModel, CLIPTokenizer]:
    """The text encoder of Stable Diffusion 2, whose last layer but one is read, and its tokenizer."""
    own = _part(tensors, OPEN_CLIP_PREFIX)
    config, state = _open_clip_config(path, own, described.text.get("layer", "penultimate") == "penultimate")
    return _text_model(path, config, state.get), clip.tokenizer(clip.FIRST, config["max_position_embeddings"])


def _second_of_sdxl(
    path: Path, tensors: Tensors, of_first: CLIPTokenizer
) -> tuple[CLIPTextModelWithProjection, CLIPTokenizer]:
    """The second text encoder of SDXL, all of its layers as the pooled text comes of the last, and its tokenizer.

    Both encoders have one vocabulary.
    """
    own = _part(tensors, SECOND_TEXT_PREFIX)
    config, state = _open_clip_config(path, own, False, len(of_first))
    if len(of_first) == clip.WORDS:
        tokenizer = clip.tokenizer(clip.FIRST, config["max_position_embeddings"])
    else:
        tokenizer = copy.deepcopy(of_first)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    with _whole(path, "text encoder"):
        projection = own.get("text_projection.weight")
        projection = own["text_projection"].T if projection is None else projection
    config["projection_dim"] = projection.shape[0]
    state = state | {"text_projection.weight": projection.contiguous()}
    return _text_model(path, config, state.get, tokenizer, CLIPTextModelWithProjection), tokenizer


def _open_clip_config(
    path: Path, own: Tensors, but_the_last: bool, expected: int = clip.WORDS
) -> tuple[dict[str, Any], Tensors]:
    """The configuration of an OpenCLIP text encoder, and its tensors by transformers' names."""
    with _whole(path, "text encoder"):
        if any(name.startswith("text_model.") for name in own):
            state, layers = own, count(own, "text_model.encoder.layers.")
            if but_the_last:  # which diffusers leaves out when it writes
                layers = min(layers, _READ_OF_OPEN_CLIP)
        else:
            layers = count(own, "transformer.resblocks.") - but_the_last
            state = open_clip_state(own, layers)
        words, width = state["text_model.embeddings.token_embedding.weight"].shape
        config = dict(
            vocab_size=words,
            hidden_size=width,
            intermediate_size=state["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
            num_hidden_layers=layers,
            max_position_embeddings=state["text_model.embeddings.position_embedding.weight"].shape[0],
            hidden_act="gelu",
        )
    if words != expected:
        whose = "OpenCLIP's" if expected == clip.WORDS else "its first text encoder's"
        raise UserError(f"{path} has a vocabulary of {words:,} words; {whose} has {expected:,}")
    return config, state


def _text_model(
    path: Path,
    config: Mapping[str, Any],
    find: Callable[[str], Tensor | None],
    tokenizer: CLIPTokenizer | None = None,
    kind: type = CLIPTextModel,
) -> Any:
    heads = config.get("num_attention_heads", max(1, config["hidden_size"] // _HEAD_WIDTH))
    words = config["vocab_size"]
    begin, end = (words - 2, words - 1) if tokenizer is None else (tokenizer.bos_token_id, tokenizer.eos_token_id)
    with torch.device("meta"):
        model = kind(
            CLIPTextConfig(**{**config, "num_attention_heads": heads, "bos_token_id": begin, "eos_token_id": end})
        )
    positions = torch.arange(config["max_position_embeddings"])[None]
    model.text_model.embeddings.register_buffer("position_ids", positions, persistent=False)
    return _filled(path, "text encoder", model, find)


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


def _new_vae_name(name: str) -> str:
    """The name of today for the parts of an attention in a VAE that an older diffusers wrote."""
    for old, new in _OLD_VAE_NAMES.items():
        name = name.replace(old, new)
    return name


def _part(tensors: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@contextmanager
def _whole(path: Path, part: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, IndexError, ValueError, TypeError, StopIteration) as error:
        lacks = f": it lacks {error.args[0]}" if isinstance(error, KeyError) else ""
        raise UserError(f"the {part} of {path} is incomplete, or of another kind{lacks}") from error


def _filled(path: Path, part: str, model: nn.Module, find: Callable[[str], Tensor | None]) -> Any:
    """The model with its weights. Raises UserError, which names one, if some are missing or of other shapes."""
    state = {}
    for key, own in model.state_dict().items():
        tensor = find(key)
        if tensor is None:
            raise UserError(f"the {part} of {path} is incomplete: it lacks {key} (by diffusers' name)")
        if not tensor.is_floating_point():
            raise UserError(f"the {part} of {path} is quantized ({tensor.dtype}); give a file in float16 or float32")
        if tensor.squeeze().shape != own.squeeze().shape:
            shapes = f"{tuple(tensor.shape)}, not {tuple(own.shape)}"
            raise UserError(f"the {part} of {path} is of another kind: {key} (by diffusers' name) is {shapes}")
        if not key.endswith(_ZERO_AT_FIRST) and _is_blank(tensor):
            raise UserError(
                f"the {part} of {path} is torn: {key} (by diffusers' name) is nothing but zeros; download it again"
            )
        state[key] = tensor.reshape(own.shape)
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def _is_blank(tensor: Tensor) -> bool:
    """Whether a matrix is nothing but zeros, as where a download had room put aside for it and ended early."""
    return tensor.ndim > 1 and not tensor.flatten()[-64:].float().any() and not tensor.float().any()
