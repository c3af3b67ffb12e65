"""Which model `--model` names: "toy", a diffusers folder, or a single-file checkpoint."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging
from safetensors import SafetensorError, safe_open

from ..errors import UserError
from ..text_features import captions_beside
from . import toy
from .diffusers_backend import DiffusersBackend

logging.set_verbosity_error()
logging.disable_progress_bar()

CHECKPOINT_SUFFIXES = (".safetensors", ".ckpt")


def best_device() -> torch.device:
    """The GPU if this machine has one that torch can use, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def load_model(name: str, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> DiffusersBackend:
    """The model of that name on `device`, its UNet and text encoder in `dtype`, its VAE in float32.

    Raises UserError if there is no such model, or it is none that can be trained.
    """
    pipeline = toy.load() if name == "toy" else _load_pipeline(Path(name))
    device = device or best_device()
    pipeline.unet.to(device, dtype)
    pipeline.text_encoder.to(device, dtype)
    pipeline.vae.to(device, torch.float32)  # half-precision VAEs overflow on some pictures
    if name == "toy":
        return DiffusersBackend(pipeline, name, _short_hash(toy.CHECKPOINT), captions_beside(toy.CHECKPOINT))
    path = Path(name)
    return DiffusersBackend(pipeline, path.stem, _short_hash(_weights(path)), captions_beside(path))


def _load_pipeline(path: Path) -> StableDiffusionPipeline:
    options: dict[str, Any] = {"safety_checker": None, "requires_safety_checker": False}
    try:
        if path.is_dir():
            _refuse_other_pipelines(path)
            return StableDiffusionPipeline.from_pretrained(path, local_files_only=True, **options)
        if path.suffix in CHECKPOINT_SUFFIXES and path.is_file():
            _refuse_other_checkpoints(path)
            config = path.with_suffix(".yaml")
            return StableDiffusionPipeline.from_single_file(
                str(path), original_config=str(config) if config.is_file() else None, **options
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} cannot be loaded as a Stable Diffusion model: {reason}") from error
    raise UserError(
        f"there is no model {str(path)!r}; give toy, a folder in diffusers' layout, or a checkpoint file"
        f" ({', '.join(CHECKPOINT_SUFFIXES)})"
    )


def _refuse_other_pipelines(folder: Path) -> None:
    index = folder / "model_index.json"
    if not index.is_file():
        raise UserError(f"{folder} is no diffusers model: it has no model_index.json")
    kind = json.loads(index.read_text()).get("_class_name", "")
    if "StableDiffusionXL" in kind:
        raise UserError(f"{folder} is an SDXL model; training SDXL is not possible yet, use a model of SD 1 or 2")
    if kind != "StableDiffusionPipeline":
        raise UserError(f"{folder} is a {kind}; only Stable Diffusion 1 and 2 can be used")


def _refuse_other_checkpoints(path: Path) -> None:
    if path.suffix != ".safetensors":
        return
    with safe_open(str(path), framework="pt") as file:
        keys = set(file.keys())
    if any(key.startswith("conditioner.embedders.") for key in keys):
        raise UserError(f"{path} is an SDXL model; training SDXL is not possible yet, use a model of SD 1 or 2")
    if not any(key.startswith("model.diffusion_model.") for key in keys):
        raise UserError(f"{path} is no Stable Diffusion checkpoint: it has no UNet (model.diffusion_model)")


def _weights(path: Path) -> Path | None:
    if path.is_file():
        return path
    return next(iter(sorted((path / "unet").glob("*.safetensors"))), None)


def _short_hash(path: Path | None) -> str:
    """The first ten digits of the file's SHA-256, as the WebUI shows them for checkpoints."""
    if path is None:
        return ""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:10]
