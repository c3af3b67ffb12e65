"""LoRA files: reading any, writing kohya's and diffusers'.

A layer goes by a kohya name (`names`) before the first dot, or by a diffusers path after `unet.`, and after it come the
parts of a network (`networks`). The WebUI's built-in Lora and others read words from the same file:
`bundle_emb.TOKEN.string_to_param.*`, or `.clip_l` and `.clip_g` for SDXL.

Two kinds are written, since no file serves all. `lora` has kohya's names and words and nothing else: Forge drops a LoRA
with more than 12 names that it does not know, and InvokeAI takes what is before the first dot for the layer.
`lora-diffusers` has diffusers' names, and its words apart, because diffusers takes no other name into a LoRA. All
layers have one rank in both: diffusers takes the scale of every layer from one of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..attention import text_widths
from ..delta import Delta, Entry, Factors
from ..errors import UserError
from ..reading import Document, vectors
from ..storage import safetensors_bytes
from ..tokens import embedding_pt, embedding_sdxl, file_names
from .base import Base, give_model, resnets_of
from .embeddings import diffusers_file, side_by_side, split_sdxl
from .imported import Imported
from .names import diffusers_path, is_key, key_of, kohya_name, may_be_standard
from .networks import alpha_beside, entry_of

NAMES = {"lora": "lora.safetensors", "lora-diffusers": "pytorch_lora_weights.safetensors"}
_PREFIX = re.compile(
    r"(?:lora_unet[._]|lycoris_unet_|lycoris_|unet\.|base_model\.model\.|(?:model\.)?diffusion_model\.)*"
)
_PART = re.compile(r"(.+?)(\.processor)?[._](to_[qkv]|to_out[._]0|to_out)(_lora)?\.(.+)")
_BUNDLED = re.compile(r"bundle_emb\.(.+?)\.(string_to_param\..*|clip_l|clip_g)")
_BASE_VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
_FOREIGN = 12  # names that Forge does not know and still loads a file with
_NETWORK = re.compile(
    r"[._](lora[._]?(up|down|A|B|linear_layer|magnitude_vector)|hada_w|lokr_w|dora_scale)"
    r"|^(lora_unet_|lycoris_|(model\.)?diffusion_model\.).*\.diff$"
)


def recognises(document: Document) -> bool:
    return any(_NETWORK.search(str(name)) for name in document.content)


def read(document: Document, base: Base | None) -> Imported:
    """Its cross-attention part; all else is listed as dropped.

    Raises UserError for parts that do not fit or that no delta can hold, and without a base for layers whose names need
    one, or whose kind (DoRA) does.
    """
    layers: dict[str, dict[str, Any]] = {}
    words: dict[str, dict[str, Any]] = {}
    dropped = []
    places_of: dict[str, str] = {}
    places = {str(name): _place(str(name)) for name in document.content}
    named = {place for place, _ in places.values()}
    twice = False
    if base is None and not may_be_standard(named):
        twice = any(map(is_key, named))  # as files of ours were: what the diffusers paths say is said by keys as well
        if not twice:
            raise UserError(
                "its layers are not those of Stable Diffusion 1 or 2, and what they are called depends on the model;"
                f" {give_model()} (--model toy if that was the toy model)"
            )
    for name, value in document.content.items():
        bundled, (place, part) = _BUNDLED.fullmatch(str(name)), places[str(name)]
        key = key_of(place, base.resnets if base else 2)
        if twice and key is not None and not is_key(place):
            continue
        if bundled:
            words.setdefault(bundled[1], {})[bundled[2]] = value
        elif key is None:
            dropped.append(str(name))
        else:
            layers.setdefault(key, {})[part] = value
            places_of[key] = place
    for key, place in places_of.items():
        layers[key].setdefault("alpha", alpha_beside(document.metadata, place, layers[key]))
    entries: dict[str, Entry] = {key: entry_of(key, parts, base) for key, parts in layers.items()}
    return Imported(Delta(entries, {token: _word(token, parts) for token, parts in words.items()}), dropped)


def _place(name: str) -> tuple[str, str]:
    """The layer that a tensor belongs to, by any of its names, and which part it is; two empty texts if none."""
    found = _PART.fullmatch(_PREFIX.sub("", name, count=1))
    if found is None:
        return "", ""
    before, _, leaf, _, part = found.groups()
    return f"{before}.{'to_out.0' if leaf == 'to_out' else leaf}", part


def _word(token: str, parts: Mapping[str, Any]) -> Tensor:
    if set(parts) == {"clip_l", "clip_g"}:
        return side_by_side(
            vectors(f"clip_l of {token}", parts["clip_l"]), vectors(f"clip_g of {token}", parts["clip_g"])
        )
    if len(parts) != 1 or "clip_g" in parts:
        raise UserError(f"the word {token} should be one tensor, or clip_l and clip_g, not {', '.join(sorted(parts))}")
    return vectors(token, next(iter(parts.values())))


def write(delta: Delta, base: Base | None, kind: str) -> dict[str, bytes]:
    """A LoRA, and its words in files of their own. Dense entries become full differences, which diffusers cannot read.

    Raises UserError for a delta without layers, dense ones for diffusers, and more words than Forge tolerates.
    """
    if not delta.entries:
        raise UserError("this delta has no layers to make a LoRA from")
    resnets = resnets_of(delta, base)
    rank = max((len(entry.vh) for entry in delta.entries.values() if isinstance(entry, Factors)), default=0)
    tensors: dict[str, Tensor] = {}
    for key, entry in delta.entries.items():
        if kind == "lora":
            of_diffusers = not text_widths(delta.provenance.architecture) and resnets == 2
            tensors |= _of_kohya(kohya_name(key, of_diffusers, resnets), entry, rank)
        else:
            tensors |= _of_diffusers(f"unet.{diffusers_path(key, resnets)}", entry, rank)
    if kind == "lora":
        tensors |= _bundled(delta)
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{name} has values that are not finite as float16; nothing was saved")
    metadata = _metadata(delta, rank) if kind == "lora" else {"format": "pt"}
    return {NAMES[kind]: safetensors_bytes(tensors, metadata), **_word_files(delta, kind)}


def _of_kohya(name: str, entry: Entry, rank: int) -> dict[str, Tensor]:
    if not isinstance(entry, Factors):
        return {f"{name}.diff": entry.half()}
    up, down = _of_rank(entry, rank)
    return {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down, f"{name}.alpha": torch.tensor(float(rank))}


def _of_diffusers(path: str, entry: Entry, rank: int) -> dict[str, Tensor]:
    if not isinstance(entry, Factors):
        raise UserError("diffusers cannot read full differences; leave out --exact, or convert to lora")
    up, down = _of_rank(entry, rank)
    return {f"{path}.lora_B.weight": up, f"{path}.lora_A.weight": down}


def _bundled(delta: Delta) -> dict[str, Tensor]:
    """The words as the WebUI's built-in Lora reads them."""
    tensors: dict[str, Tensor] = {}
    for token, value in delta.embeddings.items():
        name = f"bundle_emb.{_bundle_name(token)}"
        architecture = delta.provenance.architecture
        if text_widths(architecture):
            tensors[f"{name}.clip_l"], tensors[f"{name}.clip_g"] = split_sdxl(token, value, architecture)
        else:
            tensors[f"{name}.string_to_param.*"] = value.float()
    if len(tensors) > _FOREIGN:
        raise UserError(
            f"Forge would reject a LoRA with {len(delta.embeddings)} words; convert the layers to lora-diffusers, or"
            " the words separately (--to embedding)"
        )
    return tensors


