"""Stops a training at random instants until it was stopped often enough, and compares what is left.

    python tests/benchmarks/kills.py FOLDER [--count 60] [--steps 16] [--seed 0]

By SIGKILL half of the time, else by Ctrl-C, SIGTERM or SIGHUP; half of the stops while it saves, some while the program
starts or compresses. Each goes on from its last save. After each stop all saves must be whole and loss.csv must have
each step once; in the end the compressed delta, the word, loss.csv and the last save must be those of a training that
nobody stopped, to the byte, and nothing may be left over.

Started again with the same folder it goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "standalone"))
from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.training.checkpoints import load_state
from tiny_pipeline import stable_diffusion_2

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ("new1.delta.safetensors", "new1.pt", "loss.csv")
KINDLY = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Run:
    """The command in a program of its own, as people start it."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        with log.open("wb") as said:
            self.program = subprocess.Popen(
                [sys.executable, "-m", "lib_custom_diffusion", *arguments], stdout=said, stderr=said, cwd=ROOT
            )

    @property
    def code(self) -> int | None:
        return self.program.returncode

    def ended(self) -> bool:
        return self.program.poll() is not None

    def wait(self) -> int:
        return self.program.wait()


def timed(arguments: list[str], log: Path) -> float:
    """How long a command takes that nobody stops."""
    begun = time.monotonic()
    code = Run(arguments, log).wait()
    assert code == 0, log.read_text()[-2000:]
    return time.monotonic() - begun


def stop(run: Run, number: int, rng: random.Random, longest: float, saves: Path | None = None) -> bool:
    """Send a signal at some instant, unless the run ends before; whether it was sent.

    saves: of a training: half of the signals are sent while one of its saves is written there.
    """
    until, wanted = time.monotonic() + rng.uniform(0, longest), rng.randint(1, 3)
    aimed = saves is not None and rng.random() < 0.5
    before = set() if saves is None else {path.name for path in saves.glob("checkpoint-*")}
    seen: set[str] = set()
    while not run.ended():
        if aimed and saves is not None:
            seen |= {path.name.strip(".").removesuffix(".tmp") for path in saves.glob("*checkpoint-*")} - before
        if len(seen) >= wanted or (not aimed and time.monotonic() > until):
            time.sleep(rng.uniform(0, 0.02))
            run.program.send_signal(number)
            run.wait()
            return True
        time.sleep(0.003)
    return False


def leftovers(output: Path) -> set[Path]:
    """What is written aside until it is whole, and the lock."""
    return {path for path in output.rglob("*") if path.name.startswith(".")}


def torn(output: Path) -> list[str]:
    """What is wrong with the saves and the losses that a stopped training left."""
    steps = []
    for save in output.glob("checkpoint-*"):
        steps.append(load_state(save).step)
        Delta.load(save / RESULTS[0])
        torch.load(save / RESULTS[1], weights_only=True)
    lines = (output / "loss.csv").read_text().splitlines() if (output / "loss.csv").is_file() else []
    logged = [int(row[0]) for row in csv.reader(lines[1:]) if row and row[0].isdecimal()]
    if logged != list(range(1, len(logged) + 1)) or len(logged) < max(steps, default=0):
        return [f"loss.csv has steps {logged}, the last save {max(steps, default=0)}"]
    return []


def differing(whole: Path, output: Path, steps: int) -> list[str]:
    """The files that are not those of the training that nobody stopped, and those that it has not."""
    names = [*RESULTS, *(f"checkpoint-{steps}/{name}" for name in (*RESULTS[:2], "state.safetensors"))]
    wrong = [name for name in names if (whole / name).read_bytes() != (output / name).read_bytes()]
    left = {str(path.relative_to(output)) for path in output.rglob("*")}
    expected = {str(path.relative_to(whole)) for path in whole.rglob("*")}
    kept = {name for name in left if name.startswith("checkpoint-")}  # a kind stop saves at a step of its own
    return [*wrong, *sorted(left - kept - expected)]


class Count:
    """What was done, on the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: dict[str, int] = json.loads(path.read_text()) if path.is_file() else {}

    def __getitem__(self, name: str) -> int:
        return self.done.get(name, 0)

    def add(self, name: str) -> None:
        self.done[name] = self[name] + 1
        self.path.write_text(json.dumps(self.done, indent=1))


def trainings(folder: Path, count: Count, options: argparse.Namespace, rng: random.Random) -> None:
    """Stop trainings, and go on with them, until they were stopped often enough and the last is done."""
    whole, output, log = folder / "whole", folder / "cut", folder / "log.txt"
    asked = [
        "train", "--model", str(folder / "model"), "--instance_data_dir", str(folder / "pictures"), "--instance_prompt",
        "photo of a <new1> cat", "--max_train_steps", str(options.steps), "--train_batch_size", "1",
        "--checkpointing_steps", "2", "--checkpoints_total_limit", "2", "--max_size", "20kB", "--prior", "none",
    ]  # fmt: skip
    again = [*asked, "--output_dir", str(output), "--resume_from_checkpoint", "latest"]
    shutil.rmtree(whole, ignore_errors=True)
    longest = timed([*asked, "--output_dir", str(whole)], log)
    print(f"a training of {options.steps} steps takes {longest:.1f} s", flush=True)
    while count["stops"] < options.count or output.exists():
        number = signal.SIGKILL if rng.random() < 0.5 else rng.choice(KINDLY)
        before = leftovers(output)  # of a kill; a run that is stopped while it starts has not cleaned up yet
        run = Run(again, log)
        if count["stops"] >= options.count:
            run.wait()
        elif stop(run, number, rng, longest, output):
            count.add("stops")
            count.add(f"by {number.name}: exit status {run.code}")
        said = log.read_text()
        if run.code not in (0, 130, -number) or "Traceback" in said:
            count.add(f"WRONG exit status {run.code} by {number.name}")
            print(said[-2000:], flush=True)
        if output.exists():
            found = torn(output)
            found += [f"left over: {path}" for path in leftovers(output) - before if run.code == 130]
            found += differing(whole, output, options.steps) if run.code == 0 else []
            for each in found:
                count.add(f"WRONG {each}")
        if run.code == 0:
            count.add("trainings")
            shutil.rmtree(output)
            print(json.dumps(count.done), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=60, help="stops of trainings")
    parser.add_argument("--steps", type=int, default=16, help="of each training")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # both are ignored in what a shell runs in the background
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    folder = options.folder.absolute()
    if not (folder / "model").is_dir():
        stable_diffusion_2().save_pretrained(folder / "model")
        (folder / "pictures").mkdir()
        for colour in ("red", "green", "blue"):
            Image.new("RGB", (64, 64), colour).save(folder / "pictures" / f"{colour}.png")
    count = Count(folder / "count.json")
    rng = random.Random(options.seed + sum(count.done.values()))
    trainings(folder, count, options, rng)
    print(json.dumps(count.done, indent=1))
    sys.exit(any("WRONG" in each for each in count.done))


if __name__ == "__main__":
    main()
