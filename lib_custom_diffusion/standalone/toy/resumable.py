"""A training that can be stopped at any time and goes on from its last save by the same command."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


@dataclass
class Course:
    """How long and how fast to learn: `peak` learning rate after `warmup` steps, then a cosine down to a fiftieth."""

    steps: int
    peak: float
    warmup: int
    ema_decay: float
    save_every: int = 200

    def learning_rate(self, step: int) -> float:
        """The learning rate of `step`, counted from 0."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        fraction = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * fraction)))

    def ema(self, step: int) -> float:
        """The share of the average that is kept at `step`; less at the start, which is better forgotten."""
        return min(self.ema_decay, (1 + step) / (10 + step))


def save_atomically(data: object, path: Path) -> None:
    """Write `data` with torch.save so that `path` always holds a whole file."""
    aside = path.with_suffix(".partial")
    torch.save(data, aside)
    os.replace(aside, path)


def run(module: M, course: Course, loss_of_step: Callable[[int], torch.Tensor], path: Path, device: torch.device) -> M:
    """Train `module` along `course` and return it with its averaged (EMA) weights.

    Args:
        loss_of_step: draws the batch of a step and returns its loss; all randomness must come from the step's number.
        path: where the state is kept; training goes on from there if it exists.
    """
    optimizer = torch.optim.AdamW(module.parameters(), lr=course.peak, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    parameters: list[torch.Tensor] = list(module.parameters())
    average = [parameter.detach().clone() for parameter in parameters]
    first = 0
    if path.exists():
        state = torch.load(path, map_location=device, weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        average, first = state["average"], state["step"]
    clock, since, total = time.monotonic(), first, 0.0
    for step in range(first, course.steps):
        for group in optimizer.param_groups:
            group["lr"] = course.learning_rate(step)
        loss = loss_of_step(step)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1 - course.ema(step))
        total += float(loss.detach())
        if (step + 1) % 50 == 0 or step + 1 == course.steps:
            seconds = (time.monotonic() - clock) / (step + 1 - since)
            left = seconds * (course.steps - step - 1) / 60
            mean = total / (step + 1 - since)
            done = f"{path.stem} {step + 1}/{course.steps}"
            print(f"{done}  loss {mean:.4f}  {seconds:.2f} s/step  {left:.0f} min left", flush=True)
            clock, since, total = time.monotonic(), step + 1, 0.0
        if (step + 1) % course.save_every == 0 or step + 1 == course.steps:
            state = {"module": module.state_dict(), "optimizer": optimizer.state_dict()}
            save_atomically(state | {"average": average, "step": step + 1}, path)
    with torch.no_grad():
        for parameter, averaged in zip(parameters, average, strict=True):
            parameter.copy_(averaged)
    return module
