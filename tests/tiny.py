"""A complete Backend of a few thousand numbers in plain torch, so that the core is tested without diffusers."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from lib_custom_diffusion.attention import architecture
from lib_custom_diffusion.backend import Conditioning, LatentDistribution, Sampling, Sizes
from lib_custom_diffusion.text_features import BUNDLED_CAPTIONS
from lib_custom_diffusion.tokens import split_at_tokens

WIDTH = 6  # of the text features
CHANNELS = 8
WORDS = ["photo", "of", "a", "cat", "dog", "ktn", "pll", "ucd", "red", "far", "away", "very", "small", "zoomed", "in",
         "close", "up"]  # fmt: skip


class CrossAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = 1
        self.to_q = nn.Linear(CHANNELS, CHANNELS, bias=False)
        self.to_k = nn.Linear(WIDTH, CHANNELS, bias=False)
        self.to_v = nn.Linear(WIDTH, CHANNELS, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(CHANNELS, CHANNELS)])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.to_out[0](F.scaled_dot_product_attention(self.to_q(x), self.to_k(context), self.to_v(context)))


class Block(nn.Module):
    """One transformer block with the names of LDM's: attn1 is self-attention and must never be selected."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.Module()
        block.attn1 = nn.Module()
        block.attn1.to_k = nn.Linear(CHANNELS, CHANNELS, bias=False)
        block.attn2 = CrossAttention()
        self.transformer_blocks = nn.ModuleList([block])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return x + self.transformer_blocks[0].attn2(x, context)


class TinyUNet(nn.Module):
    """LDM's block names, with cross-attention in input block 1, the middle and output block 0."""

    def __init__(self) -> None:
        super().__init__()
        self.input_blocks = nn.ModuleList(
            [nn.ModuleList([nn.Linear(4, CHANNELS)]), nn.ModuleList([nn.Identity(), Block()])]
        )
        self.middle_block = nn.ModuleList([nn.Identity(), Block()])
        self.output_blocks = nn.ModuleList([nn.ModuleList([nn.Identity(), Block()])])
        self.out = nn.Linear(CHANNELS, 4)

    def forward(self, latents: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        x = self.input_blocks[0][0](latents.flatten(2).transpose(1, 2)) + (timesteps[:, None, None] / 1000).to(latents)
        for attention in (self.input_blocks[1][1], self.middle_block[1], self.output_blocks[0][1]):
            x = attention(x, context)
        return self.out(x).transpose(1, 2).reshape(latents.shape)


class TinyBackend:
    """The Backend protocol on TinyUNet: words are rows of a table, pictures become latents by averaging."""

    name = "tiny"
    checkpoint_hash = "0123456789"
    parts = MappingProxyType({"vae": "", "tokenizer": ""})
    prediction_type = "epsilon"
    captions = BUNDLED_CAPTIONS
    resolution = 16
    reads_sizes = False

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.unet: nn.Module = TinyUNet().requires_grad_(False)
        self.words = torch.randn(len(WORDS), WIDTH)
        self.architecture = architecture(self.unet)
        self.alphas_cumprod = torch.linspace(0.99, 0.01, 100)
        self.device = torch.device("cpu")
        self.captions_encoded = 0
        self.pictures_encoded = 0
        self.checkpointing: list[bool] = []
        self.aside = False

    def encode_pictures(self, pixels: Tensor) -> LatentDistribution:
        assert not self.aside, "the VAE is aside"
        self.pictures_encoded += len(pixels)
        pooled = F.avg_pool2d(pixels, 8)
        mean = torch.cat([pooled, pooled.mean(dim=1, keepdim=True)], dim=1)
        return LatentDistribution(mean, torch.full_like(mean, 0.1))

    def has_token(self, token: str) -> bool:
        return token in WORDS

    def token_vectors(self, text: str) -> Tensor:
        return self.words[[WORDS.index(word) for word in text.split() if word in WORDS]]

    def count_tokens(self, caption: str, vectors: Mapping[str, Tensor]) -> int:
        parts = split_at_tokens(caption, vectors)
        return sum(len(vectors[part] if part in vectors else self.token_vectors(part)) for part in parts)

    def entry_vector(self, entry: str) -> Tensor | None:
        return self.words[WORDS.index(entry)][None] if entry in WORDS else None

    def encode_captions(
        self, captions: Sequence[str], vectors: Mapping[str, Tensor], sizes: Sequence[Sizes | None] = ()
    ) -> Conditioning:
        self.captions_encoded += len(captions)
        rows = []
        for caption in captions:
            found = [vectors[word] if word in vectors else self._word(word) for word in caption.split()]
            tokens = torch.cat([*found, torch.zeros(12, WIDTH)])[:12]
            rows.append(tokens)
        return Conditioning(torch.stack(rows))

    def _word(self, word: str) -> Tensor:
        return self.words[zlib.crc32(word.encode()) % len(WORDS)][None]

    def pooled_text(self, captions: Sequence[str]) -> Tensor:
        return F.normalize(self.encode_captions(captions, {}).crossattn.sum(dim=1), dim=-1)

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        return self.unet(noisy_latents, timesteps, conditioning.crossattn)

    def gradient_checkpointing(self, on: bool) -> None:
        self.checkpointing.append(on)

    def autoencoder_aside(self, on: bool) -> None:
        self.aside = on

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], sampling: Sampling, vectors: Mapping[str, Tensor]
    ) -> list[Image.Image]:
        assert not self.aside, "the VAE is aside"
        pictures = []
        for prompt, seed in zip(prompts, seeds):
            latents = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(seed))
            context = self.encode_captions([prompt], vectors).crossattn
            value = self.unet(latents, torch.tensor([50]), context).mean().item()
            level = int(max(0, min(255, 128 + 40 * value)))
            pictures.append(Image.new("RGB", sampling.size or (16, 16), (level, seed % 256, 0)))
        return pictures
