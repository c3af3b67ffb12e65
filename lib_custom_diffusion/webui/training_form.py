"""What of a training the WebUI's own settings decide: templates, rules for file names, loss CSV, TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from modules import shared
from modules.textual_inversion import textual_inversion

from ..data.concepts import PictureSettings
from ..data.pictures import find_pictures
from ..errors import UserError
from ..training.loop import TrainingConfig
from ..training.losslog import LossTable
from ..ui.training_form import TrainingForm


def host_picture_settings(form: TrainingForm) -> PictureSettings:
    """How pictures become examples. Raises UserError if the host has no template of the name asked for."""
    template = None
    if form.captions == "template":
        found = textual_inversion.textual_inversion_templates.get(form.template)
        if found is None:
            raise UserError(f"there is no prompt template {form.template!r}")
        template = Path(found.path)
    return form.picture_settings(
        template, shared.opts.dataset_filename_word_regex, shared.opts.dataset_filename_join_string
    )


def host_config(form: TrainingForm, vectors_per_token: int, mixed_precision: str) -> TrainingConfig:
    """The core's settings. Each embedding starts from the vectors that it has."""
    report_to = "tensorboard" if _wants_tensorboard() else "none"
    return form.core_config(form.words, vectors_per_token, mixed_precision, report_to)


def host_loss_table(form: TrainingForm) -> LossTable:
    """The host's own loss file: its name, columns and interval (Settings, Training). Raises UserError without pictures.

    An epoch is counted as the host counts it, in steps of which each takes pictures_per_step of all pictures.
    """
    pictures = sum(len(find_pictures(concept.instance_data_dir)) for concept in form.core_concepts())
    pictures_per_step = max(1, form.batch_size * form.gradient_accumulation)
    steps = max(1, pictures * shared.opts.training_image_repeats_per_epoch // pictures_per_step)

    def row(step: int, numbers: Mapping[str, float]) -> list[object]:
        return [*divmod(step - 1, steps), f"{numbers['loss']:.7f}", numbers["learning_rate"]]

    columns = ("step", "epoch", "epoch_step", "loss", "learn_rate")
    return LossTable("textual_inversion_loss.csv", columns, row, int(shared.opts.training_write_csv_every))


def _wants_tensorboard() -> bool:
    """The host's setting; without the package the host trains on as well."""
    return shared.opts.training_enable_tensorboard and find_spec("tensorboard") is not None
