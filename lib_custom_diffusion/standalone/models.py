"""Which model `--model` names: a toy, a diffusers folder, a single-file checkpoint, or a model of the Hub."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging
from huggingface_hub import snapshot_download
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from ..backend import PREDICTION_TYPES
from ..errors import UserError, did_you_mean
from ..finite import named, not_finite
from ..storage import is_special, read_text, typed_path
from ..text_features import captions_beside
from .diffusers_backend import DiffusersBackend
from .kinds import USABLE, refuse_folder
from .single_file import asked_prediction_type, load_checkpoint
from .toy import TOYS
from .vae import load_vae, vae_file
from .weights import refuse_torn

logging.set_verbosity_error()
logging.disable_progress_bar()
transformers_logging.disable_progress_bar()

CHECKPOINT_SUFFIXES = (".safetensors", ".ckpt")
_PIPELINES: dict[str, tuple[type[DiffusionPipeline], dict[str, Any]]] = {
    "StableDiffusionPipeline": (
        StableDiffusionPipeline,
        {"safety_checker": None, "requires_safety_checker": False, "feature_extractor": None, "image_encoder": None},
    ),
    "StableDiffusionXLPipeline": (
        StableDiffusionXLPipeline,
        {"add_watermarker": False, "feature_extractor": None, "image_encoder": None},
    ),
}
"""By the name in model_index.json; and what is not asked of a folder, as nothing here uses it."""
_SAME_PARTS = {
    "StableDiffusionImg2ImgPipeline": "StableDiffusionPipeline",
    "StableDiffusionXLImg2ImgPipeline": "StableDiffusionXLPipeline",
}
"""Pipelines of the same models, and which of ours they are loaded as."""
_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_PARTS_OF_SDXL = (*_PARTS, "text_encoder_2", "tokenizer_2")
"""What a pipeline cannot do without."""
_OF_WEIGHTS: dict[str, type] = {
    "unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}  # fmt: skip
_LIBRARIES = ("diffusers", "transformers")
_VOCABULARY = ("tokenizer.json", "vocab.json")  # one is enough
_VARIANT = re.compile(r"\.(\w+?)(?:-\d+-of-\d+)?\.(?:safetensors|bin)$")
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def best_device() -> torch.device:
    """The GPU if this machine has one that torch can use, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def load_model(
    name: str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
    vae: Path | None = None,
    prediction_type: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
    tokenizer: str | None = None,
) -> DiffusersBackend:
    """The model of that name on `device`, its UNet and text encoder in `dtype`, its VAE in float32.

    name:            "toy" or "toy-xl", a diffusers folder, a checkpoint file, or a model of the Hub (OWNER/NAME).
    vae:             a file or folder of a VAE to take instead of the model's own.
    prediction_type: what the UNet predicts, "epsilon" or "v_prediction", if the model doesn't tell.
    revision:        of a model of the Hub. variant: which files of one, such as "fp16".
    tokenizer:       a folder of a tokenizer, or its name on the Hub, to take instead of the model's own.

    Nothing but a name of the Hub asks for a network. Raises UserError if there is no such model, or it is none that
    can be trained.
    """
    if not name.strip():
        raise UserError("the name of the model is empty; give toy, a folder or a file")
    # Looked at before the model, which takes long to load:
    vae = vae_file(vae) if vae is not None else None
    other_tokenizer = _tokenizer(tokenizer) if tokenizer is not None else None
    path = _given(name)
    if path.is_file():
        pipeline = load_checkpoint(path, vae, prediction_type)
    else:
        there = path.is_dir()
        path = Path(os.path.abspath(path)) if there else _from_hub(name.strip(), revision, variant)  # "." has no name
        pipeline = _load_folder(path, prediction_type)
        if vae is not None:
            pipeline.vae = load_vae(vae, pipeline.vae.config.scaling_factor)
    if other_tokenizer is not None:
        pipeline.tokenizer = other_tokenizer
    _refuse_not_finite(pipeline, path, vae)
    device = device or best_device()
    pipeline.unet.to(device, dtype)
    pipeline.text_encoder.to(device, dtype)
    if isinstance(pipeline, StableDiffusionXLPipeline):
        pipeline.text_encoder_2.to(device, dtype)
    pipeline.vae.to(device, torch.float32)  # half-precision VAEs overflow on some pictures
    return DiffusersBackend(pipeline, path.stem, _hash_of(path), captions_beside(path), _parts(vae, tokenizer))


