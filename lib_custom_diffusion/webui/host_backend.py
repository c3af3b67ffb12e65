"""Backend on the WebUI's loaded model, through the parts that its textual inversion uses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from modules import devices, processing, sd_hijack, sd_hijack_checkpoint, sd_models, shared
from modules.textual_inversion.textual_inversion import Embedding
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ..attention import architecture
from ..backend import LATENT_CELL, Conditioning, LatentDistribution, Sampling, Sizes
from ..errors import UserError
from ..text_features import captions_beside, lengthened

_CONTEXT = 77
"""Tokens that the text encoder reads at once, start and end included; the host gives it longer texts in pieces."""
_PREDICTION_TYPES = {"eps": "epsilon", "v": "v_prediction"}


class HostBackend:
    """The model that the WebUI has loaded, SD 1 or SD 2.

    Words are embeddings of the host's database; those being learned take their values from the call and are given back
    at its end, so the database is the same before and after.

    learning: the names of embeddings that may be learned; any other embedding or word is known already.
    """

    reads_sizes = False

    def __init__(self, learning: Sequence[str] = (), sampler_name: str | None = None) -> None:
        sd_models.reload_model_weights()  # the picture before may have left a refiner, or another checkpoint, loaded
        model = shared.sd_model
        if model is None:
            raise UserError("no checkpoint is loaded; choose one at the top of the page")
        if model.is_sdxl or getattr(model, "is_sd3", False):
            raise UserError("training on SDXL and SD 3 is not supported yet; choose an SD 1 or SD 2 checkpoint")
        self.model = model
        self.learning = frozenset(learning)
        self.sampler_name = sampler_name
        self.preview: Sampling | None = None
        self._checkpointing = False
        self.name: str = model.sd_checkpoint_info.model_name
        self.unet: nn.Module = model.model.diffusion_model
        self.architecture = architecture(self.unet)
        self.checkpoint_hash: str = model.sd_checkpoint_info.shorthash or ""
        self.device: torch.device = devices.device
        self.prediction_type = _PREDICTION_TYPES[model.parameterization]
        self.alphas_cumprod = getattr(model, "alphas_cumprod_original", model.alphas_cumprod).detach().float().cpu()
        self.captions = captions_beside(Path(model.sd_checkpoint_info.filename))
        self.resolution = model_resolution(model)

    @torch.no_grad()
    def encode_pictures(self, pixels: Tensor) -> LatentDistribution:
        with devices.autocast():
            posterior = self.model.first_stage_model.encode(pixels.to(self.device, devices.dtype_vae))
        scale = self.model.scale_factor
        return LatentDistribution(posterior.mean.float() * scale, posterior.std.float() * scale)

    def has_token(self, token: str) -> bool:
        if token in self.learning:
            return False
        if token in _database().word_embeddings or entry_vector(self.model, token) is not None:
            return True
        return len(self.model.cond_stage_model.tokenize([token])[0]) == 1

    def token_vectors(self, text: str) -> Tensor:
        """The vectors of an embedding, if `text` is one's name, else of the words."""
        embedding = _database().word_embeddings.get(text)
        if embedding is not None:
            return embedding.vec.detach().float().clone()
        ids = self.model.cond_stage_model.tokenize([text])[0]
        if not ids:
            return torch.zeros(0, _database().expected_shape)
        return self.model.cond_stage_model.encode_embedding_init_text(text, len(ids)).detach().float()

    def entry_vector(self, entry: str) -> Tensor | None:
        """None for an embedding's name as well: the host reads that as the embedding, whatever its vocabulary has."""
        return None if entry in _database().word_embeddings else entry_vector(self.model, entry)

    def encode_captions(
        self, captions: Sequence[str], vectors: Mapping[str, Tensor], sizes: Sequence[Sizes | None] = ()
    ) -> Conditioning:
        # One at a time, as the host itself does: of several at once its transformers make no numbers on recent torch.
        with _standing_for(vectors, self.model), devices.autocast():
            features = [self.model.cond_stage_model([caption]) for caption in captions]
            longest = max((each.shape[1] for each in features), default=0)
            if any(each.shape[1] < longest for each in features):
                nothing = self.model.cond_stage_model([""])
                features = [lengthened(each, nothing, longest) for each in features]
        return Conditioning(torch.cat(features))

    @torch.no_grad()
    def pooled_text(self, captions: Sequence[str]) -> Tensor:
        """The feature at the end of each caption, which CLIP pools by."""
        features = self.encode_captions(captions, {}).crossattn[:, :_CONTEXT].float()
        lengths = [self.model.cond_stage_model.tokenize_line(caption)[1] for caption in captions]
        ends = torch.tensor([min(length, _CONTEXT - 2) + 1 for length in lengths], device=features.device)
        return F.normalize(features[torch.arange(len(captions), device=features.device), ends], dim=-1)

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        text = conditioning.crossattn
        if self._checkpointing and torch.is_grad_enabled() and not text.requires_grad:
            # The host's checkpoints of blocks keep gradients of nothing, unless an input of theirs has one itself.
            text = text.detach().requires_grad_()
        condition: dict[str, list[Tensor]] = {"c_crossattn": [text]}
        if self.model.model.conditioning_key in ("hybrid", "concat"):
            height, width = (LATENT_CELL * side for side in noisy_latents.shape[-2:])
            masked = processing.txt2img_image_conditioning(self.model, noisy_latents, width, height)
            condition["c_concat"] = [masked]
        return self.model.apply_model(noisy_latents, timesteps, condition)

    def gradient_checkpointing(self, on: bool) -> None:
        self._checkpointing = on
        if on:
            sd_hijack_checkpoint.add()
        else:
            sd_hijack_checkpoint.remove()

    def autoencoder_aside(self, on: bool) -> None:
        """Only if "Move VAE and CLIP to RAM when training" is on in the host's settings."""
        if on and not shared.opts.unload_models_when_training:
            return
        if on:
            shared.parallel_processing_allowed = False  # as `ready_for_training` found it, it gives it back
        self.model.first_stage_model.to(devices.cpu if on else self.device)

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], sampling: Sampling, vectors: Mapping[str, Tensor]
    ) -> list[Image.Image]:
        """Pictures as the WebUI draws them, extra networks in the prompts included. Fewer when it is interrupted.

        With `preview` set, that is how they are drawn, whatever is asked.
        """
        sampling = self.preview or sampling
        width, height = sampling.size or (self.resolution, self.resolution)
        pictures: list[Image.Image] = []
        with _standing_for(vectors, self.model), _checkpoint_as_loaded(self.model), _job_as_it_was():
            for start in range(0, len(prompts), sampling.batch_size):
                batch = list(prompts[start : start + sampling.batch_size])
                p = processing.StableDiffusionProcessingTxt2Img(
                    sd_model=self.model,
                    prompt=batch,
                    negative_prompt=[sampling.negative_prompt] * len(batch),
                    seed=list(seeds[start : start + len(batch)]),
                    subseed=0,
                    batch_size=len(batch),
                    steps=sampling.steps,
                    cfg_scale=sampling.guidance_scale,
                    sampler_name=self.sampler_name,
                    width=width,
                    height=height,
                    do_not_save_grid=True,
                    do_not_save_samples=True,
                    do_not_reload_embeddings=True,
                )
                forget_encoded_prompts(p)
                with closing(p):
                    processed = processing.process_images(p)
                forget_encoded_prompts(p)
                # The host puts a grid of the batch first.
                pictures += processed.images[processed.index_of_first_image :]
                if len(pictures) < start + len(batch):
                    break
        return pictures


