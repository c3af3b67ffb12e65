"""How fast a training is, beside diffusers' own script on the same weights, pictures, batch and precision.

    python tests/benchmarks/training_speed.py --diffusers_script PATH/train_custom_diffusion.py
        [--diffusers_python PYTHON]   the interpreter of an environment in which the script runs; this one if not given

The script (examples/custom_diffusion in diffusers' repository) runs as it is, under the same flags as ours: 2 pictures
of the concept and 2 regularization pictures a step, all made beforehand. The two take turns in one run, and the ratios
are those of neighbours, so a machine that slows down meanwhile slows both. See step_recorder.py for what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[2]
RECORDER = Path(__file__).with_name("step_recorder.py")
OURS, THEIRS = "Custom Diffusion", "diffusers' script"
INSTANCES, CLASSES = 5, 40


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model = exported_toy(work / "model") if options.model == "toy" else Path(options.model).resolve()
        draw_pictures(work / "instance", INSTANCES, options.resolution)
        draw_pictures(work / "class", CLASSES, options.resolution)
        programs = {
            OURS: [sys.executable, str(RECORDER), "RECORD", "-m", "lib_custom_diffusion", "train"],
            THEIRS: [options.diffusers_python, str(RECORDER), "RECORD", str(options.diffusers_script.resolve())],
        }
        records: dict[str, list[dict[str, Any]]] = {name: [] for name in programs}
        for number in range(options.rounds):
            turn = list(programs) if number % 2 == 0 else list(reversed(programs))
            for name in turn:
                output = work / f"{number}-{name[:6]}"
                record = run(programs[name], training_flags(options, model, work, output), output, options)
                records[name].append(record)
                print(f"round {number + 1}: {name:18s} {record['steps_per_second']:7.3f} steps/s", flush=True)
    print(report(records, options))
    if options.output:
        options.output.write_text(json.dumps(records, indent=2) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--diffusers_script", type=Path, required=True, help="path of train_custom_diffusion.py")
    parser.add_argument("--diffusers_python", default=sys.executable, help="interpreter to run it with")
    parser.add_argument("--model", default="toy", help="toy, or a folder in diffusers' layout")
    parser.add_argument("--resolution", type=int, default=128, help="of the pictures; 128 for the toy")
    parser.add_argument("--mixed_precision", choices=("no", "fp16", "bf16"), default="no")
    parser.add_argument("--freeze_model", choices=("crossattn_kv", "crossattn"), default="crossattn_kv")
    parser.add_argument("--warmup", type=int, default=20, help="steps before measuring starts")
    parser.add_argument("--steps", type=int, default=100, help="steps measured in each run")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each program")
    parser.add_argument("--output", type=Path, help="write every figure there, as JSON")
    return parser.parse_args()


def exported_toy(folder: Path) -> Path:
    sys.path.insert(0, str(ROOT))
    from lib_custom_diffusion.standalone import toy

    toy.load().save_pretrained(folder)
    return folder


def draw_pictures(folder: Path, count: int, side: int) -> None:
    """Seeded drawings; the time of a step does not depend on what they show."""
    folder.mkdir()
    for number in range(count):
        rng = random.Random(number)
        picture = Image.new("RGB", (side, side), tuple(rng.randrange(256) for _ in range(3)))
        left, top = rng.randrange(side // 2), rng.randrange(side // 2)
        colour = tuple(rng.randrange(256) for _ in range(3))
        ImageDraw.Draw(picture).ellipse((left, top, left + side // 2, top + side // 2), fill=colour)
        picture.save(folder / f"{number:03d}.png")


def training_flags(options: argparse.Namespace, model: Path, work: Path, output: Path) -> list[str]:
    """Flags that both programs know."""
    last = options.warmup + options.steps
    flags = {
        "pretrained_model_name_or_path": model,
        "instance_data_dir": work / "instance",
        "instance_prompt": "photo of a <new1> cat",
        "class_data_dir": work / "class",
        "class_prompt": "cat",
        "num_class_images": CLASSES,
        "modifier_token": "<new1>",
        "initializer_token": "ktn",
        "resolution": options.resolution,
        "train_batch_size": 2,
        "max_train_steps": last + 1,  # what happens after the last step measured is not in it
        "checkpointing_steps": last + 1,
        "learning_rate": 1e-5,
        "lr_warmup_steps": 0,
        "freeze_model": options.freeze_model,
        "mixed_precision": options.mixed_precision,
        "report_to": "tensorboard",
        "output_dir": output,
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return [*words, "--with_prior_preservation", "--hflip"]


def run(program: Sequence[str], flags: Sequence[str], output: Path, options: argparse.Namespace) -> dict[str, Any]:
    record = output.with_suffix(".json")
    marks = [str(record), str(options.warmup), str(options.warmup + options.steps)]
    command = [word for part in program for word in (marks if part == "RECORD" else [part])]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, *flags], cwd=ROOT, env=environment, text=True, errors="replace", stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    if not record.is_file():
        sys.exit(f"{done.stdout}\nerror: this ended with status {done.returncode} before its steps were measured:\n"
                 f"{' '.join(command)}")  # fmt: skip
    return json.loads(record.read_text())


def report(records: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> str:
    """The tables, in Markdown."""
    ours = records[OURS]
    ratios = [a["steps_per_second"] / b["steps_per_second"] for a, b in zip(ours, records[THEIRS], strict=True)]
    phases = list(dict.fromkeys(phase for runs in records.values() for phase in runs[0]["milliseconds_per_step"]))
    phases.sort(key=lambda phase: phase == "other")
    lines = [
        "",
        f"{options.model}, {options.resolution} pixels, batch 2 + 2, precision {options.mixed_precision},"
        f" {options.freeze_model}, {options.steps} steps × {options.rounds};"
        f" {ours[0]['device']}, {ours[0]['threads']} threads, {platform.machine()}, torch"
        f" {ours[0]['torch']} and {records[THEIRS][0]['torch']}",
        "",
        f"| min / median / max | {OURS} | {THEIRS} |",
        "| --- | --- | --- |",
        row("steps/s", records, lambda record: record["steps_per_second"], "7.3f"),
        row("peak memory, MB", records, lambda record: record["peak_memory_mb"], "6.0f"),
        row("s from imports to step " + str(options.warmup), records, lambda r: r["seconds_before_measuring"], "5.1f"),
        *(
            row(f"ms/step: {phase}", records, lambda r, phase=phase: r["milliseconds_per_step"].get(phase, 0), "6.1f")
            for phase in phases
        ),
        "",
        f"{OURS} makes {spread(ratios, '.2f')} × the steps/s of {THEIRS} (min / median / max).",
    ]
    return "\n".join(lines)


def row(title: str, records: dict[str, list[dict[str, Any]]], value: Any, form: str) -> str:
    return f"| {title} | " + " | ".join(spread([value(run) for run in runs], form) for runs in records.values()) + " |"


def spread(values: Sequence[float], form: str) -> str:
    return " / ".join(f"{value:{form}}".strip() for value in (min(values), statistics.median(values), max(values)))


if __name__ == "__main__":
    main()
