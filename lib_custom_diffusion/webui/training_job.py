"""A training as one of the WebUI's jobs: its progress, its interrupt button, its folders."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from modules import devices, paths, sd_hijack, shared
from modules.textual_inversion.saving_settings import save_settings_to_file
from PIL import Image

from ..backend import Sampling
from ..delta import SUFFIX
from ..errors import UserError
from ..storage import write_atomically
from ..tokens import embedding_pt, file_name
from ..training.loop import TrainingResult
from ..ui.timings import keep_timing
from ..ui.training_form import TrainingForm
from ..ui.training_job import Plan, TrainingJob, training_folder
from ..ui.training_job import estimate as estimate_time
from ..ui.training_page import Outcome
from .host_backend import HostBackend
from .host_state import ready_for_training, refuse_untrainable, switch_networks_off
from .library import library
from .training_form import host_config, host_loss_table, host_picture_settings

JOB = "train-custom-diffusion"
LOG_DIRECTORY = "textual_inversion"


def train(form: TrainingForm, log_directory: str = LOG_DIRECTORY, preview: Sampling | None = None) -> Outcome:
    """Train as the form says, on the model that the host has loaded; the caller holds the host's queue.

    log_directory: from the host's data folder, if it is not a full path.
    preview: how previews are drawn; None for the core's way.

    Raises UserError for whatever a person can mend. The host's model is the same afterwards in any case.
    """
    form.check()
    target = library.folder / f"{form.file_name}{SUFFIX}"
    if target.exists() and not (form.overwrite or form.resume):
        raise UserError(f"there is a delta {form.file_name} already; give another name, or tick Overwrite")
    backend = _begin(form)
    backend.preview = preview
    plan = _plan(form, *training_folder(Path(paths.data_path, log_directory), form))
    with ready_for_training(backend.model):
        job = TrainingJob(plan, backend, HostScreen())
        _write_settings(plan, backend, sum(len(concept.instance) for concept in job.examples))
        result = job.run()
        note = job.write_delta(result, target)
    timing = job.timing()
    if timing is not None:
        keep_timing(_timings(), timing)
    return _deliver(plan, result, target, note, job.last_preview)


def estimate(form: TrainingForm) -> str:
    """About how long such a training takes, and how that is known; the caller holds the host's queue.

    Raises UserError for whatever a person can mend.
    """
    form.check()
    backend = _begin(form)
    with ready_for_training(backend.model):
        return estimate_time(_plan(form, Path(), None), backend, HostScreen(), _timings())


def _begin(form: TrainingForm) -> HostBackend:
    """Start the job on the host's page, and take the host's model. Raises UserError if it cannot be trained."""
    shared.state.job, shared.state.job_count = JOB, form.steps
    shared.state.textinfo = "Preparing…"
    sd_hijack.model_hijack.embedding_db.load_textual_inversion_embeddings()
    backend = HostBackend(form.words)
    refuse_untrainable(backend.model)
    return backend


def _plan(form: TrainingForm, folder: Path, resume: Path | None) -> Plan:
    config = host_config(form, _vectors_per_token(form), _precision())
    config.check()
    pictures = host_picture_settings(form)
    return Plan(form, pictures, config, folder, resume, host_loss_table(form), shared.opts.samples_format)


def _timings() -> Path:
    """What trainings took on this machine."""
    return Path(paths.data_path, "custom-diffusion-timings.json")


class HostScreen:
    """The host's progress area, preview and Interrupt button."""

    def show(self, text: str, step: int = 0) -> None:
        shared.state.job_no = step
        shared.state.textinfo = text

    def show_picture(self, picture: Image.Image) -> None:
        """Show a preview, and let nothing that its prompt switched on act on the training."""
        switch_networks_off()
        shared.state.assign_current_image(picture)

    def interrupted(self) -> bool:
        return bool(shared.state.interrupted)


def _deliver(plan: Plan, result: TrainingResult, target: Path, note: str, preview: Image.Image | None) -> Outcome:
    """Put the words where the host looks for them, and have it look."""
    files = []
    for token, vectors in result.delta.embeddings.items():
        files.append(_home_of(token))
        write_atomically(files[-1], embedding_pt(vectors, token, result.step))
    if not shared.opts.save_optimizer_state:
        for checkpoint in plan.folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    library.refresh()
    sd_hijack.model_hijack.embedding_db.load_textual_inversion_embeddings(force_reload=True)
    resumable = result.interrupted and shared.opts.save_optimizer_state
    return Outcome(
        result.step, result.interrupted, target, files, plan.folder, plan.form.prompt_to_try, note, resumable, preview
    )


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


def _write_settings(plan: Plan, backend: HostBackend, examples: int) -> None:
    """The host's text file of settings, if it is set to write one."""
    if not shared.opts.save_training_settings_to_txt:
        return
    form, config = plan.form, plan.config
    save_settings_to_file(
        str(plan.folder),
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
            "log_directory": str(plan.folder),
            "template_file": form.template if form.captions == "template" else form.prompt,
            "training_width": form.resolution or backend.resolution,
            "training_height": form.resolution or backend.resolution,
            "varsize": form.shape == "as they are",
            "create_image_every": form.preview_every,
            "save_embedding_every": form.save_every,
        },
    )
