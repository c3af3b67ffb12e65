"""What takes how long, and how much memory, at SDXL's size, on a CPU and with random weights.

    python tests/benchmarks/sdxl_size.py --work FOLDER [--parts step prior merge compress] [--side 16] [--captions 16]

step, prior: a checkpoint as large as SDXL's (7 GB, float16) is written to FOLDER and loaded, and the trainer takes two
steps of one picture, or measures Σ and λ of the text prior. Weights stay in float16 as on a GPU, mapped from the file;
layers compute in float32, as CPUs without units for half precision take minutes for some. Beside it stands what
memory.py counts for the same.

merge, compress: of two deltas with random numbers for all 140 projections, and random text features 2,048 wide.

Memory is the process's own (RssAnon, Linux), the most of what is there beyond what was there before.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "standalone"))

import full_size
import memory

from lib_custom_diffusion.algebra.compression import Limit, compress, functional_error
from lib_custom_diffusion.algebra.merging import merge
from lib_custom_diffusion.attention import projections
from lib_custom_diffusion.delta import Delta, Entry, Factors, Provenance
from lib_custom_diffusion.standalone.models import load_model
from lib_custom_diffusion.text_features import BUNDLED_CAPTIONS, read_captions
from lib_custom_diffusion.training import prior

RANK = 32
WIDTH = 2048
PARTS = ("step", "prior", "merge", "compress")


class Watch:
    """Seconds, processor seconds and bytes that a block takes."""

    def __enter__(self) -> Watch:
        self._before = self._most = anonymous()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._started = time.perf_counter(), time.process_time()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds, self.processor = time.perf_counter() - self._started[0], time.process_time() - self._started[1]
        self._ended.set()
        self._thread.join()
        self.bytes = self._most - self._before

    def _look(self) -> None:
        while not self._ended.wait(0.01):
            self._most = max(self._most, anonymous())

    def __str__(self) -> str:
        return f"{self.seconds:.0f} s ({self.processor:.0f} s of processor), {self.bytes / 1e9:.2f} GB"


def anonymous() -> int:
    """Bytes of this process that are of no file."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return 1024 * int(line.split()[1])


def write_checkpoint(path: Path) -> None:
    """Every tensor of a checkpoint of SDXL in float16: matrices of random numbers, norms of ones, biases of zeros."""
    from tiny_checkpoints import sdxl

    generator = torch.Generator().manual_seed(0)

    def filled(name: str, shape: torch.Size) -> Tensor:
        if name.endswith("position_ids"):
            return torch.arange(shape[-1])[None]
        if len(shape) < 2:
            return torch.full(shape, float(name.endswith("weight")), dtype=torch.float16)
        scale = 0.03 if "embedding" in name else (3 / shape[1:].numel()) ** 0.5
        return torch.empty(shape).uniform_(-scale, scale, generator=generator).half()

    with torch.device("meta"):
        pipeline = full_size.sdxl()
    save_file({name: filled(name, tensor.shape) for name, tensor in sdxl(pipeline).items()}, path)


