"""The toy's VAE: drawings to latents, eight times smaller, and back."""

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from PIL import Image, ImageOps
from torch import nn
from torch.func import functional_call

from . import architecture, world
from .resumable import Course, run

CROP_STEPS, CROPS, CROP = 2900, 8, 64
WHOLE_STEPS, WHOLE = 150, 3
COURSE = Course(steps=CROP_STEPS + WHOLE_STEPS, peak=1e-3, warmup=100, ema_decay=0.995)
SHARPEN = Course(steps=5000, peak=5e-4, warmup=50, ema_decay=0.995, save_every=100, muon=True)
KL_WEIGHT = 1e-6  # 1e-4 wins over the pictures while nothing is learned yet, and the latents collapse
LATENT_NOISE = 0.12  # the decoder learns to paint cleanly from latents that are off by this much of their deviation
SHARPEN_NOISE, SHARPNESS_WEIGHT, MATCHING_WEIGHT, VERDICT_WEIGHT = 0.04, 6.0, 1.0, 0.25


class Doubling(nn.Module):
    """diffusers' Upsample2D, nearest neighbour then a convolution, without `interpolate`.

    torch.compile's CPU code for the backward pass of `interpolate` gives no gradient at all (seen with torch 2.13.0),
    so nothing below an upsampler would learn.
    """

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, hidden: torch.Tensor, output_size: None = None) -> torch.Tensor:
        """(n, c, h, w) to (n, c, 2h, 2w)."""
        n, c, h, w = hidden.shape
        return self.conv(hidden[:, :, :, None, :, None].expand(n, c, h, 2, w, 2).reshape(n, c, 2 * h, 2 * w))


def to_tensor(pictures: list[Image.Image]) -> torch.Tensor:
    """Pictures as (n, 3, height, width) in [-1, 1]."""
    stacked = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def drawing(rng: random.Random) -> Image.Image:
    """A drawing for the VAE: of the world, or of glyphs outside it on any colour, so that concepts to come fit too."""
    if rng.random() < 0.75:
        return world.draw(world.random_scene(rng))
    glyphs = [rng.choice(world.other_glyphs()) for _ in range(rng.choice((1, 1, 2)))]
    if len(glyphs) == 2:
        scene = world.pair_of(rng, glyphs[0], glyphs[1], "white")
    else:
        scene = world.scene_of(rng, glyphs[0], "white", rng.choice(("small", "medium", "medium", "large")))
    shade = (rng.randint(0, 255), rng.randint(0, 255), rng.randint(0, 255))
    look = rng.choice((None, None, None, *world.LOOKS))
    return world.draw(world.Scene(scene.placed, scene.colour, shade, look=look))


def crop(picture: Image.Image, rng: random.Random) -> Image.Image:
    """A `CROP`-sided piece of a picture, more often from its middle, where the things are."""
    left, top = (round(rng.triangular(0, world.SIZE - CROP)) for _ in range(2))
    return picture.crop((left, top, left + CROP, top + CROP))


