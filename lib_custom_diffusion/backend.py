"""All that the core asks of a host, be it diffusers or the WebUI."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from .attention import is_toy
from .errors import UserError, check_range

PREDICTION_TYPES = ("epsilon", "v_prediction")
"""What a UNet may predict, in diffusers' words: the noise, or velocity."""


LATENT_CELL = 8
"""Pixels along a side of one cell of the latents."""
MOST_PIXELS = 16_384
"""Along a side of a picture."""
MOST_SEED = 2**53
"""Beyond it JSON is not exact."""
MOST_STEPS = 1000
"""Of sampling: models are trained with so many levels of noise."""


@dataclass(frozen=True)
class Sizes:
    """How a picture came to its size, in pixels, as SDXL's UNet is told it (arXiv 2307.01952, §2.2).

    original: width and height before it was scaled.
    corner:   left and top of what is shown, on the picture as it was scaled (and mirrored).
    target:   width and height of what is shown.
    """

    original: tuple[int, int]
    corner: tuple[int, int]
    target: tuple[int, int]


@dataclass(frozen=True)
class Conditioning:
    """What a UNet is conditioned on, for a batch of captions.

    crossattn: text features, (batch, tokens, width), read by the cross-attention layers.
    vector:    added conditioning (pooled text and sizes), (batch, channels); None where the UNet has none (SD 1 and 2).
    """

    crossattn: Tensor
    vector: Tensor | None = None

    def __len__(self) -> int:
        return self.crossattn.shape[0]

    def row(self, index: int) -> Conditioning:
        """The conditioning of one caption, as a batch of one."""
        rows = slice(index, index + 1)
        return Conditioning(self.crossattn[rows], None if self.vector is None else self.vector[rows])

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """The parts as one batch, in their order."""
        vectors = [part.vector for part in parts if part.vector is not None]
        return Conditioning(torch.cat([part.crossattn for part in parts]), torch.cat(vectors) if vectors else None)


@dataclass(frozen=True)
class LatentDistribution:
    """The VAE's posterior of a batch of pictures, already multiplied by the model's latent scale.

    mean, std: (batch, channels, height / LATENT_CELL, width / LATENT_CELL), float32.
    """

    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn. `size` is (width, height) in pixels; None is the model's own."""

    steps: int = 25
    guidance_scale: float = 6.0
    negative_prompt: str = ""
    size: tuple[int, int] | None = None
    batch_size: int = 4

    def check(self, seed: int = 0, label: Callable[[str], str] = str) -> None:
        """Raise UserError for what no picture can be drawn with.

        seed: of the first picture. label: what the user knows a field, or the seed, as.
        """
        check_range(self, "steps", 1, MOST_STEPS, label)
        check_range(self, "guidance_scale", 0, 1000, label)
        check_range(self, "batch_size", 1, 1000, label)
        for side in self.size or ():
            if side % LATENT_CELL or not LATENT_CELL <= side <= MOST_PIXELS:
                raise UserError(
                    f"{label('size')} must be a multiple of {LATENT_CELL} pixels, up to {MOST_PIXELS:,}, not {side}"
                )
        if not 0 <= seed <= MOST_SEED:
            raise UserError(f"{label('seed')} must be 0 to {MOST_SEED:,}, not {seed}")


TOY_SAMPLING = Sampling(guidance_scale=4.0)
"""How pictures of the toy are drawn: with less guidance than those of large models."""


def usual_sampling(architecture: str) -> Sampling:
    """How pictures of a model are drawn unless the user says otherwise."""
    return TOY_SAMPLING if is_toy(architecture) else Sampling()