def _refuse_not_finite(pipeline: DiffusionPipeline, path: Path, vae: Path | None) -> None:
    """Raise UserError if a weight that is used is NaN or infinite: the loss would be, too.

    Of SDXL's first text encoder the last layer is not used.
    """
    unused: tuple[str, ...] = ()
    parts = {"UNet": pipeline.unet, "text encoder": pipeline.text_encoder}
    if isinstance(pipeline, StableDiffusionXLPipeline):
        parts |= {"second text encoder": pipeline.text_encoder_2}
        last = pipeline.text_encoder.config.num_hidden_layers - 1
        unused = (f"text_model.encoder.layers.{last}.", "text_model.final_layer_norm.")
    for part, model in parts.items():
        skipped = unused if part == "text encoder" else ()
        broken = not_finite(each for each in model.state_dict().items() if not each[0].startswith(skipped))
        if broken:
            raise UserError(
                f"the {part} of {path} is broken: {named(broken)} values that are NaN or infinite, as a merge in half"
                " precision can leave them; merge it again in float32, or give another model"
            )
    broken = not_finite(pipeline.vae.state_dict().items())
    if broken:
        whose = vae or f"the VAE of {path}"
        raise UserError(f"{whose} is broken: {named(broken)} values that are NaN or infinite; give another by --vae")


def known_of_model(name: str, vae: Path | None, tokenizer: str | None) -> dict[str, str]:
    """What an `Identity` would say of the model that `load_model` loads, as far as its files say it.

    Raises UserError for a VAE that is not there.
    """
    path = _given(name)
    found = _hash_of(path) if path.exists() else ""  # otherwise it may be one of the Hub
    return _parts(vae, tokenizer) | ({"hash": found} if found else {})


def _parts(vae: Path | None, tokenizer: str | None) -> dict[str, str]:
    return {"vae": _hash_of(vae_file(vae)) if vae is not None else "", "tokenizer": tokenizer or ""}


def _given(name: str) -> Path:
    """The file or folder that a model's name stands for."""
    path = TOYS[name].checkpoint if name in TOYS else typed_path(name)
    return path.parent if path.name == "model_index.json" else path  # as file dialogs give a folder


def _load_folder(folder: Path, prediction_type: str | None) -> DiffusionPipeline:
    kind, parts, options = _pipeline_kind(folder)
    try:
        loaded = {part: _load_part(folder / part, of) for part, of in _OF_WEIGHTS.items() if part in parts}
        pipeline = kind.from_pretrained(folder, local_files_only=True, **options, **loaded)
    except UserError:
        raise
    except Exception as error:  # of damaged files and settings, by diffusers, transformers, tokenizers, torch, json
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{folder} cannot be loaded as a Stable Diffusion model: {reason}") from error
    told = pipeline.scheduler.config.get("prediction_type")
    if told is None and "Flow" in type(pipeline.scheduler).__name__:
        raise UserError(
            f"{folder} learned by flow matching ({type(pipeline.scheduler).__name__}); only {USABLE} can be used"
        )
    predicts = asked_prediction_type(folder, prediction_type, told)
    pipeline.scheduler.register_to_config(prediction_type=predicts)
    if predicts not in PREDICTION_TYPES:
        raise UserError(f"{folder} predicts {predicts}; only {' and '.join(PREDICTION_TYPES)} can be trained")
    return pipeline


def _no_model(name: str) -> str:
    """What to say of what is neither a file nor a folder, and can be no name of the Hub."""
    page = re.match(r"https?://huggingface\.co/([\w.-]+/[\w.-]+)/?$", name)
    if page:
        return f"{name} is a page; give what it is called on the Hub, {page[1]}"
    if re.match(r"\w+://", name):
        return f"{name} is an address, from which nothing is downloaded; download the file and give its path"
    path = typed_path(name)
    if path.is_symlink():
        return f"{path} is a link that leads nowhere ({os.readlink(path)})"
    if is_special(path):
        return f"{path} is no ordinary file; give a checkpoint file"
    near = did_you_mean(path.name, (each.name for each in path.parent.iterdir())) if path.parent.is_dir() else ""
    return (
        f"there is no model {name!r}; give toy, a folder in diffusers' layout, a checkpoint file"
        f" ({', '.join(CHECKPOINT_SUFFIXES)}), or a model of the Hub (OWNER/NAME){near}"
    )


def _load_part(folder: Path, of: type) -> Any:
    """One model of a pipeline's folder. Raises UserError unless its files have every tensor of it."""
    files = [file.name for file in folder.iterdir() if file.suffix in (".safetensors", ".bin")]
    safe = any(name.endswith(".safetensors") for name in files)
    model, found = of.from_pretrained(  # type: ignore[attr-defined]
        folder, local_files_only=True, variant=_variant(files), use_safetensors=safe, output_loading_info=True
    )
    missing = sorted(found["missing_keys"])
    if missing:
        raise UserError(f"{folder} is incomplete: its weights lack {missing[0]}; download it again")
    return model


def _variant(files: Iterable[str]) -> str | None:
    """Which of a part's files to take: those without a variant in their names, else fp16 or what there is."""
    variants = {found[1] if (found := _VARIANT.search(name)) else None for name in files}
    if None in variants:
        return None
    return "fp16" if "fp16" in variants else min(variants, default=None)  # type: ignore[type-var]


