"""The generate command: pictures, with the deltas that the prompt names."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import torch
from PIL import Image, PngImagePlugin
from torch import Tensor
from tqdm import tqdm

from ..backend import Sampling
from ..delta import Delta
from ..errors import UserError
from ..injection import Injection
from ..storage import write_atomically
from ..tokens import load_embedding
from .diffusers_backend import DiffusersBackend
from .models import best_device, load_model
from .prompts import find_delta, split_deltas


def generate(options: argparse.Namespace) -> int:
    """Run the command; returns its exit status. Raises UserError for whatever the user can mend."""
    prompt, tags = split_deltas(options.prompt)
    deltas = [(Delta.load(find_delta(name, options.deltas_dir)), weight) for name, weight in tags]
    device = best_device()
    backend = load_model(options.model, torch.float16 if device.type == "cuda" else torch.float32, device)
    vectors = _vectors(backend, [delta for delta, _ in deltas], options.embedding)
    sampling = sampling_of(options)
    seeds = [options.seed + index for index in range(options.num_images)]
    with Injection(backend.unet, deltas), tqdm(total=len(seeds), unit="picture") as bar:
        for start in range(0, len(seeds), sampling.batch_size):
            batch = seeds[start : start + sampling.batch_size]
            for seed, picture in zip(batch, backend.generate([prompt] * len(batch), batch, sampling, vectors)):
                path = options.output / f"{seed:05d}.png"
                write_atomically(path, _png(picture, f"{options.prompt}\nSteps: {sampling.steps}, Seed: {seed}"))
                tqdm.write(str(path))
            bar.update(len(batch))
    return 0


def sampling_of(options: argparse.Namespace) -> Sampling:
    """How the flags of `generate` and `regularize` say that pictures are drawn. Raises UserError for bad numbers."""
    for name in ("num_inference_steps", "sample_batch_size"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} must be 1 or more, not {getattr(options, name)}")
    size = (options.resolution, options.resolution) if options.resolution else None
    return Sampling(
        options.num_inference_steps, options.guidance_scale, options.negative_prompt, size, options.sample_batch_size
    )


def _vectors(backend: DiffusersBackend, deltas: list[Delta], embeddings: list[Path]) -> dict[str, Tensor]:
    """The new words of the deltas and embedding files. Raises UserError if one is of another width than the model's."""
    vectors: dict[str, Tensor] = {}
    for delta in deltas:
        vectors |= delta.embeddings
    vectors |= {f"<{path.stem}>": load_embedding(path) for path in embeddings}
    width = backend.token_vectors("a").shape[1]
    for token, found in vectors.items():
        if found.shape[1] != width:
            raise UserError(
                f"{token} is {found.shape[1]} wide, the words of {backend.name} {width}: made for another model"
            )
    return {token: found.to(backend.device) for token, found in vectors.items()}


def _png(picture: Image.Image, parameters: str) -> bytes:
    """A PNG that tells how it was made where the WebUI tells it."""
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", parameters)
    content = io.BytesIO()
    picture.save(content, "png", pnginfo=info)
    return content.getvalue()
