"""A training on TinyBackend as a program: `train_tiny.py FOLDER STEPS BATCH [SECONDS_PER_STEP]`.

Tests start it in processes of its own, to kill it or to start two that train together.
"""

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from lib_custom_diffusion.data.concepts import Concept, ConceptExamples, Example
from lib_custom_diffusion.training import checkpoints
from lib_custom_diffusion.training.loop import Trainer, TrainingConfig
from tiny import TinyBackend

CONCEPT = Concept("photo of a <new1> cat", Path("pictures"), "cat")


def examples(count: int = 5, seed: int = 0) -> ConceptExamples:
    generator = torch.Generator().manual_seed(seed)

    def example(caption: str) -> Example:
        mean = torch.randn(4, 2, 2, generator=generator)
        return Example(mean, torch.full_like(mean, 0.1), torch.ones(1, 2, 2), caption)

    instance = [example("photo of a <new1> cat") for _ in range(count)]
    return ConceptExamples(instance, [example("photo of a cat") for _ in range(count + 2)])


def trainer(folder: Path, resume: Path | None = None, backend: TinyBackend | None = None, **settings) -> Trainer:
    defaults = {
        "learning_rate": "1e-2",
        "embedding_learning_rate": "1e-2",
        "checkpointing_steps": 7,
        "max_train_steps": 20,
    }
    config = TrainingConfig(**{**defaults, **settings})
    return Trainer(backend or TinyBackend(), [CONCEPT], [examples()], config, folder, "tiny", resume)


def main() -> None:
    folder, steps, batch = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    pause = float(sys.argv[4]) if len(sys.argv) > 4 else 0.0
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    resume = checkpoints.resolve_checkpoint(folder, "latest")
    run = trainer(folder, resume, max_train_steps=steps, train_batch_size=batch)
    run.run(on_progress=lambda progress: time.sleep(pause))


if __name__ == "__main__":
    main()
