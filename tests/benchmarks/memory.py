"""The accelerator's memory that a training takes, counted without an accelerator and without weights.

    python tests/benchmarks/memory.py [--models sd1,sdxl] [--ranks 8,32,0] [--check]

A model of full size is made of tensors that have shapes and no numbers (torch's fake tensors), and the trainer's own
code runs on it: pictures are encoded, the text prior is measured, a step is taken with gradient checkpointing and a
batch of 1. Each tensor is counted from when it is made until nothing refers to it any more. What comes on top on CUDA
is not counted: half a gigabyte to one for the driver, libraries' workspaces, and what the allocator rounds up.

Precision is that of --mixed_precision bf16 on a GPU: weights in bfloat16, the VAE's in float32; under autocast norms
are computed in float32 as CUDA's autocast has them and the CPU's has not, and AdamW takes all parameters at once.

`--check` trains a tiny SDXL with real numbers and compares the count with what torch's profiler says that the CPU's
allocator gave.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "standalone"))

from lib_custom_diffusion.backend import LATENT_CELL, Sizes
from lib_custom_diffusion.data.concepts import Concept, ConceptExamples, Example, views_at_once
from lib_custom_diffusion.injection import TrainableDelta
from lib_custom_diffusion.standalone.diffusers_backend import DiffusersBackend
from lib_custom_diffusion.training.config import TrainingConfig
from lib_custom_diffusion.training.loop import Trainer

MODELS = {"sd1": "stable_diffusion_1", "sdxl": "sdxl"}
CONCEPT = Concept("photo of a <new1> cat", Path("pictures"), "cat")


class Ledger(TorchDispatchMode):
    """Bytes of tensors: those alive now, and the most at any time since `restart`."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        made = function(*arguments, **(named or {}))
        for tensor in tree_iter(made):
            if isinstance(tensor, Tensor):
                self.add(tensor)
        return made

    def add(self, tensor: Tensor) -> None:
        """Count what a tensor's memory holds, unless it is counted already, until nothing refers to it."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.alive += size
        self.most = max(self.most, self.alive)
        weakref.finalize(storage, self._gone, key, size)

    def restart(self) -> None:
        gc.collect()
        self.most = self.alive

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size


def in_float32(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A norm that is computed in float32 under autocast, as CUDA's autocast has it."""

    def computed(*arguments: Any) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            arguments = tuple(each.float() if isinstance(each, Tensor) else each for each in arguments)
        return norm(*arguments)

    return computed


@dataclass(frozen=True)
class Account:
    """Bytes of a model's trainings: of its parts, and the most that there ever is while something is done.

    before: by what is done before the first step, whatever the rank. learned, steps: by rank, 0 for full matrices.
    """

    unet: int
    text_encoders: int
    autoencoder: int
    before: dict[str, int]
    learned: dict[int, int]
    steps: dict[int, int]


@contextmanager
def without_numbers() -> Iterator[None]:
    """Within the block tensors have no numbers; code that asks one for its number is told 1, or 0 for an integer."""
    asked = mock.patch.multiple(Tensor, item=lambda tensor: 1.0, __int__=lambda tensor: 0)
    norms = {name: in_float32(getattr(nn.functional, name)) for name in ("group_norm", "layer_norm")}
    with FakeTensorMode(allow_non_fake_inputs=True), asked, mock.patch.multiple(nn.functional, **norms):
        yield


def account(pipeline: DiffusionPipeline, ranks: Sequence[int]) -> Account:
    """That of a model on the `meta` device, at its own resolution."""
    with without_numbers(), Ledger() as ledger, tempfile.TemporaryDirectory() as folder:
        take_all_memory(pipeline)
        backend = DiffusersBackend(pipeline, "counted")
        encoders = [part for name, part in pipeline.components.items() if name.startswith("text_encoder")]

        def most_of(act: Callable[[], Any]) -> int:
            ledger.restart()
            act()
            return ledger.most

        canvas = (backend.resolution, backend.resolution)
        pixels = (views_at_once(canvas), 3, *canvas)
        before = {"encoding pictures": most_of(lambda: backend.encode_pictures(torch.zeros(pixels)))}
        training = trainer(backend, Path(folder))
        before["measuring the text prior"] = most_of(lambda: measure_prior(training))
        sizes = [size_of(part) for part in (pipeline.unet, pipeline.vae)]
        pipeline.vae = None  # set aside while it trains
        learned, steps = {}, {}
        for rank in ranks:
            begin(training, rank)
            training._step()  # the first one makes the optimizer's moments
            steps[rank] = most_of(training._step)
            numbers = sum(each.numel() for each in training._parameters().values())
            learned[rank] = 4 * 4 * numbers  # in float32: value, gradient and two moments
            training.delta.remove()
        return Account(sizes[0], sum(map(size_of, encoders)), sizes[1], before, learned, steps)


