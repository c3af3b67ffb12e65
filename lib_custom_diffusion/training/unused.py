"""Settings that were given and have no effect beside the others, which is told rather than passed over."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..data.captions import caption_beside
from ..data.concepts import find_pictures
from ..data.pictures import folders_passed_over
from .plan import TrainingPlan


def unused(plan: TrainingPlan, resumes: bool, label: Callable[[str], str]) -> list[str]:
    """A sentence for each group of them.

    resumes: whether there is a save to go on from. label: what the user knows a setting as.
    """
    told = []
    if not plan.with_prior_preservation:
        if any(concept.class_data_dir for concept in plan.concepts):
            told.append(f"The class pictures are not used, as {label('with_prior_preservation')} is off.")
        given = _given(plan, "real_prior", "num_class_images", "prior_loss_weight", "sample_batch_size")
        told += no_effect(map(label, given), f"{label('with_prior_preservation')} is off")
    elif not plan.prior_loss_weight:
        told.append(f"The class pictures have no effect, as {label('prior_loss_weight')} is 0.")
    if plan.prior == "none":
        told += no_effect(map(label, _given(plan, "text_prior_weight", "prior_captions")), f"{label('prior')} is none")
    if plan.template is not None and plan.caption_source != "template":
        told.append(f"The template is not used, as {label('caption_source')} is {plan.caption_source}.")
    if plan.optimizer in _OF_OPTIMIZER:
        told += no_effect(map(label, _given(plan, *_OF_OPTIMIZER[plan.optimizer])), f"{plan.optimizer} has none")
    if plan.allow_changes and not resumes:
        told += no_effect([label("allow_changes")], "nothing is resumed")
    steps = plan.max_train_steps
    if plan.lr_warmup_steps >= steps:
        told.append(f"The rates rise until the last step, as {label('lr_warmup_steps')} is {plan.lr_warmup_steps}.")
    return told + _without_text(plan) + _passed_over(plan)


_OF_OPTIMIZER = {"sgd": ("adam_beta2", "adam_epsilon"), "lion": ("adam_epsilon",)}
"""What an optimizer has no use for."""


def no_effect(labels: Iterable[str], why: str) -> list[str]:
    """A sentence that the settings called so have no effect, and why; none for no settings."""
    names = list(labels)
    return [f"{' and '.join(names)} {'has' if len(names) == 1 else 'have'} no effect, as {why}."] if names else []


def _given(plan: TrainingPlan, *names: str) -> list[str]:
    """Those of the settings that are not as they are without being given; 0 is nothing given, too, as of a page."""
    defaults = TrainingPlan.__dataclass_fields__
    return [name for name in names if getattr(plan, name) not in (defaults[name].default, 0)]


def _without_text(plan: TrainingPlan) -> list[str]:
    """Of captions in text files beside the pictures, how many pictures have none."""
    if plan.caption_source != "txt":
        return []
    paths = list(dict.fromkeys(path for each in plan.concepts for path in find_pictures(each.instance_data_dir)))
    without = [path for path in paths if not caption_beside(path)]
    if not without:
        return []
    have = "pictures has" if len(without) == 1 else "pictures have"
    return [f"{len(without)} of {len(paths)} {have} no text beside it, such as {without[0].name}; the prompt is used."]


def _passed_over(plan: TrainingPlan) -> list[str]:
    """Of folders with pictures beside pictures."""
    passed = [path for each in plan.concepts for path in folders_passed_over(each.instance_data_dir)]
    if not passed:
        return []
    more = f" and {len(passed) - 1} more" if len(passed) > 1 else ""
    return [f"The pictures in {passed[0]}{more} are not used, as there are others beside the folder."]
