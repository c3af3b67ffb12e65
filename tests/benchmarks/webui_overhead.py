"""What a delta costs a running WebUI: time of a picture with it and without, and of a switch to another.

    WEBUI_URL=http://127.0.0.1:7860 python tests/benchmarks/webui_overhead.py NAME [OTHER] [--steps 20] [--size 512]

NAME and OTHER are deltas that the WebUI has. Pictures with and without are drawn in turn, so that whatever else slows
the machine slows both; of the times the least and the median are told. The prompt is the same but for the tag, so the
text encoder does the same work. With two names the delta changes from picture to picture, for the time of a switch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import urllib.request
from collections.abc import Callable

URL = os.environ.get("WEBUI_URL", "http://127.0.0.1:7860")


def main() -> None:
    options = parse()
    tag = f"{options.prompt} <delta:{options.name}:1>"

    def draw(prompt: str) -> float:
        return seconds(prompt, options.steps, options.size)

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
        more = [statistic(taken) / statistic(times["without"]) - 1 for statistic in (min, statistics.median)]
        print(f"{name}: {more[0]:+.2%} by the least, {more[1]:+.2%} by the median")


def seconds(prompt: str, steps: int, size: int) -> float:
    """Draw a picture through the API; how long it took."""
    asked = {
        "prompt": prompt, "steps": steps, "width": size, "height": size, "seed": 1, "sampler_name": "Euler",
        "send_images": False,
    }  # fmt: skip
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{URL}/sdapi/v1/txt2img", json.dumps(asked).encode(), headers)
    started = time.perf_counter()
    with urllib.request.urlopen(request) as answer:
        answer.read()
    return time.perf_counter() - started


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="a delta of the WebUI")
    parser.add_argument("other", nargs="?", help="another, for the time of a switch")
    parser.add_argument("--prompt", default="a cat on a red background")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=10)
    return parser.parse_args()


if __name__ == "__main__":
    main()
