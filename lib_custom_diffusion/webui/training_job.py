"""A training as one of the WebUI's jobs: its progress, its interrupt button, its folders and settings."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from modules import devices, paths, sd_hijack, shared
from modules.textual_inversion import textual_inversion
from modules.textual_inversion.saving_settings import save_settings_to_file
from PIL import Image

from ..backend import Sampling
from ..data.pictures import find_pictures
from ..delta import SUFFIX
from ..errors import UserError, did_you_mean
from ..storage import check_writable, typed_path
from ..tokens import split_at_tokens
from ..training import checkpoints
from ..training.checks import check_settings
from ..training.job import Host, Report
from ..training.loop import Progress
from ..training.losslog import LossTable
from ..training.place import dated_folder
from ..training.plan import TrainingPlan, Wording
from ..ui.training_face import PageFace, outcome_of, run_on_page
from ..ui.training_face import estimate as estimate_time
from ..ui.training_form import PAGE
from ..ui.training_page import Outcome
from .delta_library import LOG_DIRECTORY, library
from .host_backend import HostBackend, asked_to_stop, refuse_without_checkpoint
from .host_state import ready_for_training, refuse_untrainable, switch_networks_off
from .host_text import home_of, steps_of, write_word
from .reopened_page import JOB, last

logger = logging.getLogger(__name__)

NOT_ON_THE_BAR = "\n"
"""The host writes a text of one line onto its progress bar as well, above where the page shows it."""


def train(
    plan: TrainingPlan, log_directory: str = LOG_DIRECTORY, preview: Sampling | None = None, wording: Wording = PAGE
) -> Outcome:
    """Train as the plan says, on the model that the host has loaded; the caller holds the host's queue.

    log_directory: from the host's data folder, if it is not a full path.
    preview: how previews are drawn; None for the core's way.

    Raises UserError for whatever a person can mend. The host's model is the same afterwards in any case.
    """
    plan, backend = _begin(plan, wording)
    backend.preview = preview
    logs = logs_in(log_directory)
    folder = dated_folder(logs, plan, wording)
    library.look_into(logs)
    target = library.folder / f"{plan.result_name}{SUFFIX}"
    host = Host(backend, folder, target, True, _loss_table(plan), _picture_suffix())
    foreign = _words_read_as_embeddings(plan)
    for sentence in foreign:
        logger.warning(sentence)
    with ready_for_training(backend.model):
        report = run_on_page(plan, host, _Face(HostScreen(), wording, plan, host), timings_file())
    return _deliver(replace(report, notes=(*report.notes, *foreign)), backend.model)


def estimate(plan: TrainingPlan) -> str:
    """About how long such a training takes, and how that is known; the caller holds the host's queue.

    Raises UserError for whatever a person can mend.
    """
    plan, backend = _begin(plan, PAGE)
    with ready_for_training(backend.model):
        return estimate_time(plan, Host(backend, Path()), HostScreen(), timings_file())


def logs_in(directory: str) -> Path:
    """The log directory that a person has entered, from the host's data folder; the usual one if it is empty."""
    return Path(paths.data_path, typed_path(directory) if directory.strip() else LOG_DIRECTORY)


def template_file(name: str) -> Path:
    """The host's template of captions of that name. Raises UserError if it has none."""
    found = textual_inversion.textual_inversion_templates.get(name)
    if found is None:
        raise UserError(f"there is no prompt template {name!r}")
    return Path(found.path)


def _begin(plan: TrainingPlan, wording: Wording) -> tuple[TrainingPlan, HostBackend]:
    """Start the job on the host's page, and take the host's model; the plan with what the host decides.

    Raises UserError if it cannot be trained.
    """
    shared.state.job, shared.state.job_count = JOB, plan.max_train_steps
    shared.state.textinfo = f"Preparing…{NOT_ON_THE_BAR}"
    check_settings(replace(plan, initializer_token=plan.tokens), wording)  # they start from what they are
    refuse_without_checkpoint()
    refuse_untrainable(shared.sd_model)
    backend = HostBackend(plan.tokens)
    backend.refuse_not_finite()
    sd_hijack.model_hijack.embedding_db.load_textual_inversion_embeddings()
    plan = _as_the_host_has_it(plan, wording)
    _ask_before_words_are_trained_over(plan, wording)
    for token in plan.tokens:
        check_writable(home_of(backend.model, token).parent)
    return plan, backend


