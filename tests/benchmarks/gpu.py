"""What a training step costs on this machine's GPU, in one command and at most ten minutes.

    python tests/benchmarks/gpu.py [--minutes 10] [--output FILE.json]

A model of Stable Diffusion 1's size with random weights trains at 512 × 512 pixels: steps a second, the share of the
GPU's arithmetic that this uses, and the most memory, at several batches, with and without gradient checkpointing, the
text prior and torch.compile; then the paper's recipe (250 steps with a batch of 8, arXiv 2212.04488, §4) in seconds.
Measured is from the end of the first steps to the end of the last; the seconds until the end of the first step, in
which torch.compile does its work, stand apart. What does not fit into the memory is told so. `--dry_run` goes through
all but compiling on tiny models and any machine; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lib_custom_diffusion.data.concepts import Concept, ConceptExamples, Example
from lib_custom_diffusion.standalone.diffusers_backend import DiffusersBackend
from lib_custom_diffusion.training.config import TrainingConfig
from lib_custom_diffusion.training.loop import Trainer

CONCEPT = Concept("photo of a <new1> cat", Path("pictures"), "cat")
PAPER = {"steps": 250, "batch": 8}
PEAK_TFLOPS = {
    "H100": 989, "H200": 989, "A100": 312, "L40S": 362, "L4": 121, "A10": 125, "T4": 65, "4090": 165, "3090": 71,
}  # fmt: skip
"""Dense half-precision tensor arithmetic by NVIDIA's data sheets, with float32 accumulation."""


@dataclass(frozen=True)
class Case:
    """One way to train. model: whose size it is of, sd1 or sdxl."""

    batch: int = 1
    prior: str = "text"
    checkpointing: bool = False
    compiled: bool = False
    model: str = "sd1"

    def row(self, figures: str) -> str:
        """A line of the table."""
        flags = ("yes" if flag else "no" for flag in (self.checkpointing, self.compiled))
        return f"| {self.model} | {self.batch} | {self.prior} | {' | '.join(flags)} | {figures} |"


CASES = [
    Case(1), Case(1, compiled=True), Case(4), Case(4, compiled=True), Case(8), Case(8, compiled=True),
    Case(1, "none"), Case(4, "none"),
    Case(1, checkpointing=True), Case(4, checkpointing=True), Case(8, checkpointing=True),
    Case(1, model="sdxl"), Case(1, checkpointing=True, model="sdxl"), Case(4, checkpointing=True, model="sdxl"),
    Case(1, compiled=True, model="sdxl"),
]  # fmt: skip


@dataclass(frozen=True)
class Figures:
    """What a case cost."""

    seconds_to_first_step: float
    steps_per_second: float
    tflop_per_step: float
    peak_gib: float

    def row(self, case: Case, peak_tflops: float) -> str:
        """A line of the table; the arithmetic of checkpointing's second forward pass counts as work, too."""
        achieved = self.tflop_per_step * self.steps_per_second
        share = f"{100 * achieved / peak_tflops:.0f} %" if peak_tflops else "?"
        return case.row(
            f"{self.seconds_to_first_step:.1f} | {self.steps_per_second:.2f} | {achieved:.1f} | {share}"
            f" | {self.peak_gib:.1f}"
        )


def main() -> None:
    options = parse()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not options.dry_run:
        sys.exit("no GPU was found; --dry_run tries the program on the CPU")
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    peak = next((tflops for part, tflops in PEAK_TFLOPS.items() if part in name), 0)
    config = settings(options.dry_run, device)
    print(f"{name}, torch {torch.__version__}, mixed_precision {config.mixed_precision}\n")
    columns = "model | batch | prior | checkpointing | compiled | s to step 1 | steps/s | TFLOP/s | of the peak | GiB"
    print(f"| {columns} |\n" + "| --- " * 10 + "|")
    ends = time.monotonic() + 60 * options.minutes
    results: list[dict[str, Any]] = []
    loaded = backend = None
    side = 0
    for case in [case for case in CASES if not (case.compiled and options.dry_run)]:
        if time.monotonic() > ends:
            print(f"\nstopped after {options.minutes} minutes")
            break
        try:
            if loaded != case.model:
                backend = loaded = None  # one at a time
                backend, side = model(case.model, options.dry_run, device)
                loaded = case.model
            figures = attempt(backend, case, config, side)
        except torch.cuda.OutOfMemoryError:
            print(case.row("out of memory | | | | "))
            continue
        print(figures.row(case, peak), flush=True)
        results.append({**asdict(case), **asdict(figures)})
    print(recipe(results))
    if options.output:
        options.output.write_text(json.dumps({"device": name, "torch": torch.__version__, "cases": results}, indent=2))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="no case is begun after that many")
    parser.add_argument("--dry_run", action="store_true", help="a tiny model on any machine, to try this program")
    parser.add_argument("--output", type=Path, help="write the figures there, as JSON")
    return parser.parse_args()


