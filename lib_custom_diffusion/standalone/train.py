"""The train command: from flags and folders to a trained delta."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..algebra.compression import Limit
from ..algebra.files import compress_file, compressed_text
from ..attention import projections
from ..backend import Sampling
from ..data import regularization
from ..data.concepts import Concept, PictureSettings, encode_concept, find_pictures, load_concepts_list
from ..errors import UserError
from ..storage import write_atomically
from ..tokens import file_name, initial_vectors, split_tokens
from ..training import checkpoints, parallel
from ..training.loop import PRECISIONS, Progress, Trainer, TrainingConfig, TrainingResult
from .compress import limit_of
from .diffusers_backend import DiffusersBackend
from .models import best_device, load_model

TOY_RECIPE = replace(
    TrainingConfig(), learning_rate="3e-4", embedding_learning_rate="5e-3", max_train_steps=200, snr_gamma=0.1
)
"""What works for the toy model: it is small, and takes larger steps than Stable Diffusion.

Nearly all of the loss at little noise is taken away (γ 0.1), because 200 steps are few, and colour and shape are
decided at much noise: without it the blue cat's likeness is 0.55 instead of 0.70.
"""

_TOKEN = re.compile(r"<[^<>\s:]+>")


def train(options: argparse.Namespace) -> int:
    """Run the command; returns its exit status. Raises UserError for whatever the user can mend."""
    device = _join_processes()
    concepts = _concepts(options)
    config = _config(options, concepts)
    config.check()
    limit = limit_of(options)
    name = options.name or "-".join(file_name(token) for token in config.modifier_tokens)
    output: Path = options.output_dir
    file_name(name)
    pictures = _picture_settings(options)
    pictures.check()
    for number, concept in enumerate(concepts, start=1):
        find_pictures(concept.instance_data_dir)
        if options.with_prior_preservation and not concept.class_prompt:
            raise UserError(f"concept {number} needs a class_prompt for prior preservation, such as cat")
    resume = checkpoints.resolve_checkpoint(output, options.resume_from_checkpoint)
    backend = load_model(options.model, _weight_dtype(config, device), device, options.vae, options.prediction_type)
    projections(backend.unet, config.freeze_model, config.train_blocks)
    initial_vectors(backend, config.modifier_tokens, config.initializer_tokens, config.vectors_per_token)
    if parallel.rank() == 0:
        checkpoints.claim_folder(output, name, resume is not None, options.overwrite)
    parallel.wait_for_all()
    concepts = _with_regularization(options, concepts, backend)
    result = run_training(backend, concepts, pictures, config, output, name, resume)
    if parallel.rank() == 0:
        compressed = _compressed(result, limit, backend) if limit is not None else ""
        _tell(result, concepts, options.model)
        print(compressed, end="")
    return 130 if result.interrupted else 0


def _compressed(result: TrainingResult, limit: Limit, backend: DiffusersBackend) -> str:
    """Make the delta small, weighed by the text features of the model; what that did. The last save stays whole."""
    small = result.files[0]
    whole = small.parent / f"checkpoint-{result.step}" / small.name
    return f"{compressed_text(compress_file(whole, small, limit, lambda: backend))}\n"


def _tell(result: TrainingResult, concepts: Sequence[Concept], model: str) -> None:
    """What there is now, and what to do next."""
    if result.interrupted:
        print(
            f"stopped after step {result.step} and saved; the same command with --resume_from_checkpoint latest goes on"
        )
        return
    print(*(f"wrote {path}" for path in result.files), sep="\n")
    print(
        f'try it: python -m lib_custom_diffusion generate --model {model} --prompt "{concepts[0].instance_prompt}'
        f' <delta:{result.files[0]}>"'
    )


def run_training(
    backend: DiffusersBackend,
    concepts: Sequence[Concept],
    pictures: PictureSettings,
    config: TrainingConfig,
    output: Path,
    name: str,
    resume: Path | None = None,
) -> TrainingResult:
    """Encode the pictures and train, with progress bars; writes config.json and validation pictures as well."""
    main = parallel.rank() == 0
    examples = []
    for concept in concepts:
        with tqdm(desc=f"encoding {concept.instance_data_dir.name}", unit="picture", disable=not main) as bar:
            examples.append(encode_concept(concept, backend, pictures, config.seed, _advance(bar)))
    trainer = Trainer(backend, concepts, examples, config, output, name, resume)
    if main:
        settings = {
            "model": backend.name, "concepts": [asdict(concept) for concept in concepts],
            "pictures": asdict(pictures), "training": asdict(config),
        }  # fmt: skip
        write_atomically(output / "config.json", (json.dumps(settings, indent=2, default=str) + "\n").encode())

    def save_pictures(step: int, drawn: list) -> None:
        folder = output / "validation"
        folder.mkdir(parents=True, exist_ok=True)
        for index, picture in enumerate(drawn):
            picture.save(folder / f"step-{step:06d}-{index}.png")

    bar = tqdm(desc="training", total=config.max_train_steps, initial=trainer.step, unit="step", disable=not main)
    with bar, until_interrupt() as interrupted:

        def show(progress: Progress) -> None:
            bar.update(progress.step - bar.n)
            if progress.loss == progress.loss:
                bar.set_postfix(loss=f"{progress.loss:.4f}")

        return trainer.run(show, save_pictures, interrupted.is_set)


def draw_regularization(
    backend: DiffusersBackend, class_prompt: str, folder: Path, count: int, sampling: Sampling, seed: int
) -> None:
    """Draw the regularization pictures that a folder lacks, with a progress bar."""
    with tqdm(desc=f"drawing {class_prompt}", unit="picture") as bar:
        regularization.generate(backend, class_prompt, folder, count, sampling, seed, _advance(bar))


def _advance(bar: tqdm) -> Callable[[int, int], None]:
    def advance(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return advance


@contextmanager
def until_interrupt() -> Iterator[threading.Event]:
    """Within the block, a first Ctrl-C only sets the event, so that the step is finished and saved.

    So do a request to end, as of `docker stop` and Slurm, and a terminal that is closed.
    """
    interrupted = threading.Event()

    def ask(_signal: int, _frame: object) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()
        with suppress(OSError):  # of a terminal that is gone
            tqdm.write("saving; press Ctrl-C again to stop at once")

    asking = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, ask) for number in asking}
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _join_processes() -> torch.device:
    """Join the other processes if `accelerate launch` or torchrun started several; the device for this one."""
    if "WORLD_SIZE" not in os.environ:
        return best_device()
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available()).device


def _concepts(options: argparse.Namespace) -> list[Concept]:
    if options.concepts_list is not None:
        return load_concepts_list(options.concepts_list)
    if options.instance_data_dir is None or not options.instance_prompt:
        raise UserError(
            'say what to learn: --instance_data_dir FOLDER --instance_prompt "photo of a <new1> cat",'
            " or --concepts_list FILE.json"
        )
    return [Concept(options.instance_prompt, options.instance_data_dir, options.class_prompt, options.class_data_dir)]


def _config(options: argparse.Namespace, concepts: Sequence[Concept]) -> TrainingConfig:
    """The training's settings: what the flags say, and the model's own recipe where they say nothing."""
    prompts = " ".join(concept.instance_prompt for concept in concepts)
    tokens = split_tokens(options.modifier_token or "+".join(dict.fromkeys(_TOKEN.findall(prompts))) or "<new1>")
    recipe = TOY_RECIPE if options.model == "toy" else TrainingConfig()
    rate = options.learning_rate or recipe.learning_rate
    same_names = _same_names(TrainingConfig, options)
    config = TrainingConfig(
        **{
            **same_names,
            "modifier_tokens": tuple(tokens),
            "initializer_tokens": tuple(options.initializer_token.split("+")[: len(tokens)]),
            "train_blocks": tuple(block.strip() for block in options.train_blocks.split(",") if block.strip()),
            "learning_rate": rate,
            "embedding_learning_rate": options.embedding_learning_rate
            or options.learning_rate
            or recipe.embedding_learning_rate,
            "max_train_steps": options.max_train_steps or recipe.max_train_steps,
            "snr_gamma": recipe.snr_gamma if options.snr_gamma is None else options.snr_gamma,
        }
    )
    if not options.scale_lr:
        return config
    scale = config.train_batch_size * config.gradient_accumulation_steps * parallel.world_size()
    return replace(config, learning_rate_scale=float(scale * (2 if options.with_prior_preservation else 1)))


def _picture_settings(options: argparse.Namespace) -> PictureSettings:
    return PictureSettings(**{**_same_names(PictureSettings, options), "augment": not options.noaug})


def _same_names(settings: type, options: argparse.Namespace) -> dict[str, Any]:
    """What the flags say of a dataclass's fields that are called as they are."""
    return {field.name: getattr(options, field.name) for field in fields(settings) if hasattr(options, field.name)}