def batch(step: int) -> torch.Tensor:
    """The pictures of a step: crops at first, then whole pictures, whose GroupNorm statistics are those of use."""
    rng = random.Random(f"autoencoder {step}")
    if step < CROP_STEPS:
        return to_tensor([crop(drawing(rng), rng) for _ in range(CROPS)])
    return to_tensor([drawing(rng) for _ in range(WHOLE)])


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 of the pictures, of their edges, and of both at half and quarter size: sharp, with true colours."""
    loss = output.new_zeros(())
    for _ in range(3):
        difference = output - target
        loss = loss + difference.abs().mean()
        loss = loss + difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean()
        output, target = F.avg_pool2d(output, 2), F.avg_pool2d(target, 2)
    return loss


def sharpness_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """How much steeper or flatter a painting is than its original, within 4 × 4 pixels, wherever in them the edge lies.

    L1 alone makes an edge soft where the latents leave open which pixel it runs through.
    """

    def steepness(pictures: torch.Tensor) -> torch.Tensor:
        down, across = pictures.diff(dim=2)[..., 1:], pictures.diff(dim=3)[:, :, 1:]
        squared = (down.square() + across.square()).sum(dim=1, keepdim=True)
        return (F.avg_pool2d(squared, 4, 2) + 1e-4).sqrt()

    return F.l1_loss(steepness(output), steepness(target))


def objective(vae: AutoencoderKL, pictures: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """Reconstruction through sampled latents plus the weighted Kullback-Leibler divergence.

    Args:
        noise: two draws of the latents' shape, (2, n, 4, h, w): the posterior's and that of `level`, (n, 1, 1, 1).
    """
    mean, log_variance = vae.quant_conv(vae.encoder(pictures)).chunk(2, dim=1)
    log_variance = log_variance.clamp(-30, 20)
    latents = mean + noise[0] * (0.5 * log_variance).exp()
    latents = latents + level * noise[1] * latents.detach().std()
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return reconstruction_loss(vae.decoder(vae.post_quant_conv(latents)).float(), pictures) + KL_WEIGHT * divergence


@torch.no_grad()
def start_from(vae: AutoencoderKL, earlier: AutoencoderKL) -> None:
    """Give an untrained VAE the weights of an `earlier` one; residual blocks that it has not start as no change."""
    known = earlier.state_dict()
    for name, module in vae.named_modules():
        if isinstance(module, ResnetBlock2D) and f"{name}.conv2.weight" not in known:
            module.conv2.weight.zero_()
            module.conv2.bias.zero_()
    vae.load_state_dict(vae.state_dict() | known)


@torch.no_grad()
def start_transparent(vae: AutoencoderKL) -> None:
    """Set the weights to start from so that a flat colour gets through, which default ones learn very slowly.

    LDM's GroupNorm takes the mean out of each group of three channels, and flat colours with it. If two of the three
    are large opposite constants, the group's statistics are theirs and the third channel passes unchanged but for
    scale; so the first convolutions add such constants, and the samplers start as plain averaging and copying, which
    keep them.
    """
    for half in (vae.encoder, vae.decoder):
        half.conv_in.bias[0::3] = 0
        half.conv_in.bias[1::3] = 1.5
        half.conv_in.bias[2::3] = -1.5
    same = torch.eye(vae.config.block_out_channels[0])
    for block in vae.encoder.down_blocks:
        for sampler in block.downsamplers or ():
            sampler.conv.weight.mul_(0.3)[:, :, :2, :2] += same[:, :, None, None] / 4
    for block in vae.decoder.up_blocks:
        for sampler in block.upsamplers or ():
            sampler.conv.weight.mul_(0.3)[:, :, 1, 1] += same
    # Small posterior deviations: under unit noise the decoder learns to ignore the latents.
    vae.quant_conv.bias[architecture.LATENT_CHANNELS :] = -6


def train(work: Path, device: torch.device) -> AutoencoderKL:
    """Train the VAE, or go on training it, and return it with the latents' scale in its configuration."""
    torch.manual_seed(1)
    vae = architecture.autoencoder().to(device, memory_format=torch.channels_last)
    start_transparent(vae)

    def loss_of_step(step: int) -> torch.Tensor:
        pictures = batch(step).to(device, memory_format=torch.channels_last)
        generator = torch.Generator().manual_seed(step)
        side = pictures.shape[-1] // 8
        noise = torch.randn(2, len(pictures), architecture.LATENT_CHANNELS, side, side, generator=generator).to(device)
        highest = LATENT_NOISE * min(1, max(0, step / CROP_STEPS - 0.2))
        level = highest * torch.rand(len(pictures), 1, 1, 1, generator=generator).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            return objective(vae, pictures, noise, level)

    return run(vae, COURSE, loss_of_step, work / "vae.pt", device).eval()


