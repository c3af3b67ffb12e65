"""A training as one of the WebUI's jobs: its progress, its interrupt button, its folders."""

from __future__ import annotations

import datetime
import html
import json
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from modules import devices, paths, sd_hijack, shared
from modules.textual_inversion.saving_settings import save_settings_to_file
from PIL import Image

from .. import checkpoints
from ..backend import Sampling
from ..concepts import ConceptExamples, encode_concept
from ..delta import SUFFIX
from ..errors import UserError
from ..storage import write_atomically
from ..tokens import embedding_pt, file_name
from ..training import Progress, Trainer, TrainingConfig, TrainingResult
from ..ui.loss_plot import loss_svg
from .host_backend import HostBackend
from .host_state import autoencoder_aside, ready_for_training, refuse_untrainable, switch_networks_off
from .library import library
from .training_form import TrainingForm

JOB = "train-custom-diffusion"
LOG_DIRECTORY = "textual_inversion"


@dataclass(frozen=True)
class Outcome:
    """How a training ended, and what it left: the delta and the embeddings where the host looks for them."""

    step: int
    interrupted: bool
    delta: Path
    embeddings: list[Path]
    log_directory: Path
    prompt: str


def train(form: TrainingForm, log_directory: str = LOG_DIRECTORY, preview: Sampling | None = None) -> Outcome:
    """Train as the form says, on the model that the host has loaded; the caller holds the host's queue.

    log_directory: from the host's data folder, if it is not a full path.
    preview: how previews are drawn; None for the core's way.

    Raises UserError for whatever a person can mend. The host's model is the same afterwards in any case.
    """
    form.check()
    name = form.file_name
    target = library.folder / f"{name}{SUFFIX}"
    if target.exists() and not form.overwrite:
        raise UserError(f"there is a delta {name} already; give another name, or tick Overwrite")
    shared.state.job, shared.state.job_count = JOB, form.steps
    shared.state.textinfo = "Preparing…"
    sd_hijack.model_hijack.embedding_db.load_textual_inversion_embeddings()
    backend = HostBackend([concept.embedding for concept in form.concepts])
    backend.preview = preview
    refuse_untrainable(backend.model)
    config = form.core_config(_vectors_per_token(form), _precision(), _preview_prompt(form))
    config.check()
    folder = Path(paths.data_path, log_directory, datetime.date.today().isoformat(), name)
    checkpoints.claim_folder(folder, name, resuming=False, overwrite=True)
    with ready_for_training(backend.model):
        examples = _encode(form, backend)
        if shared.state.interrupted:
            raise UserError("interrupted before the first step; nothing was saved")
        trainer = Trainer(backend, form.core_concepts(), examples, config, folder, name)
        _write_settings(form, folder, backend, config, sum(len(concept.instance) for concept in examples))
        job = _Job(trainer, form, folder)
        with autoencoder_aside(backend.model):
            result = trainer.run(job.show, job.keep_pictures, lambda: shared.state.interrupted)
    return _deliver(result, form, folder, target)


def _encode(form: TrainingForm, backend: HostBackend) -> list[ConceptExamples]:
    examples = []
    for number, concept in enumerate(form.core_concepts(), start=1):

        def show(done: int, total: int, number: int = number) -> None:
            shared.state.textinfo = f"Encoding pictures of concept {number}: {done} of {total}"
            if shared.state.interrupted:
                raise UserError("interrupted before the first step; nothing was saved")

        examples.append(encode_concept(concept, backend, form.picture_settings(), form.seed, show))
    return examples


class _Job:
    """Shows a training in the host's progress area, and keeps copies and previews in its log folder on the way."""

    def __init__(self, trainer: Trainer, form: TrainingForm, folder: Path) -> None:
        self.trainer, self.form, self.folder = trainer, form, folder
        self.started = time.monotonic()
        self.losses: list[tuple[int, float]] = []
        self.saved = ""

    def show(self, progress: Progress) -> None:
        """Tell the page, and keep a copy if it is time for one."""
        if progress.loss == progress.loss:
            self.losses.append((progress.step, progress.loss))
        if self.form.save_every and progress.step % self.form.save_every == 0:
            self._keep_copy(progress.step)
        shared.state.job_no = progress.step
        shared.state.textinfo = self._page(progress)

    def _keep_copy(self, step: int) -> None:
        delta, folder = self.trainer.learned(), self.folder / "embeddings"
        write_atomically(folder / f"{self.form.file_name}-{step}{SUFFIX}", delta.to_bytes(title=self.form.file_name))
        for token, vectors in delta.embeddings.items():
            name = f"{file_name(token)}-{step}"
            write_atomically(folder / f"{name}.pt", embedding_pt(vectors, name, step))
        self.saved = f"{self.form.file_name}-{step}{SUFFIX}"

    def keep_pictures(self, step: int, pictures: Sequence[Image.Image]) -> None:
        """Save the previews, show the last one, and let nothing that their prompt switched on act on the training."""
        switch_networks_off()
        folder = self.folder / "images"
        folder.mkdir(parents=True, exist_ok=True)
        for picture in pictures:
            picture.save(folder / f"{self.form.file_name}-{step}.{shared.opts.samples_format}")
            shared.state.assign_current_image(picture)

    def _page(self, progress: Progress) -> str:
        seconds = (time.monotonic() - self.started) / progress.step
        rows = {
            "Step": f"{progress.step} of {progress.total_steps}",
            "Time left": str(datetime.timedelta(seconds=round(seconds * (progress.total_steps - progress.step)))),
            "Seconds a step": f"{seconds:.2f}",
            "Loss": f"{self.losses[-1][1]:.4f}" if self.losses else "…",
            "Memory": _memory(),
            "Last copy": self.saved,
        }
        table = "".join(f"<tr><th>{key}</th><td>{html.escape(value)}</td></tr>" for key, value in rows.items() if value)
        curve = loss_svg(self.losses, progress.total_steps)
        # The host writes a text of one line onto its progress bar as well; this is none for it.
        return f'<div class="cd-progress">\n<table>{table}</table>{curve}</div>'


