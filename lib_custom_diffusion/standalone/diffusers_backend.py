"""Backend on diffusers: Stable Diffusion 1 and 2 and models of their layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ..attention import architecture
from ..backend import Conditioning, LatentDistribution, Sampling
from ..errors import UserError
from ..text_features import BUNDLED_CAPTIONS
from ..tokens import split_at_tokens

_TEXT_BATCH = 64


class DiffusersBackend:
    """A StableDiffusionPipeline as the core wants it. Its weights are frozen, and its vocabulary is never changed.

    New words are set into the text encoder's embeddings for the time of one call, at places that the tokenizer's ids
    leave for them, so there is nothing to undo.
    """

    def __init__(
        self,
        pipeline: StableDiffusionPipeline,
        name: str,
        checkpoint_hash: str = "",
        captions: Path = BUNDLED_CAPTIONS,
    ) -> None:
        scheduler = pipeline.scheduler
        self.pipeline = pipeline
        self.name = name
        self.checkpoint_hash = checkpoint_hash
        self.captions = captions
        # A training asks for the same few texts in every step, and CLIP's tokenizer is slow.
        self._ids = lru_cache(maxsize=1000)(self._tokenized)
        self.unet: nn.Module = pipeline.unet
        self._weight: Tensor = pipeline.unet.conv_in.weight  # tells device and dtype; the UNet's own answer takes 2 ms
        self.architecture = architecture(pipeline.unet)
        self.prediction_type: str = scheduler.config.prediction_type
        self.alphas_cumprod: Tensor = scheduler.alphas_cumprod.float().cpu()
        self.resolution: int = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(scheduler.config)
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
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
        ids = torch.tensor(self._ids(text), dtype=torch.long, device=self.device)
        return self.pipeline.text_encoder.get_input_embeddings()(ids).float()

    def entry_vector(self, entry: str) -> Tensor | None:
        number = self.pipeline.tokenizer.get_vocab().get(entry)
        if number is None:
            return None
        return self.pipeline.text_encoder.get_input_embeddings()(torch.tensor([number], device=self.device)).float()

    def encode_captions(self, captions: Sequence[str], vectors: Mapping[str, Tensor]) -> Conditioning:
        return Conditioning(self._encode_text(captions, vectors).last_hidden_state)

    @torch.no_grad()
    def pooled_text(self, captions: Sequence[str]) -> Tensor:
        batches = [captions[start : start + _TEXT_BATCH] for start in range(0, len(captions), _TEXT_BATCH)]
        pooled = [self._encode_text(batch, {}).pooler_output.float().cpu() for batch in batches]
        return F.normalize(torch.cat(pooled), dim=-1)

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        dtype = self._weight.dtype
        text = conditioning.crossattn.to(dtype)
        return self.unet(noisy_latents.to(dtype), timesteps, encoder_hidden_states=text).sample

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
        """Pictures by DPM-Solver++ (2M). A negative prompt may use the tokens in `vectors` as well."""
        width, height = sampling.size or (self.resolution, self.resolution)
        if width % 8 or height % 8:
            raise UserError(f"picture sizes are multiples of 8 pixels, not {width}x{height}")
        negative = self.encode_captions([sampling.negative_prompt], vectors).crossattn
        pictures: list[Image.Image] = []
        for start in range(0, len(prompts), sampling.batch_size):
            batch = prompts[start : start + sampling.batch_size]
            latents = self.pipeline(
                prompt_embeds=self.encode_captions(batch, vectors).crossattn,
                negative_prompt_embeds=negative.expand(len(batch), -1, -1),
                generator=[torch.Generator().manual_seed(seed) for seed in seeds[start : start + len(batch)]],
                num_inference_steps=sampling.steps,
                guidance_scale=sampling.guidance_scale,
                width=width,
                height=height,
                output_type="latent",
            ).images
            pictures += self._decode(latents)
        return pictures

    def _decode(self, latents: Tensor) -> list[Image.Image]:
        vae = self.pipeline.vae
        pixels = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor).sample
        return self.pipeline.image_processor.postprocess(pixels, output_type="pil")

    def _tokenized(self, text: str) -> list[int]:
        return self.pipeline.tokenizer(text, add_special_tokens=False).input_ids

    def _encode_text(self, captions: Sequence[str], vectors: Mapping[str, Tensor]) -> Any:
        """The text encoder's output for captions, new words included."""
        tokenizer = self.pipeline.tokenizer
        room = tokenizer.model_max_length - 2
        rows, places = [], []
        for row, caption in enumerate(captions):
            ids, found = self._ids_with_tokens(caption, vectors)
            ids = [tokenizer.bos_token_id, *ids[:room], tokenizer.eos_token_id]
            rows.append(ids + [tokenizer.pad_token_id] * (room + 2 - len(ids)))
            places += [(row, column + 1, vector) for column, vector in found if column < room]
        with self._placed(places):
            return self.pipeline.text_encoder(torch.tensor(rows, device=self.device))

    def _ids_with_tokens(
        self, caption: str, vectors: Mapping[str, Tensor]
    ) -> tuple[list[int], list[tuple[int, Tensor]]]:
        """The caption's ids, with 0 where a new word's vectors belong, and those vectors with their columns."""
        ids: list[int] = []
        found: list[tuple[int, Tensor]] = []
        for part in split_at_tokens(caption, vectors):
            if part in vectors:
                found += [(len(ids) + index, vector) for index, vector in enumerate(vectors[part])]
                ids += [0] * len(vectors[part])
            else:
                ids += self._ids(part)
        return ids, found

    @contextmanager
    def _placed(self, places: Sequence[tuple[int, int, Tensor]]) -> Iterator[None]:
        """Within the block, token embeddings at (row, column) are the given vectors."""
        if not places:
            yield
            return
        rows, columns, vectors = zip(*places)

        def replace(_module: nn.Module, _inputs: Any, embedded: Tensor) -> Tensor:
            index = (torch.tensor(rows, device=embedded.device), torch.tensor(columns, device=embedded.device))
            return embedded.index_put(index, torch.stack(vectors).to(embedded))

        handle = self.pipeline.text_encoder.get_input_embeddings().register_forward_hook(replace)
        try:
            yield
        finally:
            handle.remove()
