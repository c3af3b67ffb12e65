"""What a training is, with its model or before one is loaded, and whether it may go on from a save."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..backend import Backend
from ..data.captions import has_pictures
from . import checkpoints, parallel
from .identity import Identity, content_hash, identify, refuse_others
from .place import class_folder
from .plan import TrainingPlan, Wording


def identity_of(plan: TrainingPlan, folder: Path, backend: Backend | None = None) -> Identity:
    """What a training is, with the class pictures that there are. folder: the training's.

    Without a backend it says nothing of the model, and of what depends on that.
    """
    concepts = []
    for number, concept in enumerate(plan.named_concepts(), start=1):
        own = class_folder(plan, folder, number, concept)
        concepts.append(replace(concept, class_data_dir=own if own and has_pictures(own) else None))
    config = plan.config()
    settings = {each: getattr(config, each) for each in type(config).__dataclass_fields__}
    settings["processes"] = parallel.world_size()
    if plan.prior_captions:
        settings["prior_captions"] = content_hash(Path(plan.prior_captions))
    return identify(concepts, plan.pictures(), settings, backend)


def refuse_other(plan: TrainingPlan, wording: Wording, save: Path, identity: Identity) -> None:
    """Raise UserError, in the words of the face, for the save of a training of another identity, unless that is meant.

    What the identity says nothing of is not compared.
    """
    if not plan.allow_changes:
        _, then = checkpoints.read_identity(save)
        refuse_others(save, then, identity, f", or {wording.ask('allow_changes')}", wording.label)
