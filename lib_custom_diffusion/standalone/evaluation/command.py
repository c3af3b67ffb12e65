"""The evaluate command: deltas or the saves of a training, measured on one's own model."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from ...attention import projections
from ...backend import Sampling
from ...data.pictures import find_pictures, load_pictures
from ...delta import SUFFIX, Delta
from ...deltas_folder import delta_name
from ...errors import UserError, check_range
from ...storage import check_writable
from ..generate import sampling_of, words_of
from ..infotext import infotext
from ..models import best_device, load_model
from ..toy import TOYS
from . import report
from .eyes import CLIP, ClipEyes, DinoEyes, Eyes, JudgeEyes
from .measuring import Candidate, Measuring
from .questions import question, read_lines

_Asked = tuple[list[Candidate], list[str], list[Image.Image], list[Image.Image], Sampling]


def evaluate(options: argparse.Namespace) -> int:
    """Run the command; returns its exit status. Raises UserError for whatever the user can mend."""
    candidates, lines, own, of_class, sampling = _checked(options)
    device = best_device()
    eyes: Eyes = JudgeEyes() if options.model in TOYS and not options.clip else ClipEyes(options.clip or CLIP, device)
    dino = DinoEyes(options.dino, device) if options.dino else None
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    backend = load_model(options.model, dtype, device, options.vae, options.prediction_type)
    for each in candidates:
        each.delta.check_fits(projections(backend.unet, "crossattn"))
        words_of(backend, [each.delta])
    class_count = options.num_class_images if options.class_prompt else 0
    total = (len(candidates) + 1) * (len(lines) * options.num_images + class_count)
    total += 0 if of_class else class_count
    with tqdm(desc="drawing", total=total, unit="picture") as bar, torch.no_grad():
        seeds = range(options.seed, options.seed + options.num_images)
        measuring = Measuring(backend, eyes, dino, own, sampling, seeds, bar.update)
        if class_count:
            measuring.watch_class([options.class_prompt] * class_count, of_class)
        questions = [question(line, candidates[0].delta, options.class_prompt) for line in lines]
        alone = measuring.alone(questions)
        measured = [alone] + [measuring.of(each, lines, options.class_prompt, alone) for each in candidates]

    def made(prompt: str, number: int, size: tuple[int, int]) -> str:
        return infotext(prompt, sampling, seeds[number], size, backend.name, backend.checkpoint_hash)

    report.write(options.output, measured, own, eyes.name, options.dino, made)
    print(report.text_table(measured))
    for told in filter(None, (report.verdict(measured), report.kid_note(measured))):
        print(told)
    best = report.best_of(measured).candidate
    if best is not None and len(candidates) > 1:
        print(f"{best.name} is {best.path}")
    print(f"look at {options.output / 'evaluation.html'}")
    return 0


def _checked(options: argparse.Namespace) -> _Asked:
    """All that the flags name, read and found good before the model is loaded."""
    check_range(options, "num_images", 1, 1_000_000, "--{}".format)
    check_range(options, "num_class_images", 2, 1_000_000, "--{}".format)
    check_writable(options.output)
    if (options.output / report.FIGURES).exists() and not options.overwrite:
        raise UserError(
            f"{options.output} has an evaluation already; give another --output, or --overwrite to replace it"
        )
    for read in filter(None, (options.instance_data_dir, options.class_data_dir)):
        if read.resolve() == options.output.resolve():  # pictures.png would be one of them the next time
            raise UserError(f"--output is {options.output}, where the pictures are; give another folder")
    if options.class_data_dir and not options.class_prompt:
        raise UserError("--class_data_dir needs a --class_prompt: what to draw to compare with those pictures")
    of_class = _pictures(options.class_data_dir) if options.class_data_dir else []
    if len(of_class) == 1:
        raise UserError(f"{options.class_data_dir} has one picture; KID needs 2 or more, better 100")
    return (
        find_candidates(options.delta),
        read_lines(options.prompts),
        _pictures(options.instance_data_dir),
        of_class,
        sampling_of(options),
    )


def _pictures(folder: Path) -> list[Image.Image]:
    return [picture.colors for _, _, picture in load_pictures(find_pictures(folder))]


def find_candidates(paths: Sequence[Path]) -> list[Candidate]:
    """The deltas of files and of folders, each once. A training's folder stands for its saves, in their order.

    Raises UserError for a folder without deltas, and a file that is none.
    """
    files: list[Path] = []
    for path in paths:
        found = _saves(path) if path.is_dir() else [path]
        if not found:
            raise UserError(f"{path} has no deltas: neither checkpoint-STEP/NAME{SUFFIX} nor NAME{SUFFIX}")
        files += [each for each in found if each not in files]
    deltas = [Delta.load(path) for path in files]
    names = [f"step {delta.provenance.steps}" for delta in deltas]
    if len(set(names)) < len(names) or len(paths) > 1 or not paths[0].is_dir():
        names = [delta_name(path) for path in files]
    if len(set(names)) < len(names):
        shared = len(os.path.commonprefix([path.parent.parts for path in files]))  # noqa: RUF071 (of parts)
        names = ["/".join(path.parts[shared:]).removesuffix(SUFFIX) for path in files]
    return [Candidate(*each) for each in zip(names, files, deltas)]


def _saves(folder: Path) -> list[Path]:
    """The deltas of a training's checkpoints by step, and its last if that is of another step."""
    saves: dict[int, Path] = {}
    for path in [*folder.glob(f"checkpoint-*/*{SUFFIX}"), *folder.glob(f"*{SUFFIX}")]:
        saves.setdefault(Delta.load(path).provenance.steps, path)
    return [saves[step] for step in sorted(saves)]
