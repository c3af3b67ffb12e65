"""The toy model in ComfyUI's own classes, by its own loader, which knows models by their shapes."""

from __future__ import annotations

import json
from functools import partial
from typing import Any, ClassVar

import comfy.sd
import comfy.supported_models
import torch
import yaml
from comfy import sd1_clip
from safetensors.torch import load_file

from lib_custom_diffusion.standalone.toy import TOY

TEXT = json.loads((TOY.config / "text_encoder" / "config.json").read_text())
VOCABULARY = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"


class Toy(comfy.supported_models.SD15):
    """The toy's UNet has 4 heads, its latents are not scaled, and its text encoder has its own vocabulary."""

    unet_config = comfy.supported_models.SD15.unet_config | {"context_dim": 128, "model_channels": 64}
    unet_extra_config: ClassVar = {"num_heads": 4, "num_head_channels": -1}

    def __init__(self, unet_config: dict[str, Any]) -> None:
        super().__init__(unet_config)
        self.latent_format.scale_factor = 1.0

    def clip_target(self, state_dict: Any = {}) -> Any:  # noqa: B006 - as ComfyUI has it
        tokenizer = partial(sd1_clip.SDTokenizer, tokenizer_path=str(TOY.config / "tokenizer"), embedding_size=128)
        special = {"start": TEXT["bos_token_id"], "end": TEXT["eos_token_id"], "pad": TEXT["pad_token_id"]}
        encoder = partial(
            sd1_clip.SDClipModel,
            textmodel_json_config=TEXT,
            special_tokens=special,
            return_projected_pooled=False,
        )
        return comfy.supported_models.supported_models_base.ClipTarget(
            partial(sd1_clip.SD1Tokenizer, tokenizer=tokenizer), partial(sd1_clip.SD1ClipModel, clip_model=encoder)
        )


def load(embedding_directory: str) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of the toy, in float32."""
    if Toy not in comfy.supported_models.models:
        comfy.supported_models.models.insert(0, Toy)
    weights = {name: tensor.float() for name, tensor in load_file(TOY.checkpoint).items()}
    words = weights[VOCABULARY]
    weights[VOCABULARY] = torch.cat([words, torch.zeros(49408 - len(words), words.shape[1])])
    prefix = "first_stage_model."
    parts = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    described = yaml.safe_load(TOY.description.read_text())["model"]["params"]["first_stage_config"]["params"]
    vae = comfy.sd.VAE(parts, config={"params": {name: described[name] for name in ("ddconfig", "embed_dim")}})
    model, clip, *_ = comfy.sd.load_state_dict_guess_config(
        weights, output_vae=False, embedding_directory=embedding_directory
    )
    return model, clip, vae
