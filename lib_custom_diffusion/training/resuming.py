"""What a training is, with its model or before one is loaded, and whether it may go on from a save."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..backend import Backend
from ..data.captions import has_listing
from ..data.regularization import is_complete
from . import checkpoints, parallel
from .identity import Identity, content_hash, identify, refuse_others
from .place import class_folder
from .plan import TrainingPlan, Wording


def identity_of(plan: TrainingPlan, folder: Path, backend: Backend | None = None) -> Identity:
    """What a training is, with the class pictures that there are by now. folder: the training's.

    Without a backend it says nothing of the model, and of what depends on that.
    """
    concepts = [
        replace(concept, class_data_dir=class_folder(plan, folder, number, concept))
        for number, concept in enumerate(plan.named_concepts(), start=1)
    ]
    awaited = [
        number
        for number, concept in enumerate(concepts, start=1)
        if concept.class_data_dir is not None and not _is_ready(plan, concept.class_data_dir)
    ]
    config = plan.config()
    settings = {each: getattr(config, each) for each in type(config).__dataclass_fields__}
    settings["processes"] = parallel.world_size()
    settings["with_prior_preservation"] = plan.with_prior_preservation
    settings["real_prior"] = plan.with_prior_preservation and plan.real_prior
    if plan.prior_captions:
        settings["prior_captions"] = content_hash(Path(plan.prior_captions))
    return identify(concepts, plan.pictures(), settings, backend, awaited)


def _is_ready(plan: TrainingPlan, class_data_dir: Path) -> bool:
    """Whether class pictures are there as they will be trained on, with none to be drawn or picked."""
    if plan.real_prior:
        return has_listing(class_data_dir)
    return class_data_dir.is_file() or is_complete(class_data_dir, plan.num_class_images)


def refuse_other(plan: TrainingPlan, wording: Wording, save: Path, identity: Identity) -> None:
    """Raise UserError, in the words of the face, for the save of a training of another identity, unless that is meant.

    What the identity says nothing of is not compared.
    """
    if not plan.allow_changes:
        _, then = checkpoints.read_identity(save)
        refuse_others(save, then, identity, f", or {wording.ask('allow_changes')}", wording.label)