def _word_files(delta: Delta, kind: str) -> dict[str, bytes]:
    """A file a word: the WebUI's, or diffusers' and SDXL's, by names that any file system takes."""
    files = {}
    for token, name in file_names(delta.embeddings).items():
        value = delta.embeddings[token]
        architecture = delta.provenance.architecture
        if text_widths(architecture):
            parts = split_sdxl(token, value, architecture)
            files[f"{name}.safetensors"] = embedding_sdxl(parts, delta.provenance.steps)
        elif kind == "lora-diffusers":
            files[f"{name}.safetensors"] = diffusers_file(token, value)
        else:
            files[f"{name}.pt"] = embedding_pt(value, name, delta.provenance.steps)
    return files


def how_to_use(delta: Delta, kind: str, file: str) -> list[str]:
    """What to do with a written LoRA of that name, and with its words beside it, program by program, a line each."""
    words, files = list(delta.embeddings), list(_word_files(delta, kind))
    if kind == "lora-diffusers":
        return [f'diffusers: pipeline.load_lora_weights(FOLDER, weight_name="{file}")', *_in_diffusers(delta, files)]
    names = [each.rpartition(".")[0] for each in files]
    tag, copied = f"<lora:{file.rpartition('.')[0]}:1>", f" and {', '.join(files)} into " if files else ""

    def line(programs: str, folder: str, words_folder: str, written: Sequence[str]) -> str:
        words_too = f"{copied}{words_folder}" if copied and words_folder else ""
        write = f" and write {' '.join(written)}" if written else ""
        return f"{programs}: copy {file} into {folder}{words_too}{write}"

    included = "; the LoRA includes its words" if words else ""
    in_comfyui = [f"embedding:{name}" for name in names]
    lines = [
        line("AUTOMATIC1111, SD.Next", "models/Lora", "", [tag, *words]) + included,
        line("ComfyUI", "models/loras", "models/embeddings", in_comfyui),
        line("reForge, Forge", "models/Lora", "embeddings", [tag, *names]),
    ]
    if not text_widths(delta.provenance.architecture):  # with SDXL's words it has not been tried
        where = "the folder of --lora-model-dir", "the folder of --embd-dir"
        lines.append(line("stable-diffusion.cpp", *where, [tag, *names]))
    return lines