def model_resolution(model: Any) -> int:
    """The side in pixels of the pictures that a model of the host's was made for; without a model SD 1's."""
    if model is None:
        return 512
    if model.is_sdxl:
        return 1024
    v_prediction = _PREDICTION_TYPES.get(model.parameterization) == "v_prediction"
    return 768 if model.is_sd2 and v_prediction else LATENT_CELL * model.image_size


def forget_encoded_prompts(p: processing.StableDiffusionProcessing) -> None:
    """Make the host encode prompts anew: it keeps them by their text, and words in them have changed.

    It keeps them beyond a picture, those of hires-fix too while a picture without it is drawn.
    """
    for owner in (p, processing.StableDiffusionProcessing, processing.StableDiffusionProcessingTxt2Img):
        for name in ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc"):
            cache = getattr(owner, name, None)
            if cache is not None:
                cache[:] = [None, None]


@torch.no_grad()
def entry_vector(model: Any, entry: str) -> Tensor | None:
    """Embedding vector (1, width) of a text encoder's vocabulary entry spelled exactly so; None if there is none."""
    encoder = model.cond_stage_model
    if hasattr(encoder, "tokenizer"):  # OpenAI's CLIP by transformers
        vocabulary = encoder.tokenizer.get_vocab()
        table = encoder.wrapped.transformer.text_model.embeddings.token_embedding
    else:  # OpenCLIP
        from modules import sd_hijack_open_clip

        vocabulary, table = sd_hijack_open_clip.tokenizer.encoder, encoder.wrapped.model.token_embedding
    number = vocabulary.get(entry)
    if number is None:
        return None
    weight = table.wrapped.weight
    return weight[number : number + 1].detach().float()


def _database() -> sd_hijack.StableDiffusionModelHijack:
    return sd_hijack.model_hijack.embedding_db


@contextmanager
def _standing_for(vectors: Mapping[str, Tensor], model: nn.Module) -> Iterator[None]:
    """Within the block, each named word has the given vectors (n, width)."""
    database = _database()
    hidden = {}
    try:
        for token, value in vectors.items():
            embedding = Embedding(value, token)
            embedding.vectors, embedding.shape = value.shape
            hidden[token] = database.word_embeddings.get(token)
            database.register_embedding_by_name(embedding, model, token)
        yield
    finally:
        for token, own in hidden.items():
            database.register_embedding_by_name(own, model, token)


@contextmanager
def _checkpoint_as_loaded(model: Any) -> Iterator[None]:
    """Within the block the host's setting names the checkpoint that is loaded; drawing would load the named one.

    A person may choose another at any time; that changes the setting at once, and the model when the queue is free.
    """
    chosen, loaded = shared.opts.data.get("sd_model_checkpoint"), model.sd_checkpoint_info.title
    shared.opts.data["sd_model_checkpoint"] = loaded
    try:
        yield
    finally:
        if shared.opts.data["sd_model_checkpoint"] == loaded:  # not chosen anew meanwhile
            shared.opts.data["sd_model_checkpoint"] = chosen


@contextmanager
def _job_as_it_was() -> Iterator[None]:
    """Drawing a picture counts as the host's job; within the block it may, and afterwards the count is as before."""
    state = shared.state
    job, job_no, job_count = state.job, state.job_no, state.job_count
    try:
        yield
    finally:
        state.job, state.job_no, state.job_count = job, job_no, job_count
        state.sampling_step = state.sampling_steps = 0
