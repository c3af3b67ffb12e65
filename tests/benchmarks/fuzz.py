"""Thousands of damaged files for every reader: whether any ends in a traceback, runs on, or takes much memory.

    python tests/benchmarks/fuzz.py [--files 10000] [--seed 1] [--keep FOLDER]

Each file is a valid one of some format, damaged in one of the ways of `tests/damaged_files.py`, and is given to the
readers of formats, deltas and words and to one of the others in turn, in one process. Told are how many calls were
answered and refused, all that went wrong, the slowest call (seconds of the processor), and the most memory beyond what
the process had at the start (Linux). Files that went wrong are kept; exit status 1 if there are any.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

import torch  # noqa: E402

from damaged_files import BASE, MUTATIONS, READERS, TRAP, valid_files  # noqa: E402
from lib_custom_diffusion import formats  # noqa: E402
from lib_custom_diffusion.errors import UserError  # noqa: E402

ALWAYS = ("formats", "formats with a model", "delta", "words")
SLOW = 5.0  # seconds of one call
MEMORY = 300.0  # megabytes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-found"))
    options = parser.parse_args()
    keep = options.keep.absolute()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.chdir(tempfile.mkdtemp())
    rng, files = random.Random(options.seed), list(valid_files().items())
    for _, content in files:  # so that what is imported and allocated once counts as the start
        Path("file").write_bytes(content)
        formats.read(Path("file"), BASE)
    start = most_memory()
    others = [reader for reader in READERS if reader not in ALWAYS]
    counts: collections.Counter[str] = collections.Counter()
    slowest, wrong = (0.0, ""), 0
    for number in range(options.files):
        kind, content = files[number % len(files)]
        mutation = rng.choice(MUTATIONS)
        damaged = mutation(content, rng)
        Path("file").write_bytes(damaged)
        for reader in (*ALWAYS, others[number % len(others)]):
            began, memory = time.process_time(), most_memory()
            fault = fault_of(READERS[reader], counts)
            seconds = time.process_time() - began
            slowest = max(slowest, (seconds, f"{reader}: {mutation.__name__} of {kind}"))
            if seconds > SLOW:
                fault = fault or f"{seconds:.0f} s"
            if most_memory() - memory > MEMORY / 2:
                fault = fault or f"{most_memory() - memory:.0f} MB"
            if TRAP.exists():
                fault = "EXECUTED"
                TRAP.unlink()
            if fault:
                wrong += 1
                keep.mkdir(exist_ok=True)
                (keep / f"{options.seed}-{number}").write_bytes(damaged)
                print(f"{number} {reader}: {mutation.__name__} of {kind}: {fault}", flush=True)
        if number % 1000 == 999:
            print(f"{number + 1} files, {dict(counts)}, {most_memory() - start:.0f} MB over the start", flush=True)
    memory = most_memory() - start
    print(f"{options.files} files, {sum(counts.values())} calls: {dict(counts)}; {wrong} went wrong")
    print(f"slowest {slowest[0]:.2f} s ({slowest[1]}), {memory:.0f} MB over the start")
    return int(wrong > 0 or memory > MEMORY)


def fault_of(read: object, counts: collections.Counter[str]) -> str:
    """What went wrong with one call; empty if it was answered or refused in one line."""
    try:
        read(Path("file"))  # type: ignore[operator]
        counts["answered"] += 1
    except UserError as error:
        counts["refused"] += 1
        try:
            str(error).encode()
        except UnicodeEncodeError:
            return "a message that cannot be shown"
        return "" if str(error).strip() and "\n" not in str(error) else f"no one line: {error!r}"
    except Exception as error:
        counts["failed"] += 1
        frames = traceback.extract_tb(error.__traceback__)
        place = next((f for f in reversed(frames) if "lib_custom_diffusion" in f.filename), frames[-1])
        return f"{type(error).__name__} {str(error)[:120]!r} at {Path(place.filename).name}:{place.lineno}"
    return ""


def most_memory() -> float:
    """The most that this process has had so far, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(main())
