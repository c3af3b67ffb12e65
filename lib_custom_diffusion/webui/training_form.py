"""The form's fields that only the WebUI has an answer to: templates, rules for file names, TensorBoard."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from modules import shared
from modules.textual_inversion import textual_inversion

from ..concepts import PictureSettings
from ..errors import UserError
from ..training import TrainingConfig
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


def _wants_tensorboard() -> bool:
    """The host's setting; without the package the host trains on as well."""
    return shared.opts.training_enable_tensorboard and find_spec("tensorboard") is not None