def _tokenizer(name: str) -> CLIPTokenizer:
    try:
        folder = name if os.path.exists(name) else snapshot_download(name, allow_patterns=["*.json", "*.txt"])
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # of files of all kinds, and of the network
        raise UserError(f"{name} is not a CLIP tokenizer ({type(error).__name__}); leave it out") from error


def _from_hub(name: str, revision: str | None, variant: str | None) -> Path:
    """The folder of a model of the Hub, downloaded unless it was before. Raises UserError if there is none."""
    if not HUB_NAME.fullmatch(name) or name.lower().endswith(CHECKPOINT_SUFFIXES):
        raise UserError(_no_model(name))
    try:
        return Path(DiffusionPipeline.download(name, revision=revision, variant=variant))
    except Exception as error:  # by the network, the Hub, and what it holds
        raise UserError(
            f"there is no file or folder {name!r}, and no such model could be downloaded from the Hub"
            f" ({type(error).__name__})"
        ) from error


def _pipeline_kind(folder: Path) -> tuple[type[DiffusionPipeline], Sequence[str], dict[str, Any]]:
    """The class of a folder's pipeline, its parts, and options to load it with. Raises UserError for another kind."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise UserError(f"{folder} is not a diffusers model: it has no model_index.json{_instead_of(folder)}")
    content = _json(index)
    kind = str(content.get("_class_name", ""))
    kind = _SAME_PARTS.get(kind, kind)
    if kind not in _PIPELINES:
        raise UserError(f"{folder} is a {kind or 'model of unknown kind'}; only {USABLE} can be used")
    parts = _PARTS if kind == "StableDiffusionPipeline" else _PARTS_OF_SDXL
    if (folder / "unet" / "config.json").is_file():  # of another kind some parts may well be missing
        refuse_folder(
            str(folder), kind == "StableDiffusionXLPipeline", _json(folder / "unet" / "config.json"),
            str(content.get("scheduler")),
        )  # fmt: skip
    for part in parts:
        if not isinstance(content.get(part), list) or None in (content[part] or [None]):
            raise UserError(f"{folder} is incomplete: its model_index.json names no {part}")
        if content[part][0] not in _LIBRARIES:  # which diffusers would import, from the folder that one is in as well
            raise UserError(f"{folder} brings code of its own for its {part} ({content[part][0]}), which is not run")
        if not (folder / part).is_dir():
            raise UserError(f"{folder} is incomplete: its folder {part} is missing")
    for part in (each for each in parts if each in _OF_WEIGHTS):
        if "quantization_config" in _json(folder / part / "config.json"):
            raise UserError(f"{folder / part} is quantized; give the model in float16 or float32")
        files = [file for suffix in ("*.safetensors", "*.bin") for file in (folder / part).glob(suffix)]
        if not files:
            raise UserError(f"{folder} is incomplete: its folder {part} holds no weights (.safetensors or .bin)")
        for file in files:
            refuse_torn(file)
    for part in (each for each in parts if each.startswith("tokenizer")):
        if not any((folder / part / name).is_file() for name in _VOCABULARY):
            raise UserError(f"{folder} is incomplete: its folder {part} holds no {' and no '.join(_VOCABULARY)}")
    return _PIPELINES[kind][0], parts, _PIPELINES[kind][1]


def _instead_of(folder: Path) -> str:
    """What to give instead of a folder without a model_index.json, if that can be seen."""
    if (folder.parent / "model_index.json").is_file():
        return f"; it is a part of {folder.parent}, so give that"
    below = sorted(index.parent for depth in ("*", "snapshots/*") for index in folder.glob(f"{depth}/model_index.json"))
    if below:
        return f"; one is in it: give {below[0]}"
    inside = sorted(file.name for file in folder.iterdir() if file.suffix.lower() in CHECKPOINT_SUFFIXES)
    return f"; give a file in it, such as {inside[0]}" if inside else ""


def _json(path: Path) -> dict[str, Any]:
    """What a JSON file holds. Raises UserError if it isn't there, or holds no object."""
    if not path.exists():
        raise UserError(f"{path} is missing: the model is incomplete")
    text = read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not the description of a model")
    return content


def _weights(path: Path) -> Path | None:
    if path.is_file():
        return path
    return next(iter(sorted((path / "unet").glob("*.safetensors"))), None)


def _hash_of(path: Path) -> str:
    """The first ten digits of its weights' SHA-256, as the WebUI shows them for checkpoints; "" if it has none."""
    weights = _weights(path)
    if weights is None:
        return ""
    stat = weights.stat()
    return _short_hash(weights, stat.st_size, stat.st_mtime_ns)


@cache
def _short_hash(path: Path, _size: int, _changed: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:10]
