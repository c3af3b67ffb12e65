"""Backend on diffusers: Stable Diffusion 1, 2 and XL, and models of their layouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ..attention import architecture
from ..backend import Conditioning, LatentDistribution, Sampling, Sizes
from ..errors import UserError
from ..text_features import BUNDLED_CAPTIONS, lengthened
from ..tokens import split_at_tokens
from .pieces import COMMA, Piece, in_pieces

_TEXT_BATCH = 64
_DECODED_CELLS = 4 * 64 * 64  # of latents, at once: the VAE's memory, gigabytes of float32, grows with them
_SIZE_NUMBERS = 6


class DiffusersBackend:
    """A pipeline as the core wants it. Its weights are frozen, and its vocabulary is never changed.

    New words are set into the text encoders' embeddings for the time of one call, at places that the tokenizer's ids
    leave for them, so there is nothing to undo. SDXL has two text encoders, CLIP's and OpenCLIP's, of one vocabulary: a
    word's vectors are those of the first beside those of the second. Its `Conditioning.vector` is the second's pooled
    text beside the six numbers of a picture's sizes.
    """

    def __init__(
        self,
        pipeline: StableDiffusionPipeline | StableDiffusionXLPipeline,
        name: str,
        checkpoint_hash: str = "",
        captions: Path = BUNDLED_CAPTIONS,
        parts: Mapping[str, str] = MappingProxyType({"vae": "", "tokenizer": ""}),
    ) -> None:
        scheduler = pipeline.scheduler
        self.pipeline = pipeline
        self.name = name
        self.checkpoint_hash = checkpoint_hash
        self.captions = captions
        self.parts = parts
        # A training asks for the same few texts in every step, and CLIP's tokenizer is slow.
        self._ids = lru_cache(maxsize=1000)(self._tokenized)
        self.unet: nn.Module = pipeline.unet
        self._unet_in_training: Callable[..., Any] = pipeline.unet
        self._weight: Tensor = pipeline.unet.conv_in.weight  # tells device and dtype; the UNet's own answer takes 2 ms
        self.architecture = architecture(pipeline.unet)
        self.prediction_type: str = scheduler.config.prediction_type
        self.alphas_cumprod: Tensor = scheduler.alphas_cumprod.float().cpu()
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(scheduler.config)
        self.reads_sizes = isinstance(pipeline, StableDiffusionXLPipeline)
        self.resolution: int = _side(pipeline.unet.config.sample_size, self.reads_sizes) * pipeline.vae_scale_factor
        self._encoders = [(pipeline.tokenizer, pipeline.text_encoder)]
        if self.reads_sizes:
            self._encoders.append((pipeline.tokenizer_2, pipeline.text_encoder_2))
        for part in (pipeline.unet, pipeline.vae, *(encoder for _, encoder in self._encoders)):
            part.requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        return self._weight.device

    @torch.no_grad()
    def encode_pictures(self, pixels: Tensor) -> LatentDistribution:
        vae = self.pipeline.vae
        posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
        scale = vae.config.scaling_factor
        return LatentDistribution(posterior.mean.float() * scale, posterior.std.float() * scale)

    def has_token(self, token: str) -> bool:
        tokenizer = self.pipeline.tokenizer
        return token in tokenizer.get_vocab() or len(tokenizer.tokenize(token)) == 1

    def token_vectors(self, text: str) -> Tensor:
        return self._vectors(self._ids(text))

    def count_tokens(self, caption: str, vectors: Mapping[str, Tensor]) -> int:
        pieces = self._pieces(caption, vectors)
        return (len(pieces) - 1) * self._room + len(pieces[-1].ids)

    def entry_vector(self, entry: str) -> Tensor | None:
        vocabulary = self.pipeline.tokenizer.get_vocab()
        number = vocabulary.get(entry, vocabulary.get(entry.lower()))
        return None if number is None else self._vectors([number])

    def _vectors(self, ids: Sequence[int]) -> Tensor:
        numbers = torch.tensor(ids, dtype=torch.long, device=self.device)
        return torch.cat([encoder.get_input_embeddings()(numbers).float() for _, encoder in self._encoders], dim=-1)

    def encode_captions(
        self, captions: Sequence[str], vectors: Mapping[str, Tensor], sizes: Sequence[Sizes | None] = ()
    ) -> Conditioning:
        """What is longer than CLIP reads at once is encoded in pieces, as in the WebUI, all as long as the longest."""
        encoded = self._encode_text(captions, vectors)
        if not self.reads_sizes:
            return Conditioning(_joined(encoded[0].last_hidden_state, len(captions)))
        numbers = torch.tensor([self._size_numbers(each) for each in sizes or [None] * len(captions)])
        pooled = encoded[1].text_embeds[: len(captions)]  # of their first pieces
        return Conditioning(
            _joined(torch.cat([each.hidden_states[-2] for each in encoded], dim=-1), len(captions)),
            torch.cat([pooled, numbers.to(pooled)], dim=-1),
        )

    def _size_numbers(self, sizes: Sizes | None) -> list[int]:
        """The UNet's six numbers: height before width, top before left."""
        whole = (self.resolution, self.resolution)
        sizes = sizes or Sizes(whole, (0, 0), whole)
        return [*reversed(sizes.original), *reversed(sizes.corner), *reversed(sizes.target)]

    @torch.no_grad()
    def pooled_text(self, captions: Sequence[str]) -> Tensor:
        """Of a caption that is longer than CLIP reads at once, that of its first piece."""
        pooled = []
        for start in range(0, len(captions), _TEXT_BATCH):
            batch = captions[start : start + _TEXT_BATCH]
            encoded = self._encode_text(batch, {})[-1]
            found = encoded.text_embeds if self.reads_sizes else encoded.pooler_output
            pooled.append(found[: len(batch)].float().cpu())
        return F.normalize(torch.cat(pooled), dim=-1)

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        dtype = self._weight.dtype
        text, added = conditioning.crossattn.to(dtype), None
        if conditioning.vector is not None:
            # In float32: a size is more than half precision counts exactly.
            pooled, numbers = conditioning.vector[:, :-_SIZE_NUMBERS], conditioning.vector[:, -_SIZE_NUMBERS:]
            added = {"text_embeds": pooled.to(dtype), "time_ids": numbers.float()}
        unet = self._unet_in_training if torch.is_grad_enabled() else self.unet
        return unet(noisy_latents.to(dtype), timesteps, encoder_hidden_states=text, added_cond_kwargs=added).sample

    def compile(self, on: bool) -> None:
        """Let passes with gradients run as code that torch.compile makes of the UNet in the first of them, or not.

        Drawing, and what is measured before the first step, go on without.
        """
        self._unet_in_training = torch.compile(self.unet) if on else self.unet

    def gradient_checkpointing(self, on: bool) -> None:
        if on:
            self.pipeline.unet.enable_gradient_checkpointing()
        else:
            self.pipeline.unet.disable_gradient_checkpointing()

    def autoencoder_aside(self, on: bool) -> None:
        self.pipeline.vae.to("cpu" if on else self.device)

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], sampling: Sampling, vectors: Mapping[str, Tensor]
    ) -> list[Image.Image]:
        """Pictures by DPM-Solver++ (2M). A negative prompt may use the tokens in `vectors` as well.

        Of prompt and negative prompt the one with fewer pieces gets empty ones, as where the WebUI pads them. Raises
        UserError where the numbers overflow.
        """
        width, height = sampling.size or (self.resolution, self.resolution)
        sampling.check()
        pictures: list[Image.Image] = []
        for start in range(0, len(prompts), sampling.batch_size):
            batch = prompts[start : start + sampling.batch_size]
            asked = self.encode_captions(batch, vectors)
            negative = self._negative(sampling.negative_prompt, len(batch), vectors)
            asked, negative = self._of_one_length(asked, negative)
            latents = self.pipeline(
                **self._embeds("", asked),
                **self._embeds("negative_", negative),
                generator=[torch.Generator().manual_seed(seed) for seed in seeds[start : start + len(batch)]],
                num_inference_steps=sampling.steps,
                guidance_scale=sampling.guidance_scale,
                width=width,
                height=height,
                output_type="latent",
            ).images
            if not torch.isfinite(latents).all():
                raise UserError(
                    f"the picture's numbers became too large ({batch[0][:80]}); lower the weights of deltas, or the"
                    " guidance scale"
                )
            for part in latents.split(max(1, _DECODED_CELLS // latents[0, 0].numel())):
                pictures += self._decode(part)
        return pictures

    def _negative(self, text: str, count: int, vectors: Mapping[str, Tensor]) -> Conditioning:
        """Conditioning of a negative prompt; SDXL's empty one is nothing but zeros."""
        found = self.encode_captions([text] * count, vectors)
        if found.vector is None or text:
            return found
        return Conditioning(torch.zeros_like(found.crossattn), torch.zeros_like(found.vector))

    def _of_one_length(self, *given: Conditioning) -> list[Conditioning]:
        """Each with pieces of an empty text behind it until it is as long as the longest."""
        longest = max(each.crossattn.shape[1] for each in given)
        if all(each.crossattn.shape[1] == longest for each in given):
            return list(given)
        nothing = self.encode_captions([""], {}).crossattn
        return [Conditioning(lengthened(each.crossattn, nothing, longest), each.vector) for each in given]

    def _embeds(self, kind: str, conditioning: Conditioning) -> dict[str, Tensor]:
        """What the pipeline wants of prompts, or of "negative_" ones."""
        embeds = {f"{kind}prompt_embeds": conditioning.crossattn}
        if conditioning.vector is not None:
            embeds[f"{kind}pooled_prompt_embeds"] = conditioning.vector[:, :-_SIZE_NUMBERS]
        return {name: value.to(self._weight.dtype) for name, value in embeds.items()}

    def _decode(self, latents: Tensor) -> list[Image.Image]:
        vae = self.pipeline.vae
        pixels = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor).sample
        return self.pipeline.image_processor.postprocess(pixels, output_type="pil")

    def _tokenized(self, text: str) -> list[int]:
        return self.pipeline.tokenizer(text, add_special_tokens=False, verbose=False).input_ids

    def _encode_text(self, captions: Sequence[str], vectors: Mapping[str, Tensor]) -> list[Any]:
        """Each text encoder's output for the captions' first pieces, then for all second ones, and so on.

        There are as many of each; a caption with fewer gets empty ones. New words are included.
        """
        divided = [self._pieces(caption, vectors) for caption in captions]
        pieces = [piece for turn in zip_longest(*divided, fillvalue=Piece()) for piece in turn]
        places = [(row, column + 1, vector) for row, piece in enumerate(pieces) for column, vector in piece.vectors]
        encoded, first = [], 0
        for tokenizer, encoder in self._encoders:
            width = encoder.config.hidden_size
            own = [(row, column, vector[first : first + width]) for row, column, vector in places]
            first += width
            padding = [tokenizer.pad_token_id] * self._room
            padded = [
                [tokenizer.bos_token_id, *piece.ids, tokenizer.eos_token_id, *padding[len(piece.ids) :]]
                for piece in pieces
            ]
            with _placed(encoder, own):
                encoded.append(encoder(torch.tensor(padded, device=self.device), output_hidden_states=self.reads_sizes))
        return encoded

    @property
    def _room(self) -> int:
        """For a caption's tokens, between start and end."""
        return self.pipeline.tokenizer.model_max_length - 2

    def _pieces(self, caption: str, vectors: Mapping[str, Tensor]) -> list[Piece]:
        comma = self.pipeline.tokenizer.get_vocab().get(COMMA)
        return in_pieces(self._parts(caption, vectors), self._room, comma)

    def _parts(self, caption: str, vectors: Mapping[str, Tensor]) -> Iterator[int | Tensor]:
        """The ids of a caption's tokens, and the vectors of its new words."""
        for part in split_at_tokens(caption, vectors):
            if part in vectors:
                yield vectors[part]
            else:
                yield from self._ids(part)


def _side(configured: int | Sequence[int] | None, sdxl: bool) -> int:
    """Cells of the latents that a model was trained at; configurations may leave them out, or say height and width."""
    if configured is None:
        return 128 if sdxl else 64
    return configured if isinstance(configured, int) else max(configured)


def _joined(features: Tensor, captions: int) -> Tensor:
    """Features of `_encode_text` (pieces · captions, positions, width) as (captions, pieces · positions, width)."""
    return torch.cat(features.split(captions), dim=1)


@contextmanager
def _placed(encoder: Any, places: Sequence[tuple[int, int, Tensor]]) -> Iterator[None]:
    """Within the block, token embeddings of a text encoder at (row, column) are the given vectors."""
    if not places:
        yield
        return
    rows, columns, vectors = zip(*places)

    def replace(_module: nn.Module, _inputs: Any, embedded: Tensor) -> Tensor:
        index = (torch.tensor(rows, device=embedded.device), torch.tensor(columns, device=embedded.device))
        return embedded.index_put(index, torch.stack(vectors).to(embedded))

    handle = encoder.get_input_embeddings().register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()
