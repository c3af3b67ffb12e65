"""How fast a training is, beside diffusers' own script on the same weights, pictures, batch and precision.

    python tests/benchmarks/training_speed.py --diffusers_script PATH/train_custom_diffusion.py
        [--diffusers_python PYTHON]   the interpreter of an environment in which the script runs; this one if not given

The script (examples/custom_diffusion in diffusers' repository) runs as it is, under the same flags as ours with
pictures: as many regularization pictures a step as pictures of the concept (2 of each, if not told otherwise), all made
beforehand. Ours with the text prior needs none. The three take turns in one run, and the ratios are those of
neighbours, so a machine that slows down meanwhile slows all. Ratios are of processor time, which other work on the
machine changes least, and on a GPU of the time that passes. See step_recorder.py for what is measured.

`--model sd1` is a model of Stable Diffusion 1's size, with random weights, made for the run (4 GB of disk, 10 of
memory): `--model sd1 --train_batch_size 1 --warmup 1 --steps 3 --rounds 2`. Ours encodes all views of the pictures
before the first step; with larger pictures on a CPU `--few_pictures` shortens that, and changes no step.
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
TEXT, PICTURES, THEIRS = "ours, text prior", "ours, pictures", "diffusers' script, pictures"
OURS = [sys.executable, str(RECORDER), "RECORD", "-m", "lib_custom_diffusion", "train"]
WITH_PICTURES = ["--with_prior_preservation"]
INSTANCES, CLASSES, FEW = 5, 40, 2


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model = model_folder(options.model, work / "model")
        draw_pictures(work / "instance", FEW if options.few_pictures else INSTANCES, options.resolution)
        draw_pictures(work / "class", classes(options), options.resolution)
        programs = {
            TEXT: [*OURS, "--prior", "text"],
            PICTURES: [*OURS, "--prior", "none", *WITH_PICTURES],
            THEIRS: [
                options.diffusers_python,
                str(RECORDER),
                "RECORD",
                str(options.diffusers_script.resolve()),
                *WITH_PICTURES,
            ],
        }
        records: dict[str, list[dict[str, Any]]] = {name: [] for name in programs}
        for number in range(options.rounds):
            turn = list(programs) if number % 2 == 0 else list(reversed(programs))
            for name in turn:
                output = work / f"{number}-{list(programs).index(name)}"
                record = run(programs[name], training_flags(options, model, work, output), output, options)
                records[name].append(record)
                print(f"round {number + 1}: {name:28s} {record['steps_per_second']:7.3f} steps/s", flush=True)
    print(report(records, options))
    if options.output:
        options.output.write_text(json.dumps(records, indent=2) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--diffusers_script", type=Path, required=True, help="path of train_custom_diffusion.py")
    parser.add_argument("--diffusers_python", default=sys.executable, help="interpreter to run it with")
    parser.add_argument("--model", default="toy", help="toy, sd1, or a folder in diffusers' layout")
    parser.add_argument("--resolution", type=int, default=128, help="of the pictures; 128 for the toy")
    parser.add_argument("--few_pictures", action="store_true", help="two of the concept and of the class, in one view")
    parser.add_argument("--train_batch_size", type=int, default=2, help="pictures of the concept a step")
    parser.add_argument("--mixed_precision", choices=("no", "fp16", "bf16"), default="no")
    parser.add_argument("--freeze_model", choices=("crossattn_kv", "crossattn"), default="crossattn_kv")
    parser.add_argument("--warmup", type=int, default=20, help="steps before measuring starts")
    parser.add_argument("--steps", type=int, default=100, help="steps measured in each run")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each program")
    parser.add_argument("--output", type=Path, help="write every figure there, as JSON")
    return parser.parse_args()


def model_folder(name: str, made: Path) -> Path:
    """The model in diffusers' layout, written to `made` if it is none yet."""
    sys.path.insert(0, str(ROOT))
    if name == "toy":
        from lib_custom_diffusion.standalone import toy

        toy.load().save_pretrained(made)
    elif name == "sd1":
        from full_size import stable_diffusion_1

        stable_diffusion_1().save_pretrained(made)
    else:
        return Path(name).resolve()
    return made


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
        "num_class_images": classes(options),
        "modifier_token": "<new1>",
        "initializer_token": "ktn",
        "resolution": options.resolution,
        "train_batch_size": options.train_batch_size,
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
    return [*words, "--noaug" if options.few_pictures else "--hflip"]


def classes(options: argparse.Namespace) -> int:
    """How many pictures of the class there are."""
    return FEW if options.few_pictures else CLASSES


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
    ours = records[TEXT]
    phases = list(dict.fromkeys(phase for runs in records.values() for phase in runs[0]["milliseconds_per_step"]))
    phases.sort(key=lambda phase: phase == "other")
    batch = options.train_batch_size
    lines = [
        "",
        f"{options.model}, {options.resolution} pixels, batch {batch}, with pictures {batch} + {batch}, precision"
        f" {options.mixed_precision}, {options.freeze_model}, {options.steps} steps × {options.rounds};"
        f" {ours[0]['device']}, {ours[0]['threads']} threads, {machine()}, torch"
        f" {ours[0]['torch']} and {records[THEIRS][0]['torch']}",
        "",
        f"| min / median / max | {' | '.join(records)} |",
        f"| --- |{' --- |' * len(records)}",
        row("processor s/step", records, lambda record: record["processor_seconds_per_step"], "7.3f"),
        row("steps/s", records, lambda record: record["steps_per_second"], "7.3f"),
        row("peak memory, MB", records, lambda record: record["peak_memory_mb"], "6.0f"),
        row("s from imports to step " + str(options.warmup), records, lambda r: r["seconds_before_measuring"], "5.1f"),
        *(
            row(f"ms/step: {phase}", records, lambda r, phase=phase: r["milliseconds_per_step"].get(phase, 0), "6.1f")
            for phase in phases
        ),
        "",
        *(compared(name, records) for name in (TEXT, PICTURES)),
    ]
    return "\n".join(lines)


def compared(name: str, records: dict[str, list[dict[str, Any]]]) -> str:
    on_gpu = records[THEIRS][0]["device"] == "cuda"
    measure = "time" if on_gpu else "processor time"

    def seconds(record: dict[str, Any]) -> float:
        return 1 / record["steps_per_second"] if on_gpu else record["processor_seconds_per_step"]

    pairs = list(zip(records[name], records[THEIRS], strict=True))
    faster = spread([seconds(theirs) / seconds(ours) for ours, theirs in pairs], ".2f")
    memory = spread([ours["peak_memory_mb"] / theirs["peak_memory_mb"] for ours, theirs in pairs], ".2f")
    return f"{name}: {faster} × faster than {THEIRS} by {measure} a step, in {memory} of its memory."


def machine() -> str:
    """The processor's name, and whether it multiplies matrices of bfloat16 by itself (AMX)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    told = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    told = {name.strip(): value.strip() for name, value in told.items()}
    amx = "with" if "amx_bf16" in told.get("flags", "") else "without"
    model = "family {cpu family} model {model}".format(**told) if "cpu family" in told else ""
    return f"{told.get('model name', platform.machine())} ({model}), {amx} AMX"


def row(title: str, records: dict[str, list[dict[str, Any]]], value: Any, form: str) -> str:
    return f"| {title} | " + " | ".join(spread([value(run) for run in runs], form) for runs in records.values()) + " |"


def spread(values: Sequence[float], form: str) -> str:
    return " / ".join(f"{value:{form}}".strip() for value in (min(values), statistics.median(values), max(values)))


if __name__ == "__main__":
    main()