def _weight_dtype(config: TrainingConfig, device: torch.device) -> torch.dtype:
    """Frozen weights are kept in half precision on a GPU; on the CPU autocast alone is faster."""
    return (PRECISIONS[config.mixed_precision] if device.type == "cuda" else None) or torch.float32


def _with_regularization(
    options: argparse.Namespace, concepts: Sequence[Concept], backend: DiffusersBackend
) -> list[Concept]:
    """The concepts with folders that hold their regularization pictures; drawn or picked first where need be."""
    if not options.with_prior_preservation:
        return [replace(concept, class_data_dir=None) for concept in concepts]
    prepared = []
    for number, concept in enumerate(concepts, start=1):
        made = options.output_dir / f"class_images-{number}"
        folder = concept.class_data_dir or made
        if options.real_prior:
            if concept.class_data_dir is None:
                raise UserError(f"concept {number} needs a class_data_dir of captioned pictures for --real_prior")
            if parallel.rank() == 0:
                picked = regularization.pick(backend, folder, concept.class_prompt, options.num_class_images)
                regularization.write_listing(picked, made)
            folder = made
        elif parallel.rank() == 0 and not folder.is_file():
            sampling = Sampling(batch_size=options.sample_batch_size)
            draw_regularization(backend, concept.class_prompt, folder, options.num_class_images, sampling, options.seed)
        parallel.wait_for_all()
        prepared.append(replace(concept, class_data_dir=folder))
    return prepared
