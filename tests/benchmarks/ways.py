"""Ways to teach a model a concept, for fidelity.py: ours, through `TrainingJob`, and those it is compared with.

LoRA, the whole UNet, the word alone and gated deltas are trained by a loop of this file's own, on the same examples,
noise and timesteps as ours; diffusers' script runs as it is. A rate is that of the weights; words have the recipe's,
but where nothing else is trained or the program knows one rate only.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from lib_custom_diffusion import formats
from lib_custom_diffusion.attention import projections
from lib_custom_diffusion.backend import Conditioning, Sizes
from lib_custom_diffusion.data.concepts import ConceptExamples, Example, encode_concept, find_pictures
from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.standalone.diffusers_backend import DiffusersBackend
from lib_custom_diffusion.tokens import initial_vectors
from lib_custom_diffusion.training.example_order import ExampleOrder
from lib_custom_diffusion.training.job import Host, TrainingJob
from lib_custom_diffusion.training.loop import Progress
from lib_custom_diffusion.training.objective import masked_errors, prior_preservation_loss, step_generator
from lib_custom_diffusion.training.parametrisation import parametrisation
from lib_custom_diffusion.training.plan import PLAIN, TrainingPlan

RECORDER = Path(__file__).with_name("step_recorder.py")
KV = r".*attn2\.to_[kv]"
ATTENTION = r".*attn[12]\.(to_[qkv]|to_out\.0)"


@dataclass(frozen=True)
class Task:
    """What to teach: a plan of one concept, its class pictures drawn, and a folder to work in.

    rate: of the weights; of the words where nothing else is trained.
    """

    backend: DiffusersBackend
    plan: TrainingPlan
    rate: float
    folder: Path
    script: Path | None = None


@dataclass(frozen=True)
class Taught:
    """What came of it.

    backend: draws it, with `delta` acting if there is one. numbers: how many were trained.
    seconds: that a step took, of the processor's time; of the clock's on a GPU.
    """

    backend: DiffusersBackend
    vectors: Mapping[str, Tensor]
    numbers: int
    seconds: float
    delta: Delta | None = None


@dataclass(frozen=True)
class Way:
    """A way to teach. rate: where the search for its best begins, as a multiple of the recipe's."""

    label: str
    teach: Callable[[Task], Taught]
    rate: float = 1.0
    pictures: bool = False


class Stopwatch:
    """Seconds a step, from the end of the first step to the end of the last."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def mark(self) -> None:
        """A step has ended."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.marks.append(time.perf_counter() if torch.cuda.is_available() else time.process_time())

    @property
    def seconds(self) -> float:
        """A step's; 0 of one step alone."""
        return (self.marks[-1] - self.marks[0]) / max(1, len(self.marks) - 1)


class Watched:
    """The face that `TrainingJob` is shown to: a stopwatch."""

    wording = PLAIN

    def __init__(self) -> None:
        self.stopwatch = Stopwatch()

    def preparing(self, what: str, done: int, total: int) -> None:
        """Not shown."""

    def progress(self, progress: Progress) -> None:
        self.stopwatch.mark()

    def preview(self, picture: Image.Image) -> None:
        """There is none."""

    def copied(self, name: str) -> None:
        """There is none."""

    def interrupted(self) -> bool:
        return False


def train(backend: DiffusersBackend, plan: TrainingPlan, folder: Path) -> tuple[Delta, float]:
    """A training as the product does it: what it learned, and the seconds of a step."""
    face = Watched()
    result = TrainingJob(plan, Host(backend, folder), face).run().result
    return result.delta, face.stopwatch.seconds


def ours(task: Task, **settings: Any) -> Taught:
    """Custom Diffusion; settings: of the plan."""
    plan = replace(task.plan, learning_rate=str(task.rate), **settings)
    delta, seconds = train(task.backend, plan, task.folder)
    numbers = sum(entry.shape[0] * entry.shape[1] for entry in delta.entries.values()) + _count(delta.embeddings)
    return Taught(task.backend, delta.embeddings, numbers, seconds, delta)


def word(task: Task) -> Taught:
    """The new word's vectors alone, as Textual Inversion (arXiv 2208.01618)."""
    return _loop(task, task.backend, [], 0.0, task.rate)


def whole_unet(task: Task) -> Taught:
    """All of the UNet, as DreamBooth (arXiv 2208.12242), and the word."""
    backend = with_own_unet(task.backend)
    return _loop(task, backend, list(backend.unet.parameters()), task.rate, float(task.plan.embedding_learning_rate))


def gated(task: Task) -> Taught:
    """The word, and deltas of keys and values that act from the word on: other prompts stay exactly as they were."""
    backend = GatedBackend.of(with_own_unet(task.backend))
    return _loop(task, backend, backend.deltas, task.rate, float(task.plan.embedding_learning_rate))