def model(size: str, dry_run: bool, device: torch.device) -> tuple[DiffusersBackend, int]:
    """The model, and the side of its latents. size: sd1 or sdxl; of a dry run, the layout alone."""
    if dry_run:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "standalone"))
        import tiny_checkpoints
        import tiny_pipeline

        tiny = tiny_checkpoints.sdxl_pipeline() if size == "sdxl" else tiny_pipeline.stable_diffusion_2()
        return DiffusersBackend(tiny.to(device), "tiny"), 8
    from full_size import sdxl, stable_diffusion_1

    torch.set_default_dtype(torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16)
    try:
        with device:  # where random numbers for billions of weights take no time, and need no room twice
            pipeline = sdxl() if size == "sdxl" else stable_diffusion_1()
    finally:
        torch.set_default_dtype(torch.float32)
    return DiffusersBackend(pipeline, size), 128 if size == "sdxl" else 64


def settings(dry_run: bool, device: torch.device) -> TrainingConfig:
    """A few steps in the precision that a person would choose on this device."""
    half = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp16"
    precision = "no" if device.type == "cpu" else half
    steps = 3 if dry_run else 30
    return TrainingConfig(mixed_precision=precision, max_train_steps=steps, checkpointing_steps=steps)


def attempt(backend: DiffusersBackend, case: Case, config: TrainingConfig, side: int) -> Figures:
    """A case's figures. Raises torch.cuda.OutOfMemoryError where it does not fit."""
    try:
        return measure(backend, case, config, side)
    finally:
        backend.compile(False)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def measure(backend: DiffusersBackend, case: Case, config: TrainingConfig, side: int) -> Figures:
    """Two steps to count the arithmetic of the second, then all of them against the clock."""
    chosen = replace(
        config, train_batch_size=case.batch, prior=case.prior, gradient_checkpointing=case.checkpointing
    )  # fmt: skip
    first, last = config.max_train_steps // 3, config.max_train_steps
    latents = torch.randn(4, 4, side, side, generator=torch.Generator().manual_seed(0))
    mask, spread = torch.ones(1, side, side), torch.full((4, side, side), 0.1)
    examples = ConceptExamples([Example(mean, spread, mask, CONCEPT.instance_prompt) for mean in latents], [])

    def train(config: TrainingConfig, after_step: Callable[[int], None]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(backend, [CONCEPT], [examples], config, Path(folder), "speed")
            trainer.run(lambda progress: after_step(progress.step))

    marks: dict[int, float] = {}

    def mark(step: int) -> None:
        if step in (1, first, last):
            synchronize()
            marks[step] = time.perf_counter()

    counts: list[int] = []
    with FlopCounterMode(display=False) as counter:
        train(replace(chosen, max_train_steps=2), lambda _: counts.append(counter.get_total_flops()))
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    backend.compile(case.compiled)
    began = time.perf_counter()
    train(chosen, mark)
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else math.nan
    speed = (last - first) / (marks[last] - marks[first])
    return Figures(marks[1] - began, speed, (counts[1] - counts[0]) / 1e12, peak)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def recipe(results: list[dict[str, Any]]) -> str:
    """How long the paper's recipe takes, by the fastest case of its batch."""
    speeds = [
        each["steps_per_second"]
        for each in results
        if each["model"] == "sd1" and each["batch"] == PAPER["batch"] and each["prior"] == "text"
    ]
    if not speeds:
        return "\nThe paper's batch of 8 did not fit, or was not reached."
    return f"\nThe paper's recipe, 250 steps with a batch of 8: {PAPER['steps'] / max(speeds):.0f} s"


if __name__ == "__main__":
    main()
