"""What a delta costs a running WebUI: time of a picture with it and without, and of a switch to another.

    WEBUI_URL=http://127.0.0.1:7860 python tests/benchmarks/webui_overhead.py NAME [OTHER] [--steps 20] [--size 512]

NAME and OTHER are deltas that the WebUI has. Pictures with and without are drawn in turn, so that whatever else slows
the machine slows both; told are the least and the median of the times, and the median of the ratios of neighbours. The
prompt is the same but for the tag, so the text encoder does the same work. With two names the delta changes from
picture to picture, for the time of a switch.

On a busy machine the clock tells little: with --pid, the WebUI's process on this machine (Linux), its CPU time counts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

URL = os.environ.get("WEBUI_URL", "http://127.0.0.1:7860")


def main() -> None:
    options = parse()
    clock = time.perf_counter if options.pid is None else lambda: cpu_seconds(options.pid)
    tag = f"{options.prompt} <delta:{options.name}:1>"

    def draw(prompt: str) -> float:
        started = clock()
        ask(prompt, options.steps, options.size)
        return clock() - started

    ways: dict[str, Callable[[], float]] = {"without": lambda: draw(options.prompt), "with": lambda: draw(tag)}
    if options.other:
        other = f"{options.prompt} <delta:{options.other}:1>"
        ways["with the other"] = lambda: draw(other)
    times: dict[str, list[float]] = {way: [] for way in ways}
    for way in ways.values():
        way()  # the first is read from disk
    for _ in range(options.repeats):
        for name, way in ways.items():
            times[name].append(way())
    print(
        f"| {options.steps} steps, {options.size} px, {options.repeats} times | least, s | median, s |\n|{' --- |' * 3}"
    )
    for name, taken in times.items():
        print(f"| {name} | {min(taken):.4f} | {statistics.median(taken):.4f} |")
    for name, taken in list(times.items())[1:]:
        least = min(taken) / min(times["without"]) - 1
        ratios = [one / other - 1 for one, other in zip(taken, times["without"], strict=True)]
        print(f"{name}: {least:+.2%} by the least, {statistics.median(ratios):+.2%} by neighbours")


def ask(prompt: str, steps: int, size: int) -> None:
    """Have a picture drawn through the API."""
    asked = {
        "prompt": prompt, "steps": steps, "width": size, "height": size, "seed": 1, "sampler_name": "Euler",
        "send_images": False,
    }  # fmt: skip
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{URL}/sdapi/v1/txt2img", json.dumps(asked).encode(), headers)
    with urllib.request.urlopen(request) as answer:
        answer.read()


def cpu_seconds(pid: int) -> float:
    """What all threads of a process have had of the CPU."""
    total = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # it has just ended
            total += int((thread / "schedstat").read_text().split()[0])
    return total / 1e9


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="a delta of the WebUI")
    parser.add_argument("other", nargs="?", help="another, for the time of a switch")
    parser.add_argument("--prompt", default="a cat on a red background")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--pid", type=int, help="of the WebUI: count its CPU time")
    return parser.parse_args()


if __name__ == "__main__":
    main()
