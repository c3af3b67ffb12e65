"""What a person enters on a page, and the plan of a training that it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..storage import typed_path
from ..training.plan import TrainingPlan, Wording

MAX_CONCEPTS = 4
CLIP_MODES = ("norm", "value", "disabled")
PICTURE_SHAPES = {"cropped to a square": "crop", "padded to a square": "pad", "as they are": "bucket"}
"""What is shown of pictures that are not square; by the core's words."""

LABELS = {
    "modifier_token": "Word", "initializer_token": "Initialization text", "class_prompt": "Kind",
    "instance_data_dir": "Dataset directory", "class_data_dir": "Regularization directory",
    "vectors_per_token": "Number of vectors per token", "name": "Name of the delta", "overwrite": "Overwrite",
    "resume_from_checkpoint": "Resume from the last save",
    "allow_changes": "Resume even if pictures or settings have changed", "max_train_steps": "Max steps",
    "train_batch_size": "Batch size", "resolution": "Width and height", "resize_mode": "Resize images",
    "learning_rate": "Learning rate", "embedding_learning_rate": "Embedding Learning rate",
    "optimizer": "Optimizer", "instance_prompt": "Caption",
    "prior": "Prior preservation", "text_prior_weight": "Weight of the text prior",
    "prior_loss_weight": "Weight of regularization images",
    "checkpointing_steps": "Save a copy to log directory every N steps, 0 to disable",
    "validation_steps": "Save an image to log directory every N steps, 0 to disable",
    "validation_prompt": "Preview prompt", "freeze_model": "Layers to train", "caption_source": "Captions from",
    "template": "Prompt template", "noaug": "Vary size and position", "hflip": "Flip at random",
    "use_alpha": "Use PNG alpha channel as loss weight", "gradient_checkpointing": "Gradient checkpointing",
    "gradient_accumulation_steps": "Gradient accumulation steps", "seed": "Seed", "clip_mode": "Gradient Clipping",
    "max_grad_norm": "Gradient clip value", "max_grad_value": "Gradient clip value", "snr_gamma": "Min-SNR gamma",
    "max_size": "Maximum file size in MB, 0 to disable", "rank": "Rank to train, 0 for the default",
}  # fmt: skip
"""What the pages call settings: as the WebUI's Train tab does where it has them."""
PAGE = Wording(LABELS, asking="tick {} in Advanced")
_OFF_AT_ZERO = ("resolution", "snr_gamma", "max_size", "rank", "checkpointing_steps", "validation_steps")
"""The numbers that mean nothing, or none, when they are emptied."""


def label_of_concept(name: str, number: int) -> str:
    """What the page calls a setting of a concept."""
    return LABELS[name] if number == 1 else PAGE.of_concept(name, number)


def entered_plan(
    concepts: Sequence[Mapping[str, Any]],
    entered: Mapping[str, Any],
    template: Callable[[str], Path | None],
) -> TrainingPlan:
    """The plan that a page's fields are.

    concepts: modifier_token, instance_data_dir, class_prompt and class_data_dir of each, and perhaps initializer_token.
    entered:  the other fields by name. Settings of the plan are called as there; 0 in resolution, snr_gamma, max_size
              and rank is none, and a number that was emptied is None. instance_prompt is that of all concepts.
              clip_mode and clip_value say what gradients are clipped by, and at. max_size is in MB.
    template: the file of a template's name.

    Raises UserError for what is no plan.
    """
    if not 1 <= len(concepts) <= MAX_CONCEPTS:
        raise UserError(f"a training has 1 to {MAX_CONCEPTS} concepts, not {len(concepts)}")
    for number, concept in enumerate(concepts, start=1):
        if not (concept.get("modifier_token") or "").strip():
            raise UserError(f"{label_of_concept('modifier_token', number)} is empty; give the word to be learned")
        if not (concept.get("instance_data_dir") or "").strip():
            raise UserError(
                f"{label_of_concept('instance_data_dir', number)} is empty; give the folder with your pictures"
            )
    given = dict(entered)
    for name in [name for name, value in given.items() if value is None]:
        if name not in _OFF_AT_ZERO:
            raise UserError(f"{LABELS.get(name, LABELS['max_grad_norm'])} is empty; give a number")
        given[name] = 0
    prompt = given.pop("instance_prompt", "photo of a [name]")
    if not prompt.strip():
        raise UserError(f"{LABELS['instance_prompt']} is empty; say what the pictures show, such as photo of a [name]")
    given |= _gradients(given.pop("clip_mode", CLIP_MODES[0]), given.pop("clip_value", 1.0))
    given["resize_mode"] = _shape(given.get("resize_mode", next(iter(PICTURE_SHAPES))))
    given["noaug"] = not given.pop("augment", True)
    given["max_size"] = _megabytes(given.get("max_size", 0))
    for name in ("resolution", "snr_gamma", "rank"):
        given[name] = given.get(name) or None
    given["resume_from_checkpoint"] = "latest" if given.get("resume_from_checkpoint") else None
    given["template"] = template(given.get("template", "")) if given.get("caption_source") == "template" else None
    given["modifier_token"] = [concept["modifier_token"] for concept in concepts]
    if all("initializer_token" in concept for concept in concepts):
        given["initializer_token"] = [concept["initializer_token"] for concept in concepts]
    given["concepts"] = [
        {
            "instance_prompt": prompt,
            "class_prompt": concept.get("class_prompt") or "",
            **{name: _folder(concept.get(name)) for name in ("instance_data_dir", "class_data_dir")},
        }
        for concept in concepts
    ]
    plan = TrainingPlan.of({"checkpoints_total_limit": 1, "num_validation_images": 1, **given}, wording=PAGE)
    used = plan.prior_loss_weight > 0 and any(concept.class_data_dir for concept in plan.concepts)
    # Folders of a page are those of a person; nothing is drawn into them.
    plan = replace(plan, with_prior_preservation=used, num_class_images=0)
    return replace(plan, validation_prompt=plan.validation_prompt or plan.named_concepts()[0].instance_prompt)


def _folder(text: str | None) -> str:
    return str(typed_path(text)) if text and text.strip() else ""


def _gradients(mode: str, value: float) -> dict[str, float | None]:
    if mode not in CLIP_MODES:
        raise UserError(f"{LABELS['clip_mode']} is one of {', '.join(CLIP_MODES)}, not {mode!r}")
    limits = {"norm": "max_grad_norm", "value": "max_grad_value"}
    return {name: value if limits.get(mode) == name else None for name in limits.values()}


def _shape(shown: str) -> str:
    if shown not in PICTURE_SHAPES:
        raise UserError(f"{LABELS['resize_mode']} is one of {', '.join(PICTURE_SHAPES)}, not {shown!r}")
    return PICTURE_SHAPES[shown]


def _megabytes(size: float) -> str:
    if size < 0:
        raise UserError(f"{LABELS['max_size']} must be 0 or more, not {size}")
    return f"{size:f} MB" if size else ""
