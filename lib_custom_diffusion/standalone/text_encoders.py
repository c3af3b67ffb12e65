"""The text encoders of a checkpoint, each with its tokenizer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ..errors import UserError
from . import clip, toy
from .checkpoint_parts import filled, part_of, whole
from .description import Described
from .layout import OPEN_CLIP_PREFIX, SECOND_TEXT_PREFIX, TEXT_PREFIX, Tensors, count, open_clip_state

_HEAD_WIDTH = 64  # in every CLIP
_READ_OF_OPEN_CLIP = 23  # of 24 layers, by Stable Diffusion 2


def clip_text(
    path: Path, tensors: Tensors, described: Described, prefix: str = TEXT_PREFIX
) -> tuple[CLIPTextModel, CLIPTokenizer]:
    """The text encoder of Stable Diffusion 1, or the first of SDXL, and its tokenizer."""
    own = part_of(tensors, prefix)
    with whole(path, "text encoder"):
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


def open_clip_text(path: Path, tensors: Tensors, described: Described) -> tuple[CLIPTextModel, CLIPTokenizer]:
    """The text encoder of Stable Diffusion 2, whose last layer but one is read, and its tokenizer."""
    own = part_of(tensors, OPEN_CLIP_PREFIX)
    config, state = _open_clip_config(path, own, described.text.get("layer", "penultimate") == "penultimate")
    return _text_model(path, config, state.get), clip.tokenizer(clip.FIRST, config["max_position_embeddings"])


def second_text_of_sdxl(
    path: Path, tensors: Tensors, of_first: CLIPTokenizer
) -> tuple[CLIPTextModelWithProjection, CLIPTokenizer]:
    """The second text encoder of SDXL, all of its layers as the pooled text comes of the last, and its tokenizer.

    Both encoders have one vocabulary.
    """
    own = part_of(tensors, SECOND_TEXT_PREFIX)
    config, state = _open_clip_config(path, own, False, len(of_first))
    if len(of_first) == clip.WORDS:
        tokenizer = clip.tokenizer(clip.FIRST, config["max_position_embeddings"])
    else:
        tokenizer = copy.deepcopy(of_first)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    with whole(path, "text encoder"):
        projection = own.get("text_projection.weight")
        projection = own["text_projection"].T if projection is None else projection
    config["projection_dim"] = projection.shape[0]
    state = state | {"text_projection.weight": projection.contiguous()}
    return _text_model(path, config, state.get, tokenizer, CLIPTextModelWithProjection), tokenizer


def _open_clip_config(
    path: Path, own: Tensors, but_the_last: bool, expected: int = clip.WORDS
) -> tuple[dict[str, Any], Tensors]:
    """The configuration of an OpenCLIP text encoder, and its tensors by transformers' names."""
    with whole(path, "text encoder"):
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
    return filled(path, "text encoder", model, find)
