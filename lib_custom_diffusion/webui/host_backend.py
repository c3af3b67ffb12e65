"""Backend on the WebUI's loaded model, through the parts that its textual inversion uses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from modules import devices, processing, scripts, sd_models, sd_vae, shared
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..attention import architecture
from ..backend import LATENT_CELL, Conditioning, LatentDistribution, Sampling, Sizes
from ..errors import UserError
from ..finite import named, not_finite
from ..reading.document import Header, read_header
from ..text_features import captions_beside
from . import host_text, reforge

_CONTEXT = 77
"""Tokens that the text encoder reads at once, start and end included; the host gives it longer texts in pieces."""
_PREDICTION_TYPES = {"eps": "epsilon", "v": "v_prediction"}


class HostBackend:
    """The model that the WebUI has loaded: SD 1, SD 2 or SDXL.

    Words are embeddings of the host's database; those being learned take their values from the call and are given back
    at its end, so the database is the same before and after.

    learning: the names of embeddings that may be learned; any other embedding or word is known already.
    """

    def __init__(self, learning: Sequence[str] = (), sampler_name: str | None = None) -> None:
        refuse_without_checkpoint()
        sd_models.reload_model_weights()  # the picture before may have left a refiner, or another checkpoint, loaded
        model = shared.sd_model
        if model is None:
            raise UserError("no checkpoint is loaded; choose one at the top of the page")
        refuse_kind(model)
        header = _header_of(model)
        _refuse_misread(model, header)
        self.model = model
        self.reads_sizes: bool = model.is_sdxl
        self.learning = frozenset(learning)
        self.sampler_name = sampler_name
        self.preview: Sampling | None = None
        self._checkpointed: list[Any] = []
        self.name: str = model.sd_checkpoint_info.model_name
        self.unet: nn.Module = model.model.diffusion_model
        self.architecture = architecture(self.unet)
        self.checkpoint_hash: str = model.sd_checkpoint_info.shorthash or ""
        self.parts: Mapping[str, str] = {"vae": sd_vae.get_loaded_vae_hash() or ""}
        self.device: torch.device = devices.device
        self.prediction_type = _PREDICTION_TYPES[model.parameterization]
        self.alphas_cumprod = _noise_schedule(model, header is not None and "ztsnr" in header.names)
        self.captions = captions_beside(Path(model.sd_checkpoint_info.filename))
        self.resolution = model_resolution(model)

    @torch.no_grad()
    def refuse_not_finite(self) -> None:
        """Raise UserError if the UNet has weights, or the text encoder gives features, that are NaN or infinite.

        What the VAE makes of pictures is looked at as they are encoded.
        """
        broken = not_finite(self.unet.named_parameters())
        if broken:
            raise UserError(
                f"the UNet of {self.name} is broken: {named(broken)} values that are NaN or infinite, as a merge in"
                " half precision can leave them; merge it again in float32, or choose another checkpoint"
            )
        if not torch.isfinite(self.encode_captions([""], {}).crossattn).all():
            raise UserError(
                f"the text encoder of {self.name} is broken: what it makes of an empty prompt is NaN or infinite;"
                " choose another checkpoint"
            )

    @torch.no_grad()
    def encode_pictures(self, pixels: Tensor) -> LatentDistribution:
        vae = self.model.first_stage_model
        mean, std = _posterior(vae, pixels.to(self.device))
        if not torch.isfinite(mean).all() and vae.quant_conv.weight.dtype == torch.float16:
            # SDXL's own VAE is beyond float16's numbers. The host changes it for good when it meets this in a picture.
            vae.float()
            mean, std = _posterior(vae, pixels.to(self.device))
            vae.half()
        scale = self.model.scale_factor
        return LatentDistribution(mean * scale, std * scale)

    def has_token(self, token: str) -> bool:
        if token in self.learning:
            return False
        if token in host_text.database().word_embeddings or host_text.entry_vector(self.model, token) is not None:
            return True
        return len(self.model.cond_stage_model.tokenize([token])[0]) == 1

    def token_vectors(self, text: str) -> Tensor:
        """The vectors of an embedding, if `text` is one's name, else of the words."""
        words = host_text.database()
        embedding = words.word_embeddings.get(text)
        if embedding is not None:
            return host_text.word_vectors(embedding)
        ids = self.model.cond_stage_model.tokenize([text])[0]
        if not ids:
            return torch.zeros(0, words.expected_shape)
        return self.model.cond_stage_model.encode_embedding_init_text(text, len(ids)).detach().float()

    def count_tokens(self, caption: str, vectors: Mapping[str, Tensor]) -> int:
        first = host_text.text_encoders(self.model)[0]
        with host_text.standing_for(vectors, self.model), host_text.brackets_as_text():
            return int(first.tokenize_line(caption)[1])

    def entry_vector(self, entry: str) -> Tensor | None:
        """None for an embedding's name as well: the host reads that as the embedding, whatever its vocabulary has."""
        if entry in host_text.database().word_embeddings:
            return None
        spelled = host_text.entry_vector(self.model, entry)
        return host_text.entry_vector(self.model, entry.lower()) if spelled is None else spelled

    def encode_captions(
        self, captions: Sequence[str], vectors: Mapping[str, Tensor], sizes: Sequence[Sizes | None] = ()
    ) -> Conditioning:
        whole = Sizes((self.resolution, self.resolution), (0, 0), (self.resolution, self.resolution))
        known = [each or whole for each in sizes or [None] * len(captions)]
        with host_text.standing_for(vectors, self.model), host_text.brackets_as_text(), devices.autocast():
            return host_text.encode(self.model, captions, known)

    @torch.no_grad()
    def pooled_text(self, captions: Sequence[str]) -> Tensor:
        """The feature at the end of each caption, which CLIP pools by; SDXL's first encoder is CLIP's."""
        features = self.encode_captions(captions, {}).crossattn[:, :_CONTEXT].float()
        lengths = [min(self.count_tokens(caption, {}), _CONTEXT - 2) for caption in captions]
        ends = torch.tensor([length + 1 for length in lengths], device=features.device)
        return F.normalize(features[torch.arange(len(captions), device=features.device), ends], dim=-1)

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        if reforge.is_of_forge(self.model):
            return reforge.predict(self.model, noisy_latents, timesteps, conditioning)
        condition: dict[str, Any] = {"c_crossattn": [conditioning.crossattn]}
        if conditioning.vector is not None:
            condition = {"crossattn": conditioning.crossattn, "vector": conditioning.vector}
        return self.model.apply_model(noisy_latents, timesteps, condition)

    def gradient_checkpointing(self, on: bool) -> None:
        """Block by block, as the host has it, whose own is for SD 1 and 2 alone and has no gradients of hooks."""
        for block in self._checkpointed:
            del block.forward
        self._checkpointed = [each for each in self.unet.modules() if self._is_block(each)] if on else []
        for block in self._checkpointed:
            block.forward = partial(checkpoint, getattr(block, "_forward", block.forward), use_reentrant=False)

    def _is_block(self, module: nn.Module) -> bool:
        """`_forward` is a block without the host's checkpointing. reForge's UNet has one, too, and some blocks none."""
        named = hasattr(module, "_forward") or type(module).__name__ == "BasicTransformerBlock"
        return named and module is not self.unet

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
        """Pictures as the WebUI draws them, extra networks in the prompts included.

        A batch during which Interrupt or Skip was pressed is half-drawn and left out, as are those after it.
        With `preview` set, that is how they are drawn, whatever is asked.
        """
        sampling = self.preview or sampling
        width, height = sampling.size or (self.resolution, self.resolution)
        pictures: list[Image.Image] = []
        with host_text.standing_for(vectors, self.model), _checkpoint_as_loaded(self.model), _job_as_it_was():
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
                p.scripts = scripts.ScriptRunner()  # none of them; reForge looks for one of its own among them
                forget_encoded_prompts(p)
                with closing(p):
                    processed = processing.process_images(p)
                forget_encoded_prompts(p)
                if asked_to_stop() or shared.state.skipped:
                    break
                # The host puts a grid of the batch first.
                pictures += processed.images[processed.index_of_first_image :]
        if self.learning and reforge.is_of_forge(self.model):
            reforge.load_whole(self.model)  # for the steps that follow; a picture is drawn with parts of it in turn
        return pictures


