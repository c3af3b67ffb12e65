"""MODEL and CLIP of a stand-in: what the node leans on in ComfyUI's classes, around the small model of tiny.py."""

from __future__ import annotations

import copy
import re
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tiny import WIDTH, WORDS, TinyUNet

START, END = 100, 101


class ModelPatcher:
    def __init__(self, model: Any) -> None:
        self.model = model
        self.patches: dict[str, list[tuple[float, Any]]] = {}

    def clone(self) -> ModelPatcher:
        cloned = ModelPatcher(self.model)
        cloned.patches = {key: patches[:] for key, patches in self.patches.items()}
        return cloned

    def add_patches(self, patches: dict[str, Any], strength: float) -> list[str]:
        known = self.model.state_dict()
        for key in patches.keys() & known.keys():
            self.patches.setdefault(key, []).append((strength, patches[key]))
        return list(patches.keys() & known.keys())

    def step(self, latents: Tensor, context: Tensor) -> Tensor:
        """A step of the UNet with the patches in its weights, which are put back."""
        weights = {key: self.model.get_parameter(key) for key in self.patches}
        backup = {key: weight.clone() for key, weight in weights.items()}
        with torch.no_grad():
            for key, weight in weights.items():
                for strength, (kind, *matrices) in self.patches[key]:
                    change = matrices[0].float() if kind == "diff" else matrices[0].float() @ matrices[1].float()
                    weight += strength * change
            made = self.model.diffusion_model(latents, torch.tensor([50]), context)
            for key, weight in weights.items():
                weight.copy_(backup[key])
        return made


class Vocabulary:
    """As a tokenizer of transformers: each word and each mark is one id."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        found = re.findall(r"\w+|[^\w\s]", text)
        return {"input_ids": [START, *(WORDS.index(word) if word in WORDS else 50 for word in found), END]}


class SDTokenizer:
    def __init__(self) -> None:
        self.tokenizer = Vocabulary()

    def _try_get_embedding(self, embedding_name: str) -> tuple[Tensor | None, str]:
        return None, ""

    def tokenize_with_weights(self, text: str) -> list[list[tuple[Any, float]]]:
        tokens: list[tuple[Any, float]] = [(START, 1.0)]
        for part, weight in _weighted(text):
            for index, word in enumerate(re.split("(?:^| )embedding:", part)):
                rest = word
                if index:
                    embedding, rest = self._try_get_embedding(word)
                    tokens += [] if embedding is None else [(row, weight) for row in embedding]
                tokens += [(id, weight) for id in self.tokenizer(rest)["input_ids"][1:-1]]
        return [[*tokens, (END, 1.0)]]


def _weighted(text: str) -> list[tuple[str, float]]:
    parts = re.split(r"\((.*?):([\d.]+)\)", text)
    return [(parts[i], 1.0) if i % 3 == 0 else (parts[i], float(parts[i + 1])) for i in range(len(parts)) if i % 3 < 2]


class CLIP:
    def __init__(self, encoders: dict[str, int]) -> None:
        """Text encoders by name, with the width of their words."""
        self.tokenizer = SimpleNamespace(**{name: SDTokenizer() for name in encoders})
        self.cond_stage_model = SimpleNamespace(**{name: _encoder(width) for name, width in encoders.items()})

    def clone(self) -> CLIP:
        return copy.copy(self)


def _encoder(width: int) -> Any:
    words = nn.Embedding(102, width)
    return SimpleNamespace(transformer=SimpleNamespace(get_input_embeddings=lambda: words))


def load() -> tuple[ModelPatcher, CLIP]:
    torch.manual_seed(0)
    model = nn.Module()
    model.diffusion_model = TinyUNet().requires_grad_(False)
    return ModelPatcher(model), CLIP({"clip_l": WIDTH})
