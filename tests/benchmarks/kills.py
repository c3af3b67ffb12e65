"""Kills a training at random instants until it has been killed often enough, and compares what it leaves in the end.

    python tests/benchmarks/kills.py FOLDER [--kills 60] [--steps 100] [--seed 0]

The delta, the word, loss.csv and the last save must be those of a training that nobody killed, to the byte. Half of the
kills strike while a save is being written. A training that is done before it was killed often enough begins anew. One
process imports everything and forks for each run; the model is of random weights and tiny.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
import torch._dynamo  # each run's first optimizer step would import it
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "standalone"))
from lib_custom_diffusion.standalone import cli, train  # noqa: F401 - what cli.main would import
from lib_custom_diffusion.training.checkpoints import load_state
from tiny_pipeline import stable_diffusion_2

RESULTS = ("new1.delta.safetensors", "new1.pt", "loss.csv")


def start(arguments: list[str], log: Path) -> int:
    """A run in a process of its own; its id."""
    process = os.fork()
    if process == 0:
        said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
        status = 70
        try:
            status = cli.main(arguments)
        finally:
            os._exit(status)
    return process


def ended(process: int) -> int | None:
    done, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def run_and_kill(process: int, output: Path, rng: random.Random, longest: float) -> int:
    """Kill the process at some instant, unless it ends before; its exit code."""
    until, aimed, saves = time.monotonic() + rng.uniform(0, longest), rng.random() < 0.5, rng.randint(1, 6)
    seen: set[str] = set()
    while (code := ended(process)) is None:
        if aimed:
            seen |= {path.name for path in output.glob(".checkpoint-*.tmp")}
            if len(seen) >= saves:
                time.sleep(rng.uniform(0, 0.02))
                break
        elif time.monotonic() > until:
            break
        time.sleep(0.0005)
    if code is None:
        os.kill(process, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return code


def differing(whole: Path, output: Path, steps: int) -> list[str]:
    """The files that are not those of the training that nobody killed, and those that it has not."""
    names = [*RESULTS, *(f"checkpoint-{steps}/{name}" for name in (*RESULTS[:2], "state.safetensors"))]
    wrong = [name for name in names if (whole / name).read_bytes() != (output / name).read_bytes()]
    left = {str(path.relative_to(output)) for path in output.rglob("*")}
    return [*wrong, *sorted(left - {str(path.relative_to(whole)) for path in whole.rglob("*")})]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng, folder = random.Random(options.seed), options.folder
    model, pictures, whole, output, log = (folder / name for name in ("model", "pictures", "whole", "cut", "log.txt"))
    stable_diffusion_2().save_pretrained(model)
    pictures.mkdir()
    for colour in ("red", "green", "blue"):
        Image.new("RGB", (64, 64), colour).save(pictures / f"{colour}.png")
    asked = ["train", "--model", str(model), "--instance_data_dir", str(pictures), "--instance_prompt",
             "photo of a <new1> cat", "--max_train_steps", str(options.steps), "--train_batch_size", "1",
             "--checkpointing_steps", "2", "--checkpoints_total_limit", "2"]  # fmt: skip
    begun = time.monotonic()
    assert os.waitpid(start([*asked, "--output_dir", str(whole)], log), 0)[1] == 0, log.read_text()
    longest = time.monotonic() - begun
    print(f"a training of {options.steps} steps takes {longest:.1f} s")
    kills = runs = trainings = wrong = 0
    while kills < options.kills or output.exists():
        runs += 1
        process = start([*asked, "--output_dir", str(output), "--resume_from_checkpoint", "latest"], log)
        code = run_and_kill(process, output, rng, longest) if kills < options.kills else None
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) if code is None else code
        for save in output.glob("checkpoint-*"):
            load_state(save)
        if code == -signal.SIGKILL:
            kills += 1
        elif code == 0:
            trainings += 1
            wrong += len(found := differing(whole, output, options.steps))
            print(
                f"training {trainings} ended after {kills} kills; differing: {', '.join(found) or 'nothing'}",
                flush=True,
            )
            shutil.rmtree(output)
        else:
            sys.exit(f"exit status {code}: {log.read_text()[-2000:]}")
    print(f"{kills} kills in {runs} runs of {trainings} trainings, {wrong} files differ")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
