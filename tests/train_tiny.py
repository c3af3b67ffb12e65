"""Trainings on TinyBackend: in the test's own process, or in others, to kill them or to have two train together.

As a program this imports torch once and forks for every training, which then begins at once. `Trainings` starts it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # each training's first optimizer step would import it
import torch.distributed as dist

from lib_custom_diffusion.data.concepts import Concept, ConceptExamples, Example
from lib_custom_diffusion.training import checkpoints
from lib_custom_diffusion.training.config import TrainingConfig
from lib_custom_diffusion.training.loop import Trainer
from tiny import TinyBackend

CONCEPT = Concept("photo of a <new1> cat", Path("pictures"), "cat")
SECOND = Concept("photo of a <new2> dog", Path("others"), "dog")


def examples(count: int = 5, seed: int = 0) -> ConceptExamples:
    generator = torch.Generator().manual_seed(seed)

    def example(caption: str) -> Example:
        mean = torch.randn(4, 2, 2, generator=generator)
        return Example(mean, torch.full_like(mean, 0.1), torch.ones(1, 2, 2), caption)

    instance = [example("photo of a <new1> cat") for _ in range(count)]
    return ConceptExamples(instance, [example("photo of a cat") for _ in range(count + 2)])


def second_examples() -> ConceptExamples:
    """Of a second concept, which has no regularization pictures."""
    generator = torch.Generator().manual_seed(9)
    means = torch.randn(3, 4, 2, 2, generator=generator)
    return ConceptExamples(
        [Example(mean, torch.full_like(mean, 0.1), torch.ones(1, 2, 2), SECOND.instance_prompt) for mean in means], []
    )


def trainer(
    folder: Path, resume: Path | None = None, backend: TinyBackend | None = None, concepts: int = 1, **settings: Any
) -> Trainer:
    defaults: dict[str, Any] = {
        "learning_rate": "1e-2",
        "embedding_learning_rate": "1e-2",
        "checkpointing_steps": 7,
        "max_train_steps": 20,
    }
    if concepts == 2:
        defaults |= {"modifier_token": ("<new1>", "<new2>"), "initializer_token": ("ktn", "pll")}
    config = TrainingConfig(**{**defaults, **settings})
    both = [CONCEPT, SECOND][:concepts]
    given = [examples(), second_examples()][:concepts]
    return Trainer(backend or TinyBackend(), both, given, config, folder, "tiny", resume)


class Trainings:
    """Trainings in processes of their own; at its end none is left."""

    def __init__(self) -> None:
        root = Path(__file__).parents[1]
        self._program = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def start(self, folder: Path, ranks: int = 1, pause: float = 0.0, **settings: Any) -> list[int]:
        """Process ids of a training's ranks. It goes on from its newest save. pause: seconds after each step."""
        return self._answer({"folder": str(folder), "ranks": ranks, "pause": pause, "settings": settings})

    def exit_codes(self, processes: list[int]) -> list[int]:
        """How they ended, once they have; minus the signal for those that were killed."""
        return self._answer({"wait": processes})

    def close(self) -> None:
        self._program.communicate()

    def _answer(self, request: dict[str, Any]) -> list[int]:
        assert self._program.stdin is not None and self._program.stdout is not None
        print(json.dumps(request), file=self._program.stdin, flush=True)
        return json.loads(self._program.stdout.readline())


def _train(folder: Path, pause: float, settings: dict[str, Any]) -> None:
    resume = checkpoints.resolve_checkpoint(folder, "latest")
    trainer(folder, resume, **settings).run(on_progress=lambda progress: time.sleep(pause))


def _fork(rank: int, request: dict[str, Any]) -> int:
    process = os.fork()
    if process == 0:
        status = 1
        try:
            os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
            folder = Path(request["folder"])
            if request["ranks"] > 1:
                dist.init_process_group(
                    "gloo", init_method=f"file://{folder}.store", rank=rank, world_size=request["ranks"],
                    timeout=timedelta(seconds=60),
                )  # fmt: skip
            _train(folder, request["pause"], request["settings"])
            status = 0
        finally:
            os._exit(status)
    return process


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in request["wait"]]
        else:
            answer = [_fork(rank, request) for rank in range(request["ranks"])]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