class GatedBackend(DiffusersBackend):
    """A backend whose keys and values are y = Wx + gΔx, where g is 1 from a prompt's first new word on, else 0.

    The gate rides along with the text features, as one number more at each position.
    """

    deltas: list[nn.Parameter]

    @classmethod
    def of(cls, backend: DiffusersBackend) -> GatedBackend:
        """On a backend's UNet, which is changed. The deltas are 0 at first."""
        gated = cls(backend.pipeline, backend.name, backend.checkpoint_hash, backend.captions)
        layers = [each.module for each in projections(backend.unet).values()]
        gated.deltas = [nn.Parameter(torch.zeros_like(layer.weight)) for layer in layers]
        for layer, delta in zip(layers, gated.deltas):
            layer.forward = partial(_gated, layer.weight, delta)  # type: ignore[method-assign]
        return gated

    def encode_captions(
        self, captions: Sequence[str], vectors: Mapping[str, Tensor], sizes: Sequence[Sizes | None] = ()
    ) -> Conditioning:
        encoded = super().encode_captions(captions, vectors, sizes)
        gate = encoded.crossattn.new_zeros(*encoded.crossattn.shape[:2], 1)
        for row, caption in enumerate(captions):
            [piece] = self._pieces(caption, vectors)
            for column, _ in piece.vectors[:1]:
                gate[row, 1 + column :] = 1
        return Conditioning(torch.cat([encoded.crossattn, gate], dim=-1), encoded.vector)


def _gated(weight: Tensor, delta: Tensor, features: Tensor) -> Tensor:
    x, gate = features[..., :-1], features[..., -1:]
    return F.linear(x, weight) + gate * F.linear(x, delta)


def lora(task: Task, layers: str) -> Taught:
    """A LoRA by peft on the layers whose names match, of as many numbers as ours has, and the word."""
    from peft import LoraConfig

    backend = with_own_unet(task.backend)
    rank = lora_rank(backend, layers)
    torch.manual_seed(task.plan.seed)
    backend.unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers))  # type: ignore[operator]
    adapters = [weight for name, weight in backend.unet.named_parameters() if ".lora_" in name]
    return _loop(task, backend, adapters, task.rate, float(task.plan.embedding_learning_rate))


def lora_rank(backend: DiffusersBackend, layers: str) -> int:
    """The rank at which a LoRA on the layers has as many numbers as full deltas of all keys and values, nearly."""
    full = sum(layer.module.weight.numel() for layer in projections(backend.unet).values())
    linear = [each for name, each in backend.unet.named_modules() if re.fullmatch(layers, name)]
    per_rank = sum(each.in_features + each.out_features for each in linear)  # type: ignore[operator]
    return max(1, round(full / per_rank))


def with_own_unet(backend: DiffusersBackend) -> DiffusersBackend:
    """The same model with a UNet of its own, which may be written."""
    parts = {**backend.pipeline.components, "unet": copy.deepcopy(backend.pipeline.unet)}
    pipeline = type(backend.pipeline)(**parts, requires_safety_checker=False)
    return DiffusersBackend(pipeline, backend.name, backend.checkpoint_hash, backend.captions)


