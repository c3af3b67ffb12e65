"""What is refused of a plan before a model is loaded or a file is written: values, names, files and folders.

All raise UserError, in the words of the face.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import torch

from ..data.captions import class_captions, has_listing, is_listing
from ..data.concepts import Concept, find_pictures
from ..data.pictures import check_usable
from ..data.regularization import check_same_prompt, to_pick_from
from ..errors import UserError, check_range, check_text
from ..storage import check_writable
from ..tokens import file_name
from .config import check_precision
from .optimizers import check_optimizer_works
from .plan import NAME, PLAIN, TrainingPlan, Wording
from .words import check_said, is_in, stands_alone

_TAG = re.compile(r"<(?:delta|lora|lyco|hypernet):[^<>]*>")
"""What switches a file on where pictures are drawn."""


def check_settings(plan: TrainingPlan, wording: Wording = PLAIN, said: Callable[[str, str], bool] = is_in) -> None:
    """Refuse what no training can have. said: see `words.check_said`."""
    label = wording.label
    if not plan.concepts:
        raise UserError("a training has 1 concept or more; say what to learn")
    _check_texts(plan, wording)
    check_range(plan, "sample_batch_size", 1, 1000, label)
    check_range(plan, "checkpointing_steps", 0, math.inf, label)
    check_range(plan, "validation_steps", 0, math.inf, label)
    plan.config().check(label)
    plan.pictures().check(label)
    _check_names(plan, wording)
    _check_limit(plan, wording)
    concepts = plan.named_concepts()
    for number, concept in enumerate(concepts, start=1):
        _check_concept(plan, number, concept, wording)
    check_said(plan.tokens, [plan.captions_of(concept) for concept in concepts], said)
    if plan.with_prior_preservation:
        _check_classes(plan, concepts, wording)


def check_device(plan: TrainingPlan, device: torch.device, wording: Wording) -> None:
    """Refuse what cannot be done on a device, or with the libraries that are installed."""
    check_precision(plan.mixed_precision, device, wording.label)
    check_optimizer_works(plan.optimizer, device)
    if plan.report_to == "tensorboard" and find_spec("tensorboard") is None:
        raise UserError(
            f"TensorBoard is not installed; pip install tensorboard, or use {wording.label('report_to')} none"
        )


def _check_texts(plan: TrainingPlan, wording: Wording) -> None:
    for each in fields(plan):
        value = getattr(plan, each.name)
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str):
                check_text(text, wording.label(each.name))
    for number, concept in enumerate(plan.concepts, start=1):
        for name in ("instance_prompt", "class_prompt"):
            check_text(getattr(concept, name), wording.of_concept(name, number))


def _check_names(plan: TrainingPlan, wording: Wording) -> None:
    if plan.name and file_name(plan.name) != plan.name:
        raise UserError(
            f"{wording.label('name')} {plan.name!r} has characters that file names cannot have on every system;"
            f" call it {file_name(plan.name)!r}"
        )
    file_name(plan.result_name)  # which refuses one that is too long
    word_of: dict[str, str] = {}
    for token in plan.tokens:
        file = file_name(token).casefold()
        if file in word_of:
            raise UserError(
                f"the words {word_of[file]} and {token} are the same, or would be saved as the same file;"
                " choose another"
            )
        word_of[file] = token


def _check_limit(plan: TrainingPlan, wording: Wording) -> None:
    if plan.max_size and plan.energy is not None:
        raise UserError(f"give {wording.label('max_size')} or {wording.label('energy')}, not both")
    if plan.limit is not None and plan.limit.max_bytes == 0:
        raise UserError(f"{wording.label('max_size')} must be above 0, not {plan.max_size}")


def _check_concept(plan: TrainingPlan, number: int, concept: Concept, wording: Wording) -> None:
    if number > len(plan.tokens) and NAME in plan.concepts[number - 1].instance_prompt:
        raise UserError(f"concept {number} has no word; give {wording.of_concept('modifier_token', number)}")
    if not concept.instance_prompt.strip():
        raise UserError(f"{wording.of_concept('instance_prompt', number)} is empty; write photo of a [name]")
    for name in ("instance_prompt", "class_prompt"):
        if tag := _TAG.search(getattr(concept, name)):
            where = wording.of_concept(name, number)
            raise UserError(f"{where} has {tag[0]}, which is for prompts to draw from; leave it out")
    for token in plan.tokens:
        if token != concept.class_prompt and stands_alone(token, concept.class_prompt):
            where = f"{wording.of_concept('class_prompt', number)} {concept.class_prompt!r}"
            raise UserError(f"{where} has the new word {token}; write what it is a kind of, such as cat")
    check_usable(find_pictures(concept.instance_data_dir), plan.use_alpha)


def _check_classes(plan: TrainingPlan, concepts: Sequence[Concept], wording: Wording) -> None:
    if not plan.num_class_images and not any(concept.class_data_dir for concept in concepts):
        raise UserError(
            f"{wording.label('with_prior_preservation')} needs class pictures: give"
            f" {wording.of_concept('class_data_dir', 1)}, or {wording.label('num_class_images')} to have them drawn"
        )
    for number, concept in enumerate(concepts, start=1):
        _check_class(plan, number, concept, wording)
    own = {path.parent.resolve() for each in concepts for path in find_pictures(each.instance_data_dir)}
    drawn: dict[Path, str] = {}
    for number, concept in enumerate(concepts, start=1):
        folder = concept.class_data_dir
        if folder is None:
            continue
        where = f"{wording.of_concept('class_data_dir', number)} is {folder}"
        if folder.resolve() in own:
            raise UserError(f"{where}, where pictures to be learned are; give another folder")
        if plan.real_prior or not plan.num_class_images or has_listing(folder):
            continue
        other = drawn.setdefault(folder.resolve(), concept.class_prompt)
        if other != concept.class_prompt:
            raise UserError(f"{where}, where those of {other!r} are drawn; give another folder")


def _check_class(plan: TrainingPlan, number: int, concept: Concept, wording: Wording) -> None:
    folder, real, drawn = concept.class_data_dir, plan.real_prior, plan.num_class_images
    if real and folder is None:
        raise UserError(
            f"concept {number} needs a folder of captioned pictures for {wording.label('real_prior')}; give"
            f" {wording.of_concept('class_data_dir', number)}"
        )
    if real and folder is not None:
        check_usable([path for path, _ in to_pick_from(folder)])
    if (real or drawn) and not concept.class_prompt.strip():
        raise UserError(
            f"concept {number} needs a class_prompt for prior preservation, such as cat; give"
            f" {wording.of_concept('class_prompt', number)}"
        )
    if folder is None or real:
        return
    if is_listing(folder) or not drawn:
        check_usable([path for path, _ in class_captions(folder, concept.class_prompt)])
    else:
        check_same_prompt(folder, concept.class_prompt)
        check_writable(folder)
