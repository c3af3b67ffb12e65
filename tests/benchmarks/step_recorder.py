"""Runs a training program unchanged and writes down when its optimizer steps were done and where the time between went.

    python step_recorder.py RECORD.json FIRST LAST SCRIPT.py|-m MODULE [ARGUMENT…]

Measured is from the end of optimizer step FIRST to the end of step LAST, so neither start-up nor saving counts. Phases
are calls into what any training on diffusers' models makes, told apart by wrapping those functions, which costs
microseconds a step. Processor time is this process's; what its data-loading processes use comes on top. On a GPU a
phase is the time to launch its work, unless CUDA_LAUNCH_BLOCKING=1 is set; the steps' times are right in any case, as
the GPU is waited for at both ends.
"""

from __future__ import annotations

import json
import runpy
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.optim import optimizer
from torch.utils.data import dataloader
from transformers import CLIPTextModel

PHASES: list[tuple[str, Any, str]] = [
    ("pictures", dataloader._BaseDataLoaderIter, "__next__"),
    ("VAE", AutoencoderKL, "encode"),
    ("text encoder", CLIPTextModel, "forward"),
    ("UNet", UNet2DConditionModel, "forward"),
    ("backward", torch.Tensor, "backward"),
    ("clipping", torch.nn.utils, "clip_grad_norm_"),
]


class Recorder:
    """Seconds by phase between the ends of two optimizer steps."""

    def __init__(self, path: Path, first: int, last: int) -> None:
        self.path, self.first, self.last = path, first, last
        self.created = time.perf_counter()
        self.step = 0
        self.seconds: dict[str, float] = {}
        for name, owner, function in PHASES:
            setattr(owner, function, self._timed(name, getattr(owner, function)))
        optimizer.register_optimizer_step_pre_hook(lambda *_: self._step_starts())
        optimizer.register_optimizer_step_post_hook(lambda *_: self._step_ends())

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self._add(name, time.perf_counter() - started)

        return timed

    def _add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def _step_starts(self) -> None:
        self.step_started = time.perf_counter()

    def _step_ends(self) -> None:
        self._add("optimizer", time.perf_counter() - self.step_started)
        self.step += 1
        if self.step in (self.first, self.last) and torch.cuda.is_available():
            torch.cuda.synchronize()
        if self.step == self.first:
            self.seconds.clear()
            self.started, self.processor_started = time.perf_counter(), time.process_time()
        elif self.step == self.last:
            processor = time.process_time() - self.processor_started
            self._write(time.perf_counter() - self.started, processor)

    def _write(self, elapsed: float, processor: float) -> None:
        steps = self.last - self.first
        phases = {name: 1000 * seconds / steps for name, seconds in self.seconds.items()}
        phases["other"] = 1000 * elapsed / steps - sum(phases.values())
        record = {
            "steps_per_second": steps / elapsed,
            "processor_seconds_per_step": processor / steps,
            "seconds_before_measuring": self.started - self.created,
            "milliseconds_per_step": phases,
            "peak_memory_mb": peak_memory_mb(),
            "torch": torch.__version__,
            "device": "cuda" if torch.cuda.is_available() else "cpu",
            "threads": torch.get_num_threads(),
        }
        self.path.write_text(json.dumps(record))


def peak_memory_mb() -> float:
    """Of the GPU where there is one, else of this process so far; its data-loading processes are not counted."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


if __name__ == "__main__":
    record, first, last, *program = sys.argv[1:]
    Recorder(Path(record), int(first), int(last))
    if program[0] == "-m":
        sys.argv = program[1:]
        sys.path[0] = ""
        runpy.run_module(program[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = program
        sys.path[0] = str(Path(program[0]).parent)
        runpy.run_path(program[0], run_name="__main__")