class Backend(Protocol):
    """A loaded latent diffusion model.

    Token vectors travel as one tensor (vectors, width) a token. For a model with several text encoders, width is the
    sum of theirs and the backend splits it; `Conditioning.vector` is theirs to fill. Nothing else in the core needs to
    know how many encoders there are.
    """

    name: str
    """What to call the model in logs and metadata."""
    architecture: str
    """"sd1", "sd2", "sdxl" or another word two models share exactly when a delta fits both."""
    checkpoint_hash: str
    """Short hash of the checkpoint the model came from, or ""."""
    parts: Mapping[str, str]
    """What is in the place of the checkpoint's own "vae" or "tokenizer": a hash or a name, "" where nothing is."""
    unet: nn.Module
    """The live UNet; the core puts hooks beside its Linear layers and never writes its weights."""
    prediction_type: str
    """"epsilon" or "v_prediction"."""
    alphas_cumprod: Tensor
    """Cumulative products of the noise schedule, (timesteps,), float32."""
    captions: Path
    """A text file of ordinary captions, one a line, such as the model was trained with."""
    resolution: int
    """Width and height in pixels that the model was trained at."""

    reads_sizes: bool
    """Whether the UNet is conditioned on pictures' sizes, as SDXL's is."""

    @property
    def device(self) -> torch.device:
        """Where the UNet computes."""
        ...

    def encode_pictures(self, pixels: Tensor) -> LatentDistribution:
        """Posterior of pixels (batch, 3, height, width) in -1..1."""
        ...

    def has_token(self, token: str) -> bool:
        """Whether the host knows `token` as a word already, or the text encoder's vocabulary as a word or an entry.

        Not only whole words: tokenizers elsewhere refuse to add a word that is spelled as any entry.
        """
        ...

    def token_vectors(self, text: str) -> Tensor:
        """Embedding vectors (n, width) of the n vocabulary tokens of `text`, float32; n = 0 for an empty text."""
        ...

    def count_tokens(self, caption: str, vectors: Mapping[str, Tensor]) -> int:
        """How many positions of the text encoder a caption takes, as `encode_captions` reads it.

        Start and end token are not counted; what fills up all but the last piece of a long caption is.
        """
        ...

    def entry_vector(self, entry: str) -> Tensor | None:
        """Embedding vector (1, width) of the vocabulary entry that is spelled so, float32; None without one.

        CLIP's vocabulary has entries that end a word ("cat</w>") and others that text alone seldom gives ("ktn"). It
        knows lower case alone, and reads upper case as that.
        """
        ...

    def encode_captions(
        self, captions: Sequence[str], vectors: Mapping[str, Tensor], sizes: Sequence[Sizes | None] = ()
    ) -> Conditioning:
        """Conditioning of captions in which each token named in `vectors` stands for its vectors (n, width).

        All else in a caption is text, brackets and BREAK too, whatever the host makes of them in prompts that it draws.

        sizes: of each caption's picture, if the model `reads_sizes`; None, or nothing at all, is a whole picture of
        the model's own size. Differentiable with respect to the vectors, if gradients are on.
        """
        ...

    def pooled_text(self, captions: Sequence[str]) -> Tensor:
        """One text feature a caption, (captions, width), unit norm, for nearness of captions."""
        ...

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's output for latents (batch, channels, h, w) at integer timesteps (batch,)."""
        ...

    def gradient_checkpointing(self, on: bool) -> None:
        """Recompute activations in the backward pass instead of keeping them, or keep them again."""
        ...

    def autoencoder_aside(self, on: bool) -> None:
        """Keep the VAE in the computer's memory, out of the accelerator's, or bring it back.

        No training step needs it. While it is aside, `encode_pictures` and `generate` may not be called. On the CPU
        nothing happens, as the two memories are one; a host may leave the choice to its user. The text encoder is
        never set aside: captions with a new word are encoded anew in each step.
        """
        ...

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], sampling: Sampling, vectors: Mapping[str, Tensor]
    ) -> list[Image.Image]:
        """One picture a prompt, each from its own seed, with whatever acts on the UNet at the time.

        Fewer where a person has the host stop meanwhile.
        """
        ...