class Critic(nn.Module):
    """Says of each patch of a picture, 22 pixels wide, how real it looks (PatchGAN, arXiv 1611.07004)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 48, 96, 128)
        self.layers = nn.ModuleList(
            nn.Conv2d(inside, outside, 4, 2, 1) for inside, outside in itertools.pairwise(widths)
        )
        self.verdict = nn.Conv2d(widths[-1], 1, 3, 1, 1)

    def forward(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        """(n, 3, h, w) to what each layer sees, the last (n, 1, h / 8, w / 8) being high where it looks real."""
        seen = []
        for layer in self.layers:
            pictures = F.leaky_relu(layer(pictures), 0.2)
            seen.append(pictures)
        return [*seen, self.verdict(pictures)]


class _Reverse(torch.autograd.Function):
    """Forward nothing; backward, the gradient times `-weight`, so critic and decoder share a loss and pull apart."""

    @staticmethod
    def forward(ctx: Any, pictures: torch.Tensor, weight: float) -> torch.Tensor:
        ctx.weight = weight
        return pictures.view_as(pictures)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return -ctx.weight * gradient, None


class Painting(nn.Module):
    """The VAE, or its decoder alone, and the critic of its pictures, trained together."""

    def __init__(self, vae: AutoencoderKL, decoder_only: bool) -> None:
        super().__init__()
        self.vae, self.decoder_only = vae, decoder_only
        self.critic = Critic()

    def forward(self, pictures: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """The loss of painting `pictures` again: what differs, what the critic sees in them, and its verdict.

        The second is feature matching (arXiv 1711.11585, equation 3), the third the adversarial loss (arXiv 1406.2661).

        Args:
            noise: what is added to the latents, (n, 4, h, w), in their deviations.
        """
        with torch.set_grad_enabled(not self.decoder_only):
            latents = self.vae.quant_conv(self.vae.encoder(pictures)).chunk(2, dim=1)[0].float()
        latents = latents + noise * latents.detach().std(dim=(0, 2, 3), keepdim=True)
        painted = self.vae.decoder(self.vae.post_quant_conv(latents)).float()
        frozen = {name: parameter.detach() for name, parameter in self.critic.named_parameters()}
        with torch.no_grad():
            true_features = self.critic(pictures)[:-1]
        features = functional_call(self.critic, frozen, (painted,))[:-1]
        matching = sum(F.l1_loss(a.float(), b.float()) for a, b in zip(features, true_features, strict=True))
        real, false = (
            self.critic(pictures)[-1].float(),
            self.critic(_Reverse.apply(painted, VERDICT_WEIGHT))[-1].float(),
        )
        contest = F.softplus(-real).mean() + F.softplus(false).mean()
        likeness = reconstruction_loss(painted, pictures) + SHARPNESS_WEIGHT * sharpness_loss(painted, pictures)
        return likeness + MATCHING_WEIGHT * matching + contest


def sharpen(vae: AutoencoderKL, work: Path, device: torch.device, decoder_only: bool = False) -> AutoencoderKL:
    """Train the VAE on, with whole pictures and a critic, so that edges and faces come through.

    With `decoder_only` latents keep their meaning, and UNets that were trained on them stay as they are.
    """
    for block in vae.decoder.up_blocks:
        for index, sampler in enumerate(block.upsamplers or ()):
            block.upsamplers[index] = Doubling(sampler.conv)
    painting = Painting(vae.to(memory_format=torch.channels_last), decoder_only).to(device)
    loss_of = torch.compile(painting, dynamic=False)

    def loss_of_step(step: int) -> torch.Tensor:
        rng, generator = random.Random(f"sharpen {step}"), torch.Generator().manual_seed(step)
        drawn = [ImageOps.mirror(each) if rng.random() < 0.5 else each for each in (drawing(rng) for _ in range(WHOLE))]
        pictures = to_tensor(drawn).to(device, memory_format=torch.channels_last)
        latents = (WHOLE, architecture.LATENT_CHANNELS, *[architecture.LATENT_SIDE] * 2)
        level = SHARPEN_NOISE * torch.rand(WHOLE, 1, 1, 1, generator=generator)
        noise = level * torch.randn(latents, generator=generator)
        with torch.autocast(device.type, torch.bfloat16):
            return loss_of(pictures, noise.to(device))

    run(painting, SHARPEN, loss_of_step, work / "painting.pt", device)
    return vae