def _as_the_host_has_it(plan: TrainingPlan, wording: Wording) -> TrainingPlan:
    """The plan with what the WebUI's own settings decide. Raises UserError where the plan says otherwise."""
    of_host = {
        "mixed_precision": {torch.float16: "fp16", torch.bfloat16: "bf16"}.get(devices.dtype_unet, "no"),
        "report_to": "tensorboard" if shared.opts.training_enable_tensorboard and find_spec("tensorboard") else "none",
        "initializer_token": plan.tokens,  # each word starts from the vectors that its embedding has
        "vectors_per_token": _vectors_per_token(plan),
        "filename_word_regex": shared.opts.dataset_filename_word_regex,
        "filename_join_string": shared.opts.dataset_filename_join_string,
    }
    for name, value in of_host.items():
        asked = getattr(plan, name)
        if asked not in (value, getattr(TrainingPlan, name)):
            raise UserError(
                f"{wording.label(name)} is {value!r} here, by the WebUI's own settings and words, not {asked!r}"
            )
    return replace(plan, **of_host)


def _ask_before_words_are_trained_over(plan: TrainingPlan, wording: Wording) -> None:
    """Raise UserError if an embedding that was trained already would be replaced, and nobody said that it may be."""
    if plan.overwrite or plan.resume_from_checkpoint:
        return
    words = sd_hijack.model_hijack.embedding_db.word_embeddings
    for token in plan.tokens:
        steps = steps_of(words[token])
        if steps:
            raise UserError(
                f"the embedding {token} was trained already ({steps} steps), and its file would be replaced;"
                f" {wording.ask('overwrite')} to start a new training from the word as it is now, create another word,"
                f" or {wording.ask('resume_from_checkpoint')} to continue an interrupted one (if Saves Optimizer state"
                " was ticked in Settings, Training)"
            )


def _words_read_as_embeddings(plan: TrainingPlan) -> list[str]:
    """A sentence for each embedding, other than those to be learned, whose name captions or kinds have."""
    texts = [text for each in plan.named_concepts() for text in (each.class_prompt, *plan.captions_of(each))]
    text = "\n".join(texts).casefold()
    told = []
    for name in sd_hijack.model_hijack.embedding_db.word_embeddings:
        if name not in plan.tokens and split_at_tokens(text, [name.casefold()]) != [text]:
            told.append(f"In the captions and kinds, {name} means the embedding of that name, not the ordinary word.")
    return told