def model_resolution(model: Any) -> int:
    """The side in pixels of the pictures that a model of the host's was made for; without a model SD 1's."""
    if model is None:
        return 512
    if model.is_sdxl:
        return LATENT_CELL * (_described_side(model) or 128)
    v_prediction = _PREDICTION_TYPES.get(model.parameterization) == "v_prediction"
    return 768 if model.is_sd2 and v_prediction else LATENT_CELL * model.image_size


def _described_side(model: Any) -> int | None:
    """Of latents, by the .yaml of an SDXL as the toy's has it, `image_size` of its model; None if it doesn't say."""
    try:
        return int(yaml.safe_load(Path(model.used_config).read_text(encoding="utf-8"))["model"]["image_size"])
    except (AttributeError, OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None


def refuse_without_checkpoint() -> None:
    """Raise UserError if the host has no checkpoint at all; asked for its model, it would print a traceback.

    If it has one that is still to be loaded, the job's page says so.
    """
    if sd_models.model_data.sd_model is None and not sd_models.checkpoints_list:
        folder = shared.cmd_opts.ckpt_dir or sd_models.model_path
        raise UserError(
            f"there is no checkpoint yet; install the toy model, or put one into {folder} and press 🔄 at the top of"
            " the page"
        )
    if sd_models.model_data.sd_model is None:
        shared.state.textinfo = f"Loading {shared.opts.sd_model_checkpoint or 'the checkpoint'}…"


def refuse_kind(model: Any) -> None:
    """Raise UserError for a kind of model that cannot be trained."""
    if getattr(model, "is_sd3", False):
        raise UserError("Stable Diffusion 3 cannot be trained; choose a checkpoint of Stable Diffusion 1, 2 or XL")
    channels = getattr(model.model.diffusion_model, "in_channels", 4)
    if channels != 4:  # those of inpainting, depth and InstructPix2Pix
        raise UserError(
            f"this checkpoint's UNet takes {channels} channels, not 4, as those for inpainting do, and cannot be"
            " trained; train on the checkpoint that it was made of, and draw with the delta here"
        )
    if not model.is_sdxl:
        return
    if not host_text.reads_only_known_sizes(model):
        raise UserError("SDXL's refiner cannot be trained; choose the base model, or one made of it")
    if getattr(model, "is_ssd", False):
        raise UserError("Segmind's SSD-1B, a distilled SDXL, cannot be trained; choose a whole SDXL")


def _header_of(model: Any) -> Header | None:
    """What the checkpoint's file says before its numbers; None if that is no safetensors file, or gone."""
    path = Path(model.sd_checkpoint_info.filename)
    return read_header(path) if path.suffix.lower() == ".safetensors" and path.is_file() else None


def _refuse_misread(model: Any, header: Header | None) -> None:
    """Raise UserError for a checkpoint whose file shows that the host's model is not what was meant.

    WebUI 1.10 goes by the .yaml alone for what is predicted, and would draw and train nonsense; and where there is no
    VAE or text encoder it keeps that of the checkpoint before, or has one of any numbers.
    """
    if header is None:
        return
    path = Path(model.sd_checkpoint_info.filename)
    if not any(name.startswith(("cond_stage_model.", "conditioner.")) for name in header.names):
        raise UserError(
            f"{path.name} has no text encoder, and the WebUI reads text with one that is not the checkpoint's own;"
            " choose the whole checkpoint"
        )
    chosen = getattr(model, "loaded_vae_file", None)
    if not chosen and not any(name.startswith("first_stage_model.") for name in header.names):
        raise UserError(f"{path.name} has no VAE, and none is chosen; choose the one that it needs in Settings, VAE")
    predicts_velocity = header.metadata.get("modelspec.prediction_type") in ("v", "v_prediction")
    if model.parameterization != "v" and ("v_pred" in header.names or predicts_velocity):
        how = "EpsScaling replaced by VScaling" if model.is_sdxl else "parameterization: v"
        raise UserError(
            f"{path.name} predicts velocity, as it says itself, but the WebUI has loaded it as a model that predicts"
            f" noise; put a {path.stem}.yaml beside it, its kind's configuration with {how}, and load it again"
        )


def _noise_schedule(model: Any, zero_terminal_snr: bool) -> Tensor:
    """ᾱ (timesteps,) in float32: the checkpoint's own, with zero terminal SNR if its file or the host's setting has it.

    The host has that as a setting, for all models; it counts only together with velocity, as nothing is to be learned
    of a picture that is noise alone when noise is what the UNet says.
    """
    own = getattr(model, "alphas_cumprod_original", model.alphas_cumprod).detach().float().cpu()
    zero_terminal_snr |= shared.opts.sd_noise_schedule == "Zero Terminal SNR"
    if model.parameterization == "v" and zero_terminal_snr:
        return sd_models.rescale_zero_terminal_snr_abar(own.clone())
    return own


def _posterior(vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of latents, float32. The VAE's parts are asked, as SDXL's gives a sample only."""
    dtype = vae.quant_conv.weight.dtype
    with devices.autocast(disable=dtype == torch.float32):
        mean, log_variance = vae.quant_conv(vae.encoder(pixels.to(dtype))).float().chunk(2, dim=1)
    return mean, (0.5 * log_variance.clamp(-30, 20)).exp()


def forget_encoded_prompts(p: processing.StableDiffusionProcessing) -> None:
    """Make the host encode prompts anew: it keeps them by their text, and words in them have changed.

    It keeps them beyond a picture, those of hires-fix too while a picture without it is drawn.
    """
    for owner in (p, processing.StableDiffusionProcessing, processing.StableDiffusionProcessingTxt2Img):
        for name in ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc"):
            cache = getattr(owner, name, None)
            if cache is not None:
                cache[:] = [None, None]


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


def asked_to_stop() -> bool:
    """Whether a person has pressed Interrupt; that of txt2img asks the host at first to end after the picture."""
    return shared.state.interrupted or getattr(shared.state, "stopping_generation", False)


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
