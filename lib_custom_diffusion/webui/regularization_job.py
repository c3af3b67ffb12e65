"""Regularization pictures, drawn by the WebUI or picked from a folder, as one of its jobs."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from modules import shared
from PIL import Image
from torch import Tensor

from .. import regularization
from ..backend import Sampling
from ..captions import caption_beside, captioned_pictures
from ..errors import UserError
from ..storage import write_atomically
from .host_backend import HostBackend

JOB = "custom-diffusion-regularization"


class Interrupted(UserError):
    """The person pressed Interrupt; what was drawn before is kept."""


class _DrawingBackend(HostBackend):
    """Leaves nothing half-drawn: a batch during which Interrupt was pressed does not count."""

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], sampling: Sampling, vectors: Mapping[str, Tensor]
    ) -> list[Image.Image]:
        pictures = super().generate(prompts, seeds, sampling, vectors)
        if shared.state.interrupted:
            raise Interrupted("Interrupted. What was drawn is kept; the same settings go on from there.")
        return pictures


def draw_class(
    folder: Path, class_prompt: str, count: int, sampling: Sampling, seed: int, sampler_name: str
) -> list[Path]:
    """Draw pictures of a class prompt until the folder has `count`; returns those drawn now.

    Raises Interrupted, and UserError as `regularization.generate` does.
    """
    backend = _DrawingBackend(sampler_name=sampler_name)
    show = _begin(count)
    return regularization.generate(backend, class_prompt, folder, count, sampling, seed, show)


def draw_captions(
    folder: Path, captions_folder: Path, times: int, sampling: Sampling, seed: int, sampler_name: str
) -> list[Path]:
    """Draw each caption of a captioned folder `times` times, number i with seed + i; returns those drawn now.

    What is in the folder already is kept. Raises Interrupted, and UserError where there are no captions or the folder
    has pictures of other captions.
    """
    captions = [caption for _, caption in captioned_pictures(captions_folder) if caption]
    if not captions:
        raise UserError(f"{captions_folder} has no captions; put a text file of the same name beside each picture")
    if times < 1:
        raise UserError(f"each caption is drawn at least once, not {times} times")
    prompts = captions * times
    backend = _DrawingBackend(sampler_name=sampler_name)
    show = _begin(len(prompts))
    drawn: list[Path] = []
    for start in range(0, len(prompts), sampling.batch_size):
        numbers = range(start, min(start + sampling.batch_size, len(prompts)))
        paths = [folder / f"{number:04d}.png" for number in numbers]
        _check_captions(paths, prompts[start:])
        if not all(path.exists() for path in paths):
            pictures = backend.generate(
                [prompts[number] for number in numbers], [seed + number for number in numbers], sampling, {}
            )
            for path, number, picture in zip(paths, numbers, pictures, strict=True):
                if not path.exists():
                    write_atomically(path.with_suffix(".txt"), f"{prompts[number]}\n".encode())
                    write_atomically(path, _png(picture))
                    drawn.append(path)
        show(numbers[-1] + 1, len(prompts))
    return drawn


def pick(source: Path, target: Path, class_prompt: str, count: int) -> int:
    """List in `target` the pictures of a captioned folder nearest to the class prompt; returns how many.

    Raises UserError as `regularization.pick` and `regularization.write_listing` do.
    """
    picked = regularization.pick(HostBackend(), source, class_prompt, count, _begin(count))
    regularization.write_listing(picked, target)
    return len(picked)


def _begin(count: int) -> Callable[[int, int], None]:
    """Start the job on the page; returns what tells it how far it is."""
    shared.state.job, shared.state.job_count = JOB, count

    def show(done: int, total: int) -> None:
        shared.state.job_no = done
        shared.state.textinfo = f"{done} of {total} pictures"
        if shared.state.interrupted:
            raise Interrupted("Interrupted. What was drawn is kept; the same settings go on from there.")

    return show


def _check_captions(paths: Sequence[Path], prompts: Sequence[str]) -> None:
    for path, prompt in zip(paths, prompts, strict=False):
        if path.exists() and caption_beside(path) != " ".join(prompt.split()):
            raise UserError(f"{path} is a picture of {caption_beside(path)!r}, not {prompt!r}; choose another folder")


def _png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, format="PNG")
    return content.getvalue()
