"""A loaded checkpoint for the stand-in WebUI: the tiny UNet, and a text encoder that knows embeddings."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator
from types import SimpleNamespace

import torch
from modules import sd_hijack, shared
from modules.prompt_parser import parse_prompt_attention
from torch import Tensor, nn
from torch.nn import functional as F

from lib_custom_diffusion.attention import cross_attentions
from tiny import CHANNELS, WIDTH, TinyUNet

CONTEXT = 77
ROOM = CONTEXT - 2
LEFT = 2  # of the vectors of SDXL's words, how wide those of the first text encoder are; the others are WIDTH
ENTRIES = {"rare+entry": 3}  # of the vocabulary, which as text is read as three


class TinyTextEncoder(nn.Module):
    """Words are runs of letters, of digits, or of other characters; the last piece of a word has an id of its own."""

    def tokenize(self, texts):
        return [
            [piece for word in re.findall(r"[a-zA-Z]+|\d|[^\sa-zA-Z\d]+", text) for piece in _ids(word)]
            for text in texts
        ]

    def tokenize_line(self, line):
        pieces = self._pieces(line)
        return pieces, (len(pieces) - 1) * ROOM + len(pieces[-1])

    def encode_embedding_init_text(self, init_text, nvpt):
        return torch.stack([self.vector_of(piece) for piece in self.tokenize([init_text])[0][:nvpt]])

    def vector_of(self, number: int) -> Tensor:
        return _vector(number)

    def vectors_of(self, embedding) -> Tensor:
        return embedding.vec

    @property
    def tokenizer(self):
        return SimpleNamespace(get_vocab=lambda: ENTRIES)

    @property
    def wrapped(self):
        """Where the host keeps the table of vectors, wrapped by its own lookup of embeddings."""
        table = SimpleNamespace(
            wrapped=SimpleNamespace(weight=torch.stack([self.vector_of(n) for n in range(1 + max(ENTRIES.values()))]))
        )
        return SimpleNamespace(
            transformer=SimpleNamespace(text_model=SimpleNamespace(embeddings=SimpleNamespace(token_embedding=table)))
        )

    def forward(self, texts) -> Tensor:
        """All of a call as long as the longest."""
        return torch.stack([torch.cat([self._encode(piece) for piece in self._pieces(text)]) for text in texts])

    def _pieces(self, line: str) -> list[list[Tensor]]:
        """Vectors of a prompt's positions, times their weights, in pieces of 75 and up to each BREAK."""
        parsed = parse_prompt_attention(line) if shared.opts.emphasis != "None" else [[line, 1.0]]
        pieces: list[list[Tensor]] = [[]]
        for text, weight in parsed:
            if [text, weight] == ["BREAK", -1]:
                pieces[-1] += [torch.zeros_like(self.vector_of(0))] * (ROOM - len(pieces[-1]))
                continue
            for vectors in self._found(self.tokenize([text])[0]):
                if len(pieces[-1]) + len(vectors) > ROOM:
                    pieces.append([])
                pieces[-1] += list(weight * vectors)
        return pieces

    def _found(self, tokens) -> Iterator[Tensor]:
        """Vectors (n, width) of each token, and of each embedding where its tokens stand."""
        position = 0
        while position < len(tokens):
            for ids, embedding in sd_hijack.model_hijack.embedding_db.ids_lookup.get(tokens[position], []):
                if tokens[position : position + len(ids)] == ids:
                    yield self.vectors_of(embedding)
                    position += len(ids)
                    break
            else:
                yield self.vector_of(tokens[position])[None]
                position += 1

    def _encode(self, piece: list[Tensor]) -> Tensor:
        end = torch.stack(piece).sum(dim=0) if piece else self.vector_of(1)
        return torch.stack([self.vector_of(0), *piece, end, *[torch.zeros_like(end)] * (ROOM - len(piece))])


def _ids(word: str) -> list[int]:
    pieces = list(word) if not word[0].isalnum() else [word]
    return [zlib.crc32((piece + "</w>" * (index == len(pieces) - 1)).encode()) for index, piece in enumerate(pieces)]


def _vector(number: int) -> Tensor:
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(number))


class TinyAutoencoder(nn.Module):
    """As the host's: parts that together tell the mean and the logarithm of the variance of latents."""

    def __init__(self) -> None:
        super().__init__()
        self.quant_conv = nn.Conv2d(8, 8, 1)
        with torch.no_grad():
            self.quant_conv.weight.copy_(torch.eye(8)[:, :, None, None])
            self.quant_conv.bias.zero_()

    def encoder(self, pixels: Tensor) -> Tensor:
        pooled = F.avg_pool2d(pixels, 8)
        mean = torch.cat([pooled, pooled.mean(dim=1, keepdim=True)], dim=1)
        return torch.cat([mean, torch.full_like(mean, 2 * math.log(0.2))], dim=1)


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


class TinySizes:
    """One of the conditioner's parts that read numbers: here they are what they become."""

    def __init__(self, input_key: str) -> None:
        self.input_key = input_key

    def __call__(self, numbers: Tensor) -> Tensor:
        return numbers / 100


class HalfTextEncoder(TinyTextEncoder):
    """SDXL has two such: each sees its own part of a word's vectors, and the second pools."""

    def __init__(self, key: str, columns: slice) -> None:
        super().__init__()
        self.key, self.columns, self.input_key = key, columns, "txt"

    def vector_of(self, number: int) -> Tensor:
        return _vector(number)[self.columns]

    def vectors_of(self, embedding) -> Tensor:
        return embedding.vec[self.key]

    def forward(self, texts):
        features = super().forward(texts)
        return (features, 2 * features.sum(dim=1)) if self.key == "clip_g" else features


class TinyConditioner(nn.Module):
    """Stands where SD 1 has its text encoder, and cannot be called as one."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")
        encoders = [HalfTextEncoder("clip_l", slice(0, LEFT)), HalfTextEncoder("clip_g", slice(0, WIDTH))]
        self.embedders = [*encoders, *map(TinySizes, sizes)]

    def tokenize(self, texts):
        return self.embedders[0].tokenize(texts)

    def encode_embedding_init_text(self, init_text, nvpt):
        return torch.cat([each.encode_embedding_init_text(init_text, nvpt) for each in self.embedders[:2]], dim=1)


class TinySDXL(TinyHostModel):
    """With two text encoders, and a UNet that reads pooled text and sizes."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.is_sdxl, self.cond_stage_model = True, TinyConditioner()
        for attention in cross_attentions(self.model.diffusion_model):
            attention.to_k, attention.to_v = (nn.Linear(LEFT + WIDTH, CHANNELS, bias=False) for _ in range(2))

    def apply_model(self, x_noisy, t, cond):
        return self.model.diffusion_model(
            x_noisy + cond["vector"].mean(dim=1)[:, None, None, None], t, cond["crossattn"]
        )
