"""SDXL whose two text encoders read a small vocabulary of their own, as the toy's do.

The host knows OpenCLIP's encoders by names with sizes, and reads their captions with CLIP's vocabulary whatever the
checkpoint's .yaml says. So its OpenCLIP is told the toy's sizes, and of an SDXL whose second encoder has as many words
as the first one's tokenizer, the second reads captions with that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

OPEN_CLIP = Path(__file__).resolve().parents[1] / "standalone" / "toy" / "config-xl" / "open_clip"


def make_known() -> None:
    """Tell OpenCLIP the sizes of the toy's text encoder, before a checkpoint is loaded."""
    import open_clip

    if OPEN_CLIP.is_dir():
        open_clip.add_model_config(OPEN_CLIP)


def follow_model(model: Any) -> None:
    """Have the second text encoder of a model that was loaded read the first one's words, if it has as many."""
    embedders: Any = getattr(getattr(model, "conditioner", None), "embedders", ())
    first = next((each for each in embedders if hasattr(each, "tokenizer")), None)
    if first is None:  # SDXL's refiner, and all but SDXL
        return
    for place, embedder in enumerate(embedders):
        if type(embedder).__name__ == "FrozenOpenCLIPEmbedder2WithCustomWords":
            words = embedder.wrapped.model.token_embedding.wrapped.num_embeddings
            if words == len(first.tokenizer) != _open_clip_words():
                embedders[place] = _reading(embedder, first.tokenizer)


def _open_clip_words() -> int:
    from modules import sd_hijack_open_clip

    return len(sd_hijack_open_clip.tokenizer.encoder)


def _reading(embedder: Any, tokenizer: Any) -> Any:
    """The host's encoder with another vocabulary."""

    class OwnVocabulary(type(embedder)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(embedder.wrapped, embedder.hijack)
            self.vocabulary = tokenizer.get_vocab()
            self.comma_token = self.vocabulary.get(",</w>")
            self.id_start, self.id_end = tokenizer.bos_token_id, tokenizer.eos_token_id

        def tokenize(self, texts: list[str]) -> list[list[int]]:
            return tokenizer(texts, truncation=False, add_special_tokens=False)["input_ids"]

        def encode_embedding_init_text(self, init_text: str, nvpt: int) -> Tensor:
            table = self.wrapped.model.token_embedding.wrapped
            return table(torch.tensor(self.tokenize([init_text])[0], device=table.weight.device))

    return OwnVocabulary()
