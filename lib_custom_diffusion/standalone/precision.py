"""Which precision a training is fastest in on this machine: `--mixed_precision auto`."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from ..attention import projections
from ..injection import TrainableDelta
from ..training import checkpoints
from .diffusers_backend import DiffusersBackend

AUTO = "auto"
_TRIALS = 3
_WORTH_IT = 0.9
"""bfloat16 has an eighth of float32's digits; it is taken if a step needs no more than this part of the time."""


def gpu_precision() -> str:
    """What GPUs compute fastest in: bfloat16, which cannot overflow as float16 can, where they have it."""
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def saved_precision(output_dir: Path, resume: str | None) -> str | None:
    """The precision of the save that a training goes on from, as a change would be another training.

    Raises UserError as `checkpoints.resolve_checkpoint` and `checkpoints.read_identity` do.
    """
    checkpoint = checkpoints.resolve_checkpoint(output_dir, resume)
    if checkpoint is None:
        return None
    return checkpoints.read_identity(checkpoint)[1].settings.get("mixed_precision")


def cpu_precision(backend: DiffusersBackend, batch: int) -> str:
    """By a short trial, "bf16" if that makes a step of `batch` pictures clearly faster on this CPU, else "no".

    It does where the CPU has matrix units for it (AMX), and there only if the model is not too small.
    """
    seconds = {precision: _seconds(backend, batch, precision == "bf16") for precision in ("no", "bf16")}
    return "bf16" if seconds["bf16"] < _WORTH_IT * seconds["no"] else "no"


def _seconds(backend: DiffusersBackend, batch: int, autocast: bool) -> float:
    """The time that the UNet takes forwards and backwards, at best of a few trials after a first one."""
    side = backend.resolution // 8
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(batch, 4, side, side, generator=generator)
    timesteps = torch.full((batch,), 500)
    with torch.no_grad():
        conditioning = backend.encode_captions(["photo"] * batch, {})
    delta = TrainableDelta(projections(backend.unet, "crossattn_kv"), backend.device)
    taken = []
    try:
        for _ in range(1 + _TRIALS):
            started = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                backend.predict(latents, timesteps, conditioning).float().square().mean().backward()
            taken.append(time.perf_counter() - started)
    finally:
        delta.remove()
    return min(taken[1:])