def _loss_table(plan: TrainingPlan) -> LossTable:
    """The host's own loss file: its name, columns and interval (Settings, Training).

    An epoch is counted as the host counts it, in steps of which each takes pictures_per_step of all pictures.
    """
    pictures = sum(len(find_pictures(concept.instance_data_dir)) for concept in plan.concepts)
    pictures_per_step = min(plan.train_batch_size, pictures) * plan.gradient_accumulation_steps
    steps = max(1, pictures * shared.opts.training_image_repeats_per_epoch // pictures_per_step)

    def row(step: int, numbers: Mapping[str, float]) -> list[object]:
        return [*divmod(step - 1, steps), f"{numbers['loss']:.7f}", numbers["learning_rate"]]

    columns = ("step", "epoch", "epoch_step", "loss", "learn_rate")
    every = min(int(shared.opts.training_write_csv_every), plan.max_train_steps)  # a short training has a row, too
    return LossTable("textual_inversion_loss.csv", columns, row, every)


def _picture_suffix() -> str:
    """What the host's own pictures are; PNG where it is set to what Pillow cannot write."""
    suffix = str(shared.opts.samples_format)
    return suffix if Image.registered_extensions().get(f".{suffix.lower()}") in Image.SAVE else "png"


def timings_file() -> Path:
    """What trainings took on this machine."""
    return Path(paths.data_path, "custom-diffusion-timings.json")


class HostScreen:
    """The host's progress area, preview and Interrupt button."""

    def show(self, text: str, step: int = 0) -> None:
        last.begin()
        shared.state.job_no = step
        shared.state.textinfo = f"{text}{NOT_ON_THE_BAR}"

    def show_picture(self, picture: Image.Image) -> None:
        """Show a preview, and let nothing that its prompt switched on act on the training."""
        switch_networks_off()
        shared.state.assign_current_image(picture)

    def interrupted(self) -> bool:
        return asked_to_stop()


class _Face(PageFace):
    """The host's page, which writes the host's file of settings at the first step."""

    def __init__(self, screen: HostScreen, wording: Wording, plan: TrainingPlan, host: Host) -> None:
        super().__init__(screen, wording, plan.result_name)
        self.plan, self.host = plan, host

    def progress(self, progress: Progress) -> None:
        if not self.step:
            with suppress(OSError, UserError):  # a full disk, or pictures that are gone since, cost no training
                _write_settings(self.plan, self.host)
        super().progress(progress)


def _deliver(report: Report, model: Any) -> Outcome:
    """Put the words where the host looks for them, and have it look."""
    result = report.result
    files = [write_word(model, token, vectors, result.step) for token, vectors in result.delta.embeddings.items()]
    if not shared.opts.save_optimizer_state:
        checkpoints.remove(checkpoints.saves_in(report.folder))
    if report.preview is not None:
        # The card's; a picture that a person chooses is NAME.delta.png, and comes first.
        with suppress(OSError, ValueError):
            report.preview.save(report.delta.with_suffix(f".preview.{_picture_suffix()}"))
    library.refresh()
    sd_hijack.model_hijack.embedding_db.load_textual_inversion_embeddings(force_reload=True)
    return outcome_of(report, files, report.interrupted and shared.opts.save_optimizer_state, report.preview)


def _vectors_per_token(plan: TrainingPlan) -> int:
    words = sd_hijack.model_hijack.embedding_db.word_embeddings
    for token in plan.tokens:
        if token not in words:
            near = did_you_mean(token, words)
            raise UserError(f"there is no embedding {token!r} that fits this model; create it first{near}")
    counts = {words[token].vectors for token in plan.tokens}
    if len(counts) > 1:
        raise UserError("the embeddings of one training need the same number of vectors; create them alike")
    return counts.pop()


def _write_settings(plan: TrainingPlan, host: Host) -> None:
    """The host's text file of settings, if it is set to write one."""
    if not shared.opts.save_training_settings_to_txt:
        return
    backend = host.backend
    save_settings_to_file(
        str(host.folder),
        {
            "model_name": backend.name,
            "model_hash": backend.checkpoint_hash,
            "num_of_dataset_images": sum(len(find_pictures(concept.instance_data_dir)) for concept in plan.concepts),
            "num_vectors_per_token": plan.vectors_per_token,
            "embedding_name": "+".join(plan.tokens),
            "learn_rate": plan.learning_rate,
            "batch_size": plan.train_batch_size,
            "gradient_step": plan.gradient_accumulation_steps,
            "clip_grad_mode": "norm" if plan.max_grad_norm else "value" if plan.max_grad_value else "disabled",
            "clip_grad_value": plan.max_grad_norm or plan.max_grad_value,
            "steps": plan.max_train_steps,
            "data_root": "+".join(str(concept.instance_data_dir) for concept in plan.concepts),
            "log_directory": str(host.folder),
            "template_file": str(plan.template or plan.concepts[0].instance_prompt),
            "training_width": plan.resolution or backend.resolution,
            "training_height": plan.resolution or backend.resolution,
            "varsize": plan.resize_mode == "bucket",
            "create_image_every": plan.validation_steps,
            "save_embedding_every": plan.checkpointing_steps,
        },
    )
