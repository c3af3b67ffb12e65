"""The .yaml beside a checkpoint, in LDM's layout: the WebUI's way to describe what no shape tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from transformers import CLIPTextConfig

from ..errors import UserError
from ..storage import read_text
from . import toy
from .layout import FIRST_TEXT_PREFIX, TEXT_PREFIX, Tensors


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


NOTHING = Described()
"""Of a checkpoint without a .yaml."""


def description_of(path: Path, tensors: Tensors) -> Path:
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
        return NOTHING
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