def _count(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


def _loop(task: Task, backend: DiffusersBackend, weights: list[nn.Parameter], rate: float, word_rate: float) -> Taught:
    """Train weights of a backend's UNet, and the word, with all that the plan says of examples, loss and steps."""
    plan, config = task.plan, task.plan.config()
    [concept] = plan.named_concepts()
    examples = encode_concept(concept, backend, plan.pictures(), plan.seed)
    start = initial_vectors(backend, config.modifier_token, config.initializer_token, config.vectors_per_token)
    words = {token: nn.Parameter(vectors.to(backend.device)) for token, vectors in start.items()}
    for weight in weights:
        weight.requires_grad_(True)
    groups = [{"params": list(words.values()), "lr": word_rate, "weight_decay": 0.0}]
    if weights:
        groups.append({"params": weights, "lr": rate, "weight_decay": config.adam_weight_decay})
    optimizer = torch.optim.AdamW(groups)
    stopwatch = Stopwatch()
    for step in range(config.max_train_steps):
        _loss(backend, plan, examples, words, step).backward()
        nn.utils.clip_grad_norm_([*words.values(), *weights], config.max_grad_norm or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        stopwatch.mark()
    backend.unet.requires_grad_(False)
    vectors = {token: each.detach() for token, each in words.items()}
    numbers = _count(vectors) + sum(weight.numel() for weight in weights)
    return Taught(backend, vectors, numbers, stopwatch.seconds)


def _loss(
    backend: DiffusersBackend, plan: TrainingPlan, examples: ConceptExamples, words: Mapping[str, Tensor], step: int
) -> Tensor:
    """One step's, on what `Trainer` would draw for it."""
    asked, generator = parametrisation(backend), step_generator(plan.seed, step)
    first, size = step * plan.train_batch_size, plan.train_batch_size
    orders = [ExampleOrder(each, plan.seed) for each in (examples.instance, examples.prior) if each]
    drawn = [order.take(turn, first) for turn in range(first, first + size) for order in orders]
    noised = [_noised(example, asked.timesteps, generator) for example in drawn]
    concept_first = [index for kind in range(len(orders)) for index in range(kind, len(drawn), len(orders))]
    latents, noise, timesteps = (
        torch.stack([noised[index][part] for index in concept_first]).to(backend.device) for part in range(3)
    )
    mask = torch.stack([drawn[index].mask for index in concept_first]).to(backend.device)
    captions = [drawn[index].caption for index in concept_first]
    distinct = sorted(set(captions))
    encoded = backend.encode_captions(distinct, words)
    conditioning = Conditioning.cat([encoded.row(distinct.index(caption)) for caption in captions])
    prediction = backend.predict(asked.add_noise(latents, noise, timesteps), timesteps, conditioning)
    errors = masked_errors(prediction, asked.target(latents, noise, timesteps), mask)
    if plan.snr_gamma is not None:
        errors = errors * asked.min_snr_weights(timesteps, plan.snr_gamma)
    return prior_preservation_loss(errors, size, plan.prior_loss_weight)[0]


def _noised(example: Example, timesteps: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, noise and timestep, in the order in which `Trainer` draws them."""
    latents = example.mean + example.std * torch.randn(example.mean.shape, generator=generator)
    noise = torch.randn(example.mean.shape, generator=generator)
    return latents, noise, torch.randint(timesteps, (), generator=generator)


def diffusers_script(task: Task) -> Taught:
    """diffusers' train_custom_diffusion.py without a change, on pictures alone: it reads no captions beside them."""
    assert task.script is not None
    [concept] = task.plan.named_concepts()
    assert concept.class_data_dir is not None
    model, output, record = (task.folder / name for name in ("model", "output", "record.json"))
    task.backend.pipeline.save_pretrained(model)
    flags = {
        "pretrained_model_name_or_path": model,
        "instance_data_dir": _pictures_alone(concept.instance_data_dir, task.folder / "instance"),
        "instance_prompt": concept.instance_prompt,
        "class_data_dir": _pictures_alone(concept.class_data_dir, task.folder / "class"),
        "class_prompt": concept.class_prompt,
        "num_class_images": task.plan.num_class_images,
        "modifier_token": "+".join(task.plan.tokens),
        "initializer_token": "+".join(task.plan.initializer_token),
        "resolution": task.backend.resolution,
        "train_batch_size": task.plan.train_batch_size,
        "max_train_steps": task.plan.max_train_steps,
        "checkpointing_steps": task.plan.max_train_steps + 1,
        "learning_rate": task.rate,
        "lr_warmup_steps": 0,
        "seed": task.plan.seed,
        "report_to": "tensorboard",
        "output_dir": output,
    }
    words = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    words += ["--noaug"] * task.plan.noaug
    steps = ["1", str(task.plan.max_train_steps)]
    done = subprocess.run(
        [sys.executable, str(RECORDER), str(record), *steps, str(task.script), *words, "--with_prior_preservation"],
        text=True, errors="replace", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        check=False,
    )  # fmt: skip
    made = sorted(path for path in output.glob("*.*") if path.suffix in (".safetensors", ".bin"))
    if done.returncode or not record.is_file():
        sys.exit(f"{done.stdout}\nerror: {task.script} ended with status {done.returncode}")
    measured = json.loads(record.read_text())
    seconds = (
        1 / measured["steps_per_second"] if measured["device"] == "cuda" else measured["processor_seconds_per_step"]
    )
    base = formats.Base.of(task.backend.unet)
    found = [formats.read(path, base).delta for path in made]
    delta = Delta(
        {key: entry for each in found for key, entry in each.entries.items()},
        {token: vectors for each in found for token, vectors in each.embeddings.items()},
    )
    numbers = sum(entry.shape[0] * entry.shape[1] for entry in delta.entries.values()) + _count(delta.embeddings)
    return Taught(task.backend, delta.embeddings, numbers, seconds, delta)


def _pictures_alone(source: Path, folder: Path) -> Path:
    """A folder's pictures without what lies beside them, which the script would take for pictures."""
    folder.mkdir()
    for path in find_pictures(source):
        shutil.copy(path, folder)
    return folder


WAYS = {
    "word": Way("word alone", word),
    "none": Way("K/V + word, no prior", partial(ours, prior="none")),
    "pictures": Way("K/V + word, pictures", partial(ours, prior="none"), pictures=True),
    "text": Way("K/V + word, text prior", partial(ours, prior="text")),
    "gated": Way("K/V from the word on + word", gated),
    "crossattn": Way("all of cross-attention + word, text prior", partial(ours, freeze_model="crossattn"), 1 / 27),
    "lora-kv": Way("LoRA on K/V + word, pictures", partial(lora, layers=KV), pictures=True),
    "lora": Way("LoRA on all attention + word, pictures", partial(lora, layers=ATTENTION), pictures=True),
    "unet": Way("whole UNet + word, pictures", whole_unet, 0.1, pictures=True),
    "script": Way("diffusers' script, pictures", diffusers_script, pictures=True),
}
"""By their names on the command line."""
