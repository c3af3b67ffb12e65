"""The models that look at pictures: CLIP, DINO, and the toy's judge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub import HfApi, snapshot_download
from PIL import Image
from torch import Tensor

from ...errors import UserError
from ..toy.judge import Judge

CLIP = "openai/clip-vit-base-patch32"
"""The model that CustomConcept101 measures by."""

_BATCH = 32
_PATIENCE = 20.0  # seconds that the Hub may take to answer


class Eyes(Protocol):
    """What pictures and captions are compared by."""

    name: str
    text_scale: float
    """What the cosine of a picture and its caption is multiplied by."""

    def things(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Features (n, d) that are near for pictures of one thing."""
        ...

    def meanings(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Features (n, d) that are near those of true captions."""
        ...

    def captions(self, captions: Sequence[str]) -> Tensor:
        """Features (n, d) of captions."""
        ...

    def contents(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Features (n, d) whose distribution KID compares."""
        ...


class ClipEyes:
    """CLIP, as transformers loads it. Raises UserError if there is no such model."""

    text_scale = 2.5

    def __init__(self, name: str, device: torch.device) -> None:
        from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

        self.name, self.device = name, device
        self.model, self.processor, self.tokenizer = _loaded(
            name, "--clip", CLIPModel, CLIPImageProcessor, CLIPTokenizer
        )
        self.model.to(device).eval()

    @torch.no_grad()
    def things(self, pictures: Sequence[Image.Image]) -> Tensor:
        return _in_batches(pictures, self._features)

    meanings = contents = things

    @torch.no_grad()
    def captions(self, captions: Sequence[str]) -> Tensor:
        def features(batch: Sequence[str]) -> Tensor:
            words = self.tokenizer(list(batch), padding=True, truncation=True, return_tensors="pt").to(self.device)
            return self.model.get_text_features(**words)

        return _in_batches(captions, features)

    def _features(self, pictures: Sequence[Image.Image]) -> Tensor:
        pixels = self.processor([picture.convert("RGB") for picture in pictures], return_tensors="pt").pixel_values
        return self.model.get_image_features(pixel_values=pixels.to(self.device))


class DinoEyes:
    """DINO or another vision transformer, by its class token. Raises UserError if there is no such model."""

    def __init__(self, name: str, device: torch.device) -> None:
        from transformers import AutoImageProcessor, AutoModel

        self.name, self.device = name, device
        self.model, self.processor = _loaded(name, "--dino", AutoModel, AutoImageProcessor)
        self.model.to(device).eval()

    @torch.no_grad()
    def things(self, pictures: Sequence[Image.Image]) -> Tensor:
        def features(batch: Sequence[Image.Image]) -> Tensor:
            pixels = self.processor([picture.convert("RGB") for picture in batch], return_tensors="pt").pixel_values
            return self.model(pixel_values=pixels.to(self.device)).last_hidden_state[:, 0]

        return _in_batches(pictures, features)


class JudgeEyes:
    """The toy's judge, which knows the toy's world and nothing else."""

    name = "the toy's judge"
    text_scale = 1.0

    def __init__(self) -> None:
        self.judge = Judge.load()

    def things(self, pictures: Sequence[Image.Image]) -> Tensor:
        return self.judge.embed_pictures(pictures)

    def meanings(self, pictures: Sequence[Image.Image]) -> Tensor:
        return self.judge.embed_meanings(pictures)

    def captions(self, captions: Sequence[str]) -> Tensor:
        return self.judge.embed_texts(captions)

    def contents(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Both features in equal parts, as `Judge.drift` has them, as long as the root of their count."""
        both = torch.cat([self.things(pictures), self.meanings(pictures)], dim=1)
        return both * (both.shape[1] / 2) ** 0.5


def _in_batches(items: Sequence[Any], features: Any) -> Tensor:
    found = [features(items[start : start + _BATCH]).float().cpu() for start in range(0, len(items), _BATCH)]
    return torch.cat(found)


def _loaded(name: str, flag: str, *kinds: Any) -> list[Any]:
    here = Path(name).is_dir() or _is_downloaded(name)
    try:
        if not here:
            _ask_hub(name)
        return [kind.from_pretrained(name, local_files_only=here) for kind in kinds]
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{name} cannot be loaded: {reason}; give {flag} a folder with such a model, or its name on the Hub"
        ) from error


def _is_downloaded(name: str) -> bool:
    """Whether a model of the Hub is in the cache, its weights included."""
    try:
        folder = Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):  # there is none, or it is no name that a model can have
        return False
    return any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))


def _ask_hub(name: str) -> None:
    """Raise OSError if the Hub does not give a model: from_pretrained would ask for each file, and many times."""
    try:
        HfApi().model_info(name, timeout=_PATIENCE)
    except OSError as error:
        reason = f"it is not a folder, and could not be downloaded from the Hub ({type(error).__name__})"
        raise OSError(reason) from error