@contextmanager
def computing_in_float32(*models: nn.Module) -> Iterator[None]:
    """Within the block each layer turns its weights into float32 while it computes."""

    def computed(layer: nn.Module, own: Callable[..., Any], given: Tensor, *more: Any) -> Any:
        if isinstance(layer, nn.Embedding):
            return own(given, *more).float()
        whole = {name: parameter.float() for name, parameter in layer.named_parameters()}
        with mock.patch.dict(layer._parameters, whole):
            return own(given.float(), *more)

    layers = [part for model in models for part in model.modules() if part._parameters and not list(part.children())]
    for layer in layers:
        layer.forward = partial(computed, layer, layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def parts_of(pipeline: Any) -> list[nn.Module]:
    return [pipeline.unet, pipeline.text_encoder, pipeline.text_encoder_2]


def counted_step(side: int) -> int:
    """The bytes that memory.py counts for a step, weights and what is learned aside."""
    pipeline = memory.on_meta(full_size.sdxl)
    with memory.without_numbers(), memory.Ledger() as ledger, tempfile.TemporaryDirectory() as folder:
        pipeline.unet.register_to_config(sample_size=side)
        memory.take_all_memory(pipeline)
        with computing_in_float32(*parts_of(pipeline)):
            training = memory.trainer(memory.DiffusersBackend(pipeline, "counted"), Path(folder), "no")
            training.text_prior = None
            memory.begin(training, RANK)
            training._step()
            ledger.restart()
            before = ledger.alive
            training._step()
            return ledger.most - before


def measure_step(checkpoint: Path, side: int) -> None:
    with Watch() as loading:
        backend = load_model(str(checkpoint), torch.float16)
    backend.pipeline.unet.register_to_config(sample_size=side)
    backend.resolution = 8 * side
    print(f"loading: {loading}", flush=True)
    with tempfile.TemporaryDirectory() as folder, computing_in_float32(*parts_of(backend.pipeline)):
        training = memory.trainer(backend, Path(folder), "no")
        training.text_prior = None
        memory.begin(training, RANK)
        for number in (1, 2):
            with Watch() as step:
                losses = training._step()
            print(f"step {number} of {side} × {side} latents, loss {losses[0]:.4f}: {step}", flush=True)
        numbers = sum(each.numel() for each in training._parameters().values())
        moved = sum(bool(each.any()) for name, each in training._parameters().items() if name.endswith("US"))
        print(f"learned: {numbers:,} numbers; {moved} of 140 projections and both words' vectors moved")
    print(f"counted for a step: {counted_step(side) / 1e9:.2f} GB", flush=True)


def measure_prior(checkpoint: Path, side: int, captions: int) -> None:
    backend = load_model(str(checkpoint), torch.float16)
    everything = read_captions(BUNDLED_CAPTIONS)
    layers = projections(backend.unet, "crossattn_kv")
    with tempfile.TemporaryDirectory() as folder, computing_in_float32(*parts_of(backend.pipeline)):
        listed = Path(folder) / "captions.txt"
        listed.write_text("\n".join(everything[:captions]))
        with Watch() as moments:
            prior.moments_by_kind(backend, everything[:captions])
        print(f"moments of {captions} of {len(everything)} captions: {moments}", flush=True)
        with Watch() as whole:
            form = prior.text_prior(backend, layers, [], [torch.zeros(4, side, side)], 0.1, listed)
        print(f"the text prior of {captions} captions, {len(form.scales)} layers: {whole}", flush=True)
        parameters = {f"{key}.{part}": nn.Parameter(tensor) for key, entry in random_factors(0).items()
                      for part, tensor in (("US", entry.us), ("Vh", entry.vh))}  # fmt: skip
        with Watch() as penalty:
            form.add_gradients(parameters)
        print(f"its gradient for factors of rank {RANK}: {penalty}", flush=True)


def shapes() -> dict[str, int]:
    """The key and the output width of each projection of SDXL."""
    with torch.device("meta"):
        unet = full_size.sdxl_unet()
    return {key: layer.module.out_features for key, layer in projections(unet, "crossattn_kv").items()}


def random_factors(seed: int) -> dict[str, Factors]:
    generator = torch.Generator().manual_seed(seed)
    return {
        key: Factors(
            torch.randn(outs, RANK, generator=generator) * torch.linspace(1, 0.05, RANK),
            torch.randn(RANK, WIDTH, generator=generator) / WIDTH,
        )
        for key, outs in shapes().items()
    }


def delta_of(entries: dict[str, Entry], number: int) -> Delta:
    return Delta(entries, {f"<new{number}>": torch.ones(1, WIDTH)}, Provenance("sdxl"))


def features(rows: int, seed: int) -> Tensor:
    """Random text features (rows, 2048), some directions of which are far stronger than others."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(9))).Q
    return (torch.randn(rows, WIDTH, generator=generator) * torch.arange(1, WIDTH + 1) ** -0.7) @ turn


def moment_of(rows: Tensor) -> Tensor:
    return (rows.T @ rows).double() / len(rows)


def dense(factors: dict[str, Factors]) -> dict[str, Entry]:
    """Full matrices, which are near to those of a low rank, as learned ones are."""
    generator = torch.Generator().manual_seed(3)
    return {
        key: (entry.us @ entry.vh + 1e-5 * torch.randn(entry.shape, generator=generator)).half()
        for key, entry in factors.items()
    }


def measure_merging() -> None:
    deltas = [delta_of(random_factors(seed), seed) for seed in (1, 2)]
    targets = [features(6, 10).double(), features(6, 11).double()]
    regularization, contexts = features(6000, 12).double(), [moment_of(features(4000, seed)) for seed in (13, 14)]
    for name, two in (
        (f"rank {RANK}", deltas),
        ("full matrices", [replace(each, entries=dense(each.entries)) for each in deltas]),
    ):
        with Watch() as merging:
            found = merge(two, targets, regularization, contexts)
        print(f"merge, {name}: {merging}; {len(found.delta.to_bytes()):,} bytes, constraint {found.residual:.1e}")
        del two


def measure_compression() -> None:
    factors, moment = random_factors(1), moment_of(features(8000, 12))
    for name, entries in ((f"rank {RANK}", factors), ("full matrices", dense(factors))):
        delta = delta_of(entries, 1)
        with Watch() as compressing:
            small = compress(delta, Limit(max_bytes=10_000_000), moment)
        error = functional_error(delta, small, moment)
        sizes = f"{len(delta.to_bytes()):,} to {len(small.to_bytes()):,} bytes"
        print(f"compress, {name}: {compressing}; {sizes}, error {error:.1%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the checkpoint, which is kept")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--side", type=int, default=16, help="of the latents of the one picture")
    parser.add_argument("--captions", type=int, default=16, help="how many of the ordinary captions Σ is measured over")
    options = parser.parse_args()
    checkpoint = options.work / "sdxl.safetensors"
    if not checkpoint.is_file() and {"step", "prior"} & set(options.parts):
        options.work.mkdir(parents=True, exist_ok=True)
        write_checkpoint(checkpoint)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    for part in options.parts:
        {
            "step": partial(measure_step, checkpoint, options.side),
            "prior": partial(measure_prior, checkpoint, options.side, options.captions),
            "merge": measure_merging,
            "compress": measure_compression,
        }[part]()


if __name__ == "__main__":
    main()
