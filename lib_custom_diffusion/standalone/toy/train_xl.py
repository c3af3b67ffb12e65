"""The toy in SDXL's layout: what it has more than the other, and how it starts from that one's weights."""

import random

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.transformers import Transformer2DModel
from torch import nn
from transformers import CLIPTokenizer

from . import architecture, world
from .resumable import Course
from .train_diffusion import Denoiser, scenes

COURSE = Course(steps=2000, peak=8e-4, warmup=100, ema_decay=0.998, save_every=100, muon=True)
CROPPED_SHARE, ENLARGED_SHARE = 0.2, 0.3
CELL = architecture.PICTURE_SIDE // architecture.LATENT_SIDE  # pixels that a number of the latents stands for
FARTHEST = 5  # cells cut off
LARGEST = 1024  # side of an original that was scaled down to the toy's


class DenoiserXL(Denoiser):
    """SDXL's UNet and its two text encoders, trained together."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        nn.Module.__init__(self)
        self.tokenizer = tokenizer
        self._take(architecture.unet_xl())
        self.text_encoder = architecture.first_text_encoder(tokenizer)
        self.text_encoder_2 = architecture.second_text_encoder(tokenizer)

    def view(self, latents: torch.Tensor, rng: random.Random) -> tuple[torch.Tensor, ...]:
        """Pictures, some of them cropped, and their sizes (n, 6): height and width before, top and left that were cut
        off, height and width now.

        A crop shows what is to the right of and below the drawing: more of its ground, as at its edge.
        """
        side, shown, sizes = architecture.PICTURE_SIDE, [], []
        for picture in latents:
            top, left, height, width = 0, 0, side, side
            chance = rng.random()
            if chance < CROPPED_SHARE:
                top, left = rng.randint(0, FARTHEST), rng.randint(0, FARTHEST)
                rows, columns = (
                    (torch.arange(architecture.LATENT_SIDE) + cut).clamp(max=architecture.LATENT_SIDE - 1)
                    for cut in (top, left)
                )
                picture = picture[:, rows][:, :, columns]
                height, width = side + CELL * top, side + CELL * left
            elif chance < CROPPED_SHARE + ENLARGED_SHARE:
                height = width = rng.randint(side, LARGEST)
            shown.append(picture)
            sizes.append([height, width, CELL * top, CELL * left, side, side])
        return torch.stack(shown), torch.tensor(sizes, dtype=torch.float32)

    def forward(  # type: ignore[override]
        self, noisy: torch.Tensor, timesteps: torch.Tensor, input_ids: torch.Tensor, sizes: torch.Tensor
    ) -> torch.Tensor:
        """The noise in `noisy` (n, 4, 16, 16) at `timesteps` (n,), given token ids (n, 77) and `view`'s sizes.

        Features of an empty caption are zeros, as of SDXL's empty negative prompt.
        """
        end = self.tokenizer.eos_token_id
        behind_end = (input_ids == end).cumsum(dim=1) > 1  # OpenCLIP pads with 0
        first = self.text_encoder(input_ids, output_hidden_states=True)
        second = self.text_encoder_2(input_ids.masked_fill(behind_end, 0), output_hidden_states=True)
        features = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        empty = input_ids[:, 1:2] == end
        features = features.masked_fill(empty[:, :, None], 0)
        added = {"text_embeds": second.text_embeds.masked_fill(empty, 0), "time_ids": sizes}
        return self.unet(noisy, timesteps, features, added_cond_kwargs=added).sample


@torch.no_grad()
def start_from(denoiser: DenoiserXL, toy: StableDiffusionPipeline) -> None:
    """Give an untrained SDXL the weights of a toy in Stable Diffusion 1's layout with the same words.

    What the toy has not starts as no change: transformers and blocks of them give nothing, the UNet does not read the
    second text encoder, nor sizes nor pooled text. The last normalisation of the text, which SDXL does not have,
    becomes the linear map that is nearest to it on captions.
    """
    matrix, shift = _nearest_linear_map(toy)
    _start_texts(denoiser, toy, torch.linalg.pinv(matrix, rtol=1e-3) @ shift)
    known = toy.unet.float().state_dict()
    unet: UNet2DConditionModel = denoiser.unet
    for module in unet.modules():
        if isinstance(module, Transformer2DModel):
            module.proj_out.weight.zero_()
            module.proj_out.bias.zero_()
        if isinstance(module, BasicTransformerBlock):
            for last in (module.attn1.to_out[0], module.attn2.to_out[0], module.ff.net[2]):
                last.weight.zero_()
                last.bias.zero_()
    unet.add_embedding.linear_2.weight.zero_()
    unet.add_embedding.linear_2.bias.zero_()
    for name, own in unet.state_dict().items():
        weight = known.get(name)
        if weight is None:
            continue
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            own.zero_()[:, : architecture.TEXT_WIDTH] = weight @ matrix
        else:
            own.copy_(weight.reshape(own.shape))


def _start_texts(denoiser: DenoiserXL, toy: StableDiffusionPipeline, shift: torch.Tensor) -> None:
    known = toy.text_encoder.float().state_dict()
    known[f"text_model.encoder.layers.{architecture.TEXT_LAYERS - 1}.mlp.fc2.bias"] += shift
    denoiser.text_encoder.load_state_dict(known, strict=False)
    denoiser.text_encoder_2.load_state_dict(known, strict=False)


def _nearest_linear_map(toy: StableDiffusionPipeline) -> tuple[torch.Tensor, torch.Tensor]:
    """A (128, 128) and b (128,) with A h + b ≈ the text encoder's last normalisation of h, by least squares."""
    rng = random.Random("text")
    captions = [world.caption(scene, rng) for scene in scenes(200)]
    ids = toy.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    read = toy.text_encoder.float()(ids, output_hidden_states=True)
    before, after = read.hidden_states[-1].flatten(0, 1), read.last_hidden_state.flatten(0, 1)
    solution = torch.linalg.lstsq(torch.cat([before, torch.ones(len(before), 1)], dim=1), after).solution
    return solution[:-1].T.contiguous(), solution[-1]
