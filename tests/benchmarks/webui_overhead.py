"""What a delta costs a running WebUI: time of a picture with it and without, and of a switch to another.

    WEBUI_URL=http://127.0.0.1:7860 python tests/benchmarks/webui_overhead.py NAME [OTHER] [--steps 20] [--size 512]

NAME and OTHER are deltas that the WebUI has. Each round draws a picture in every way, in an order drawn anew, so that
whatever else slows the machine slows all alike; told are the least and the median of the times, and the median of the
ratios within a round. One way is "without" a second time: what it differs by is noise. The host keeps the last prompt
that it encoded, so each picture has a number in its prompt and the text encoder works for all. With two names the delta
changes from picture to picture, for the time of a switch.

On a busy machine the clock tells little: with --pid, the WebUI's process on this machine (Linux), its CPU time counts.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import statistics
import time
import urllib.request
from pathlib import Path

URL = os.environ.get("WEBUI_URL", "http://127.0.0.1:7860")


def main() -> None:
    options = parse()
    clock = time.perf_counter if options.pid is None else lambda: cpu_seconds(options.pid)
    numbers = itertools.count(1000)

    def draw(tag: str) -> float:
        prompt = f"{options.prompt}, {next(numbers)}{tag}"
        started = clock()
        ask(prompt, options.steps, options.size)
        return clock() - started

    tags = {"without": "", "without, again": "", "with": f" <delta:{options.name}:1>"}
    if options.other:
        tags["with the other"] = f" <delta:{options.other}:1>"
    times: dict[str, list[float]] = {way: [] for way in tags}
    for tag in tags.values():
        draw(tag)  # the first is read from disk
    for _ in range(options.repeats):
        for name in random.sample(list(tags), len(tags)):
            times[name].append(draw(tags[name]))
    print(
        f"| {options.steps} steps, {options.size} px, {options.repeats} times | least, s | median, s |\n|{' --- |' * 3}"
    )
    for name, taken in times.items():
        print(f"| {name} | {min(taken):.4f} | {statistics.median(taken):.4f} |")
    for name, taken in list(times.items())[1:]:
        least = min(taken) / min(times["without"]) - 1
        ratios = [one / other - 1 for one, other in zip(taken, times["without"], strict=True)]
        print(f"{name}: {least:+.2%} by the least, {statistics.median(ratios):+.2%} by rounds")


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
