"""A loaded checkpoint for the stand-in WebUI: the tiny UNet, and a text encoder that knows embeddings."""

from __future__ import annotations

import re
import zlib
from types import SimpleNamespace

import torch
from modules import sd_hijack
from torch import Tensor, nn
from torch.nn import functional as F

from tiny import WIDTH, TinyUNet

CONTEXT = 77
ENTRIES = {"rare+entry": 3}  # of the vocabulary, which as text is read as three


class TinyTextEncoder(nn.Module):
    """Words are runs of letters, of digits, or of other characters; the last piece of a word has an id of its own."""

    def tokenize(self, texts):
        return [
            [piece for word in re.findall(r"[a-zA-Z]+|\d|[^\sa-zA-Z\d]+", text) for piece in _ids(word)]
            for text in texts
        ]

    def tokenize_line(self, line):
        return None, len(self.tokenize([line])[0])

    def encode_embedding_init_text(self, init_text, nvpt):
        return torch.stack([_vector(piece) for piece in self.tokenize([init_text])[0][:nvpt]])

    @property
    def tokenizer(self):
        return SimpleNamespace(get_vocab=lambda: ENTRIES)

    @property
    def wrapped(self):
        """Where the host keeps the table of vectors, wrapped by its own lookup of embeddings."""
        table = SimpleNamespace(
            wrapped=SimpleNamespace(weight=torch.stack([_vector(n) for n in range(1 + max(ENTRIES.values()))]))
        )
        return SimpleNamespace(
            transformer=SimpleNamespace(text_model=SimpleNamespace(embeddings=SimpleNamespace(token_embedding=table)))
        )

    def forward(self, texts) -> Tensor:
        """In pieces of 75, as the host does; all of a call as long as the longest."""
        return torch.stack([torch.cat([self._encode(piece) for piece in _pieces(ids)]) for ids in self.tokenize(texts)])

    def _encode(self, tokens) -> Tensor:
        rows, position = [_vector(0)[None]], 0
        while position < len(tokens):
            for ids, embedding in sd_hijack.model_hijack.embedding_db.ids_lookup.get(tokens[position], []):
                if tokens[position : position + len(ids)] == ids:
                    rows.append(embedding.vec)
                    position += len(ids)
                    break
            else:
                rows.append(_vector(tokens[position])[None])
                position += 1
        end = torch.cat(rows[1:]).sum(dim=0, keepdim=True) if tokens else _vector(1)[None]
        return torch.cat([*rows, end, torch.zeros(CONTEXT, WIDTH)])[:CONTEXT]


def _pieces(tokens):
    return [tokens[start : start + CONTEXT - 2] for start in range(0, max(1, len(tokens)), CONTEXT - 2)]


def _ids(word: str) -> list[int]:
    pieces = list(word) if not word[0].isalnum() else [word]
    return [zlib.crc32((piece + "</w>" * (index == len(pieces) - 1)).encode()) for index, piece in enumerate(pieces)]


def _vector(number: int) -> Tensor:
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(number))


class TinyAutoencoder(nn.Module):
    def encode(self, pixels: Tensor) -> SimpleNamespace:
        pooled = F.avg_pool2d(pixels, 8)
        mean = torch.cat([pooled, pooled.mean(dim=1, keepdim=True)], dim=1)
        return SimpleNamespace(mean=mean, std=torch.full_like(mean, 0.2))


class TinyHostModel(nn.Module):
    """What `shared.sd_model` is. As in the host, the UNet's weights ask for gradients."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.model = nn.Module()
        self.model.diffusion_model = TinyUNet()
        self.model.conditioning_key = "crossattn"
        self.cond_stage_model = TinyTextEncoder()
        self.first_stage_model = TinyAutoencoder()
        self.sd_checkpoint_info = SimpleNamespace(
            model_name="tiny",
            shorthash="0123456789",
            title="tiny.safetensors [0123456789]",
            filename="tiny.safetensors",
        )
        self.is_sdxl = self.is_sd2 = self.lowvram = False
        self.parameterization, self.scale_factor, self.image_size = "eps", 0.5, 2
        self.alphas_cumprod = torch.linspace(0.99, 0.01, 100)

    def apply_model(self, x_noisy, t, cond):
        return self.model.diffusion_model(x_noisy, t, cond["c_crossattn"][0])