def _deliver(result: TrainingResult, form: TrainingForm, folder: Path, target: Path) -> Outcome:
    """Put the result where the host looks for it, and have it look."""
    write_atomically(target, result.delta.to_bytes(title=form.file_name))
    files = []
    for token, vectors in result.delta.embeddings.items():
        files.append(_home_of(token))
        write_atomically(files[-1], embedding_pt(vectors, token, result.step))
    if not shared.opts.save_optimizer_state:
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    library.refresh()
    sd_hijack.model_hijack.embedding_db.load_textual_inversion_embeddings(force_reload=True)
    captions = [concept.instance_prompt for concept in form.core_concepts()]
    return Outcome(
        result.step, result.interrupted, target, files, folder,
        f"{' and '.join(captions)} <delta:{form.file_name}:1>",
    )  # fmt: skip


def _home_of(token: str) -> Path:
    """Where the host read an embedding from, if that is a .pt file in its folder; else where it goes there."""
    folder = Path(shared.cmd_opts.embeddings_dir)
    read_from = Path(sd_hijack.model_hijack.embedding_db.word_embeddings[token].filename or "")
    if read_from.suffix == ".pt" and folder.resolve() in read_from.resolve().parents:
        return read_from
    return folder / f"{file_name(token)}.pt"


def _vectors_per_token(form: TrainingForm) -> int:
    words = sd_hijack.model_hijack.embedding_db.word_embeddings
    for concept in form.concepts:
        if concept.embedding not in words:
            raise UserError(f"there is no embedding {concept.embedding!r} that fits this model; create it first")
    counts = {len(words[concept.embedding].vec) for concept in form.concepts}
    if len(counts) > 1:
        raise UserError("the embeddings of one training need the same number of vectors; create them alike")
    return counts.pop()


def _precision() -> str:
    return {torch.float16: "fp16", torch.bfloat16: "bf16"}.get(devices.dtype_unet, "no")


def _preview_prompt(form: TrainingForm) -> str:
    """What previews show: nothing without an interval, else the prompt asked for or the first concept's caption."""
    if not form.preview_every:
        return ""
    return form.preview_prompt.strip() or form.core_concepts()[0].instance_prompt


def _write_settings(
    form: TrainingForm, folder: Path, backend: HostBackend, config: TrainingConfig, examples: int
) -> None:
    settings = {"model": backend.name, "form": asdict(form), "training": asdict(config)}
    write_atomically(folder / "config.json", (json.dumps(settings, indent=2) + "\n").encode())
    if shared.opts.save_training_settings_to_txt:
        save_settings_to_file(
            str(folder),
            {
                "model_name": backend.name,
                "model_hash": backend.checkpoint_hash,
                "num_of_dataset_images": examples,
                "num_vectors_per_token": config.vectors_per_token,
                "embedding_name": "+".join(config.modifier_tokens),
                "learn_rate": config.learning_rate,
                "batch_size": config.train_batch_size,
                "gradient_step": config.gradient_accumulation_steps,
                "clip_grad_mode": form.clip_mode,
                "clip_grad_value": form.clip_value,
                "steps": config.max_train_steps,
                "data_root": "+".join(concept.pictures for concept in form.concepts),
                "log_directory": str(folder),
                "template_file": form.template if form.captions == "template" else form.prompt,
                "training_width": form.resolution or backend.resolution,
                "training_height": form.resolution or backend.resolution,
                "create_image_every": form.preview_every,
                "save_embedding_every": form.save_every,
            },
        )


def _memory() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB on the GPU at most"
    with suppress(ImportError):
        import psutil  # the host has it; only people without a GPU need it

        return f"{psutil.Process().memory_info().rss / 1e9:.1f} GB"
    return ""