def trainer(backend: DiffusersBackend, folder: Path, precision: str = "bf16") -> Trainer:
    """A training of one picture, with gradient checkpointing."""
    side = backend.resolution // LATENT_CELL
    whole = (backend.resolution, backend.resolution)
    mean = torch.zeros(4, side, side)
    example = Example(mean, mean, torch.ones(1, side, side), CONCEPT.instance_prompt, Sizes(whole, (0, 0), whole))
    config = TrainingConfig(train_batch_size=1, gradient_checkpointing=True, mixed_precision=precision)
    return Trainer(backend, [CONCEPT], [ConceptExamples([example], [])], config, folder, "memory")


def measure_prior(training: Trainer) -> None:
    training.text_prior = training._text_prior()


def begin(training: Trainer, rank: int) -> None:
    """What `Trainer.run` does before the first step."""
    training.delta = TrainableDelta(training.layers, training.backend.device, rank)
    training.backend.gradient_checkpointing(True)
    training.optimizer = training._optimizer()
    for group in training.optimizer.param_groups:
        group["foreach"] = True  # as on CUDA
    training.scaler = torch.amp.GradScaler("cpu", enabled=False)
    training.step = 0


def on_meta(make: Callable[[], DiffusionPipeline]) -> DiffusionPipeline:
    """A model without memory, in the precisions that `load_model` gives it on a GPU."""
    with torch.device("meta"):
        pipeline = make()
    for name, part in pipeline.components.items():
        if name == "unet" or name.startswith("text_encoder"):
            part.to(torch.bfloat16)
    return pipeline


def checked(make: Callable[[], DiffusionPipeline], rank: int) -> tuple[int, int]:
    """Bytes that a step in float32 takes beyond those before it: as counted, and as the CPU's allocator gave."""
    with without_numbers(), Ledger() as ledger, tempfile.TemporaryDirectory() as folder:
        with torch.device("meta"):
            pipeline = make()
        take_all_memory(pipeline)
        step = second_step(pipeline, rank, Path(folder))
        ledger.restart()
        before = ledger.alive
        step()
        counted = ledger.most - before
    with tempfile.TemporaryDirectory() as folder:
        step = second_step(make(), rank, Path(folder))
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            step()
    return counted, most_given(seen)


def second_step(pipeline: DiffusionPipeline, rank: int, folder: Path) -> Callable[[], Any]:
    """A step to take in float32, when one was taken and the optimizer has its moments."""
    training = trainer(DiffusersBackend(pipeline, "checked"), folder, "no")
    measure_prior(training)
    begin(training, rank)
    training._step()
    return training._step


def most_given(seen: profile) -> int:
    """The most bytes that the allocator had given at any time, of those that it gave within the profile."""
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def take_all_memory(pipeline: DiffusionPipeline) -> None:
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            take_memory(part)


def take_memory(model: nn.Module) -> None:
    """Give a model of the `meta` device tensors that count, of any values."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype), False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def size_of(module: nn.Module) -> int:
    tensors = [*module.parameters(), *module.buffers()]
    return sum(each.numel() * each.element_size() for each in tensors)


def main() -> None:
    options = parse()
    if options.check:
        from tiny_checkpoints import sdxl_pipeline

        counted, given = checked(sdxl_pipeline.__wrapped__, 4)
        print(f"counted {counted:,} bytes, given {given:,}: {counted / given:.3f} of it")
        return
    import full_size

    for model in options.models.split(","):
        print(table(model, account(on_meta(getattr(full_size, MODELS[model])), options.ranks)), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="of " + ", ".join(MODELS))
    parser.add_argument(
        "--ranks", type=lambda text: [int(rank) for rank in text.split(",")], default=[8, 32, 64, 0],
        help="0 for full matrices",
    )  # fmt: skip
    parser.add_argument("--check", action="store_true", help="compare a count with real allocations")
    return parser.parse_args()


def table(model: str, found: Account) -> str:
    """In gigabytes of 10⁹ bytes."""
    lines = [f"| {model} | GB |", "| --- | --- |"]
    parts = {"UNet": found.unet, "text encoders": found.text_encoders, "VAE": found.autoencoder}
    for name, size in {**parts, **{f"{phase}, the most": most for phase, most in found.before.items()}}.items():
        lines.append(f"| {name} | {size / 1e9:.2f} |")
    for rank, most in found.steps.items():
        name = f"rank {rank}" if rank else "full matrices"
        lines.append(f"| {name}: learned, with gradients and moments | {found.learned[rank] / 1e9:.2f} |")
        lines.append(f"| {name}: a step, the most | {most / 1e9:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
