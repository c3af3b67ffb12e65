"""The toys' UNets and text encoders: learning to draw what a caption says."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from transformers import CLIPTokenizer, PreTrainedModel

from . import architecture, world
from .resumable import Course, run, save_atomically
from .train_autoencoder import Doubling, to_tensor

PICTURES = 30_000
BATCH = 64
COURSE = Course(steps=5000, peak=1e-3, warmup=150, ema_decay=0.999, muon=True)
EMPTY_CAPTION_SHARE = 0.12  # classifier-free guidance needs them (Ho and Salimans, arXiv 2207.12598)
SNR_CAP, WEIGHT_CAP = 5.0, 20.0
TOKEN_VECTORS = "text_model.embeddings.token_embedding.weight"


@dataclass
class Latents:
    """The pictures to learn from: `values` (n, 4, 16, 16), one a scene."""

    values: torch.Tensor
    scenes: list[world.Scene]


def scenes(count: int) -> list[world.Scene]:
    """The scenes of the cache, the same in every run."""
    rng = random.Random("scenes")
    return [world.random_scene(rng) for _ in range(count)]


@torch.no_grad()
def encode(vae: AutoencoderKL, work: Path, device: torch.device) -> Latents:
    """Draw and encode the scenes, once; a run that was stopped goes on where it was.

    Changes `vae` so that each channel of the latents has mean 0 and deviation 1, and the scaling factor is 1.
    """
    path, drawn = work / "latents.pt", scenes(PICTURES)
    known = torch.load(path, weights_only=True) if path.exists() else torch.empty(0, 4, *[architecture.LATENT_SIDE] * 2)
    parts = [known]
    for start in range(len(known), PICTURES, 40):
        pictures = to_tensor([world.draw(scene) for scene in drawn[start : start + 40]])
        with torch.autocast(device.type, torch.bfloat16):
            encoded = vae.encode(pictures.to(device, memory_format=torch.channels_last)).latent_dist.mean
        parts.append(encoded.float().cpu())
        if (start + 40) % 2000 == 0:
            parts = [torch.cat(parts)]
            save_atomically(parts[0], path)
            print(f"latents {start + 40}/{PICTURES}", flush=True)
    values = torch.cat(parts)
    mean, deviation = values.mean(dim=(0, 2, 3)), values.std(dim=(0, 2, 3))
    standardize(vae, mean.to(device), deviation.to(device))
    return Latents((values - mean[:, None, None]) / deviation[:, None, None], drawn)


@torch.no_grad()
def standardize(vae: AutoencoderKL, mean: torch.Tensor, deviation: torch.Tensor) -> None:
    """Fold (latents - mean) / deviation into the VAE's 1×1 convolutions before and after the latents, exactly."""
    scale = torch.cat([deviation, torch.ones_like(deviation)])
    shift = torch.cat([mean / deviation, 2 * deviation.log()])  # the second half holds logarithms of variances
    vae.quant_conv.weight.div_(scale[:, None, None, None])
    vae.quant_conv.bias.div_(scale).sub_(shift)
    vae.post_quant_conv.bias.add_((vae.post_quant_conv.weight * mean[None, :, None, None]).sum(dim=(1, 2, 3)))
    vae.post_quant_conv.weight.mul_(deviation[None, :, None, None])


class Denoiser(nn.Module):
    """The UNet and the text encoder, trained together."""

    unet: UNet2DConditionModel

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self._take(architecture.unet())
        self.text_encoder = architecture.text_encoder(tokenizer)

    def _take(self, unet: UNet2DConditionModel) -> None:
        self.unet = unet
        for block in unet.up_blocks:
            for index, sampler in enumerate(block.upsamplers or ()):
                block.upsamplers[index] = Doubling(sampler.conv)
        # Plain attention: on a CPU the backward pass of the fused one takes a third of a step.
        unet.set_attn_processor(AttnProcessor())

    def view(self, latents: torch.Tensor, rng: random.Random) -> tuple[torch.Tensor, ...]:
        """What is shown of pictures (n, 4, 16, 16), and what else than a caption is told of them: here nothing."""
        return (latents,)

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """The noise in `noisy` (n, 4, 16, 16) at `timesteps` (n,), given token ids (n, 77)."""
        features = self.text_encoder(input_ids).last_hidden_state
        return self.unet(noisy, timesteps, features).sample


@torch.no_grad()
def start_from(denoiser: Denoiser, tokenizer: CLIPTokenizer, toy: StableDiffusionPipeline) -> None:
    """Give an untrained denoiser the weights of an earlier toy of the same architecture; words it lacks stay random."""
    denoiser.unet.load_state_dict(toy.unet.state_dict())
    weights = toy.text_encoder.state_dict()
    known = weights.pop(TOKEN_VECTORS)
    vectors = denoiser.text_encoder.state_dict()[TOKEN_VECTORS].normal_(0, float(known.std()))
    known_tokens = toy.tokenizer.get_vocab()
    for token, index in tokenizer.get_vocab().items():
        if token in known_tokens:
            vectors[index] = known[known_tokens[token]]
    denoiser.text_encoder.load_state_dict(weights | {TOKEN_VECTORS: vectors})


D = TypeVar("D", bound=Denoiser)


def loss_weights(scheduler: DDIMScheduler) -> torch.Tensor:
    """Weight of each timestep's error in the noise, min(SNR + 1, 5) / SNR and at most 20.

    That is the error in the picture counted about alike at every timestep ("SNR+1" of Salimans and Ho, arXiv
    2202.00512, capped as in min-SNR, arXiv 2303.09556). Plain weights count it by SNR, and then what a caption decides,
    which is decided where there is most noise, is learned last.
    """
    alphas = scheduler.alphas_cumprod
    snr = alphas / (1 - alphas)
    return ((snr + 1).clamp(max=SNR_CAP) / snr).clamp(max=WEIGHT_CAP)


def train(latents: Latents, denoiser: D, path: Path, course: Course, device: torch.device) -> D:
    """Train a UNet and its text encoders, from the weights they have or from the last save, which is at `path`."""
    denoiser.to(device)
    denoiser.unet.to(memory_format=torch.channels_last)
    for module in denoiser.children():
        if isinstance(module, PreTrainedModel):
            module.set_attn_implementation("eager")
    scheduler = architecture.scheduler()
    weights = loss_weights(scheduler).to(device)
    alphas = scheduler.alphas_cumprod.to(device)
    tokenizer = denoiser.tokenizer

    @torch.compile(dynamic=False)
    def objective(
        clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, *told: torch.Tensor
    ) -> torch.Tensor:
        alpha = alphas[timesteps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        error = F.mse_loss(denoiser(noisy, timesteps, *told).float(), noise, reduction="none").mean(dim=(1, 2, 3))
        return (weights[timesteps] * error).mean()

    def loss_of_step(step: int) -> torch.Tensor:
        rng, generator = random.Random(f"diffusion {step}"), torch.Generator().manual_seed(step)
        chosen = [rng.randrange(len(latents.scenes)) for _ in range(BATCH)]
        captions = [
            "" if rng.random() < EMPTY_CAPTION_SHARE else world.caption(latents.scenes[index], rng) for index in chosen
        ]
        input_ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        clean, *told = denoiser.view(latents.values[chosen], rng)
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(len(weights), (BATCH,), generator=generator)
        with torch.autocast(device.type, torch.bfloat16):
            return objective(*(each.to(device) for each in (clean, noise, timesteps, input_ids, *told)))

    return run(denoiser, course, loss_of_step, path, device).eval()
