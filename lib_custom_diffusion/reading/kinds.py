"""What a file is, told from its first bytes or from the names of its tensors, in words for people."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from ..errors import UserError

START = 1024
"""How many of the first bytes `check_start` looks at."""

DELTA = "a delta"
CHECKPOINT = "it is a whole checkpoint, not what was trained on top of one; --model takes checkpoints"
CHECKPOINT_PARTS = (b"first_stage_model.", b"cond_stage_model.", b"conditioner.embedders.")

_BEGINNINGS = (
    (b"version https://git-lfs", "it is a Git LFS pointer, not the file itself; get the file by `git lfs pull`"),
    (b"\x1f\x8b", "it is a gzip archive; unpack it first"),
    (b"7z\xbc\xaf", "it is a 7z archive; unpack it first"),
    (b"Rar!", "it is a rar archive; unpack it first"),
    (b"GGUF", "it is a GGUF file, a format that cannot be read here; give a .safetensors"),
    (b"\xff\xd8\xff", "it is a JPEG picture; embedding pictures are PNG"),
    (b"RIFF", "it is a WebP picture or a sound; embedding pictures are PNG"),
    (b"GIF8", "it is a GIF picture; embedding pictures are PNG"),
    (b"%PDF", "it is a PDF document"),
)
_TEXT = re.compile(rb"[\t\n\r\x20-\x7e\x80-\xff]*")

# The names of what is in a file, and what that makes it; the first that is found counts.
_CONTENTS = (
    (r"_custom_diffusion\.", "weights of diffusers' Custom Diffusion script"),
    (r"\.hada_w", "a LoHa"),
    (r"\.lokr_w", "a LoKr"),
    (r"\.dora_scale$|\.lora_magnitude_vector", "a DoRA"),
    (r"\.oft_(blocks|diag)|\.oft_R\.", "an OFT, which multiplies weights rather than adding to them"),
    (r"^(lora|lycoris)_.*\.(a1|b1)\.weight$", "a GLoRA"),
    (r"^(lora|lycoris)_.*\.on_input$|\.ia3_l\b", "an IA3, which multiplies weights rather than adding to them"),
    (r"[._]lora[._](up|down|A|B|linear_layer)\b|\.lora_(up|down|A|B|mid)\.", "a LoRA"),
    (r"^(lora_unet_|lycoris_|(model\.)?diffusion_model\.).*\.diff$", "a LoRA of full differences"),
    (r"^(lora|lycoris)_.*\.[wb]_norm$", "changes of norms (LyCORIS)"),
    (r"^control_model\.|input_hint_block|controlnet_", "a ControlNet"),
    (r"^(image_proj|ip_adapter)\b", "an IP-Adapter"),
    (r"motion_modules?\.", "a motion module of AnimateDiff"),
    (r"^(model\.)?diffusion_model\..*attn2\.to_", "weights of cross-attention by the WebUI's names"),
    (r"^(down_blocks|up_blocks|mid_block)\.", "a UNet, or a part of one"),
    (r"^(encoder|decoder)\.(conv_in|down|up|mid)", "a VAE"),
    (r"^text_model\.(encoder|embeddings)\.", "a text encoder"),
)


def check_start(start: bytes, size: int) -> None:
    """Raise UserError, saying what it is, for a file that no format here begins like."""
    if size == 0:
        raise UserError("it is empty; download it again")
    for beginning, what in _BEGINNINGS:
        if start.startswith(beginning):
            raise UserError(what)
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<svg")):
        raise UserError("it is a web page, saved instead of the file; use its download link")
    if text.startswith(b'{"') and start[8:9] != b"{":
        raise UserError("it is a JSON document, such as an error message sent instead of the file; download it again")
    if not any(start):
        raise UserError("it begins with nothing but zeros, as after an interrupted download; download it again")
    if start[257:262] == b"ustar":
        raise UserError("it is a tar archive; unpack it first")
    if size < 9 or (_TEXT.fullmatch(start) and start[:2] != b"PK"):
        raise UserError(
            "it is a text, not tensors; download it again"
            if size >= 9
            else f"it has only {size} byte{'s' if size > 1 else ''}"
        )


def is_checkpoint(names: Iterable[str]) -> bool:
    """Whether tensors of these names are a whole model."""
    parts = tuple(part.decode() for part in CHECKPOINT_PARTS)
    return any(name.startswith(parts) for name in names)


def kind_of(content: Mapping[str, Any], metadata: Mapping[str, str]) -> str:
    """What a file of this content is: "a LoRA", "a VAE"."""
    names = [str(name) for name in content]
    if "json" in metadata and '"entries"' in metadata["json"]:
        return DELTA
    if "string_to_param" in content:
        return "an embedding of the WebUI"
    if "t5" in names and "clip_l" in names:
        return "an embedding for Stable Diffusion 3, FLUX or another model with T5"
    if {"clip_l", "clip_g"} <= set(names) or {"text_encoders_0", "text_encoders_1"} <= set(names):
        return "an embedding for SDXL"
    for part in ("state_dict", "unet"):
        if isinstance(content.get(part), dict) and any("attn2.to_" in str(name) for name in content[part]):
            return "a delta of Adobe's Custom Diffusion"
    for pattern, what in _CONTENTS:
        if any(re.search(pattern, name) for name in names):
            return what
    if {"layer_structure", "activation_func"} <= set(names):
        return "a hypernetwork"
    if {"state", "param_groups"} <= set(names) or "optimizer_state_dict" in names:
        return "the state of an optimizer"
    if isinstance(content.get("state_dict"), dict):
        return "a model, or a part of one"
    if names and all(isinstance(value, Tensor) and value.ndim in (1, 2) for value in content.values()):
        listed = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
        return "an embedding" if len(names) == 1 else f"{len(names)} tensors ({listed})"
    return "of an unknown format" if names else "without content"
