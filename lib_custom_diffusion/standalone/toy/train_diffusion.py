"""The toy's UNet and text encoder: learning to draw what a caption says."""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from transformers import CLIPTokenizer

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

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.unet = architecture.unet()
        for block in self.unet.up_blocks:
            for index, sampler in enumerate(block.upsamplers or ()):
                block.upsamplers[index] = Doubling(sampler.conv)
        # Plain attention: on a CPU the backward pass of the fused one takes a third of a step.
        self.unet.set_attn_processor(AttnProcessor())
        self.text_encoder = architecture.text_encoder(tokenizer)

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


def loss_weights(scheduler: DDIMScheduler) -> torch.Tensor:
    """Weight of each timestep's error in the noise, min(SNR + 1, 5) / SNR and at most 20.

    That is the error in the picture counted about alike at every timestep ("SNR+1" of Salimans and Ho, arXiv
    2202.00512, capped as in min-SNR, arXiv 2303.09556). Plain weights count it by SNR, and then what a caption decides,
    which is decided where there is most noise, is learned last.
    """
    alphas = scheduler.alphas_cumprod
    snr = alphas / (1 - alphas)
    return ((snr + 1).clamp(max=SNR_CAP) / snr).clamp(max=WEIGHT_CAP)


def train(
    latents: Latents,
    tokenizer: CLIPTokenizer,
    work: Path,
    device: torch.device,
    earlier: StableDiffusionPipeline | None = None,
) -> Denoiser:
    """Train the UNet and the text encoder, from the start, from an `earlier` toy's weights or from the last save."""
    torch.manual_seed(2)
    denoiser = Denoiser(tokenizer)
    if earlier:
        start_from(denoiser, tokenizer, earlier)
    denoiser.to(device)
    denoiser.unet.to(memory_format=torch.channels_last)
    denoiser.text_encoder.set_attn_implementation("eager")
    scheduler = architecture.scheduler()
    weights = loss_weights(scheduler).to(device)
    alphas = scheduler.alphas_cumprod.to(device)

    @torch.compile(dynamic=False)
    def objective(
        clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, input_ids: torch.Tensor
    ) -> torch.Tensor:
        alpha = alphas[timesteps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        error = F.mse_loss(denoiser(noisy, timesteps, input_ids).float(), noise, reduction="none").mean(dim=(1, 2, 3))
        return (weights[timesteps] * error).mean()

    def loss_of_step(step: int) -> torch.Tensor:
        rng, generator = random.Random(f"diffusion {step}"), torch.Generator().manual_seed(step)
        chosen = [rng.randrange(len(latents.scenes)) for _ in range(BATCH)]
        captions = [
            "" if rng.random() < EMPTY_CAPTION_SHARE else world.caption(latents.scenes[index], rng) for index in chosen
        ]
        input_ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        clean = latents.values[chosen]
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(len(weights), (BATCH,), generator=generator)
        with torch.autocast(device.type, torch.bfloat16):
            return objective(*(each.to(device) for each in (clean, noise, timesteps, input_ids)))

    return run(denoiser, COURSE, loss_of_step, work / "diffusion.pt", device).eval()
