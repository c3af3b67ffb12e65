from typing import ClassVar

import torch
from PIL import Image

from modules import shared


class StableDiffusionProcessing:
    cached_uc: ClassVar[list] = [None, None]
    cached_c: ClassVar[list] = [None, None]

    def comment(self, text):
        self.comments[text] = 1

    def close(self):
        pass


class StableDiffusionProcessingTxt2Img(StableDiffusionProcessing):
    cached_hr_uc: ClassVar[list] = [None, None]
    cached_hr_c: ClassVar[list] = [None, None]

    def __init__(self, sd_model=None, prompt="", negative_prompt="", seed=-1, subseed=-1, batch_size=1, steps=50,
                 cfg_scale=7.0, sampler_name=None, width=512, height=512, do_not_save_grid=False,
                 do_not_save_samples=False, do_not_reload_embeddings=False):  # fmt: skip
        self.sd_model, self.prompt, self.seed, self.width, self.height = sd_model, prompt, seed, width, height
        self.batch_size, self.steps = batch_size, steps
        self.prompts, self.comments, self.extra_generation_params = None, {}, {}


class Processed:
    def __init__(self, p, images_list):
        self.images, self.index_of_first_image = images_list, 0


def process_images(p):
    """One grey picture a prompt, told by what the model makes of the prompt and the seed."""
    pictures = []
    shared.state.skipped = False
    if shared.state.interrupted or shared.state.stopping_generation:
        return Processed(p, pictures)
    for prompt, seed in zip(p.prompt, p.seed, strict=True):
        context = p.sd_model.cond_stage_model([prompt])
        noise = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            value = p.sd_model.model.diffusion_model(noise, torch.tensor([50]), context).mean().item()
        pictures.append(Image.new("L", (p.width, p.height), int(max(0, min(255, 128 + 60 * value)))))
        shared.state.job_no += 1
    return Processed(p, pictures)