def _in_diffusers(delta: Delta, files: Sequence[str]) -> list[str]:
    """A line for each word."""
    if not text_widths(delta.provenance.architecture):
        return [f'diffusers: pipeline.load_textual_inversion(FOLDER, weight_name="{file}")' for file in files]
    second = "text_encoder=pipeline.text_encoder_2, tokenizer=pipeline.tokenizer_2"
    return [
        f'diffusers: words = safetensors.torch.load_file("{file}");'
        f' pipeline.load_textual_inversion(words["clip_l"], token="{token}");'
        f' pipeline.load_textual_inversion(words["clip_g"], token="{token}", {second})'
        for token, file in zip(delta.embeddings, files, strict=True)
    ]


def _of_rank(entry: Factors, rank: int) -> tuple[Tensor, Tensor]:
    """up (out, rank) and down (rank, in), float16, filled up with zeros.

    One rank for all layers: diffusers takes the scale of every layer from one of them.
    """
    up, down = entry.us.half(), entry.vh.half()
    room = rank - len(down)
    return F.pad(up, (0, room)), F.pad(down, (0, 0, 0, room))


def _bundle_name(token: str) -> str:
    if "." in token:
        raise UserError(f"the WebUI cannot find a token with a dot in a LoRA; rename {token}")
    return token


def _metadata(delta: Delta, rank: int) -> dict[str, str]:
    architecture = delta.provenance.architecture
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(rank),
        "ss_base_model_version": _BASE_VERSIONS.get(architecture, architecture),
        "ss_v2": str(architecture == "sd2"),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture or 'unknown'}/lora",
        "modelspec.implementation": "custom-diffusion",
        "modelspec.trigger_phrase": ", ".join(delta.embeddings),
    }
