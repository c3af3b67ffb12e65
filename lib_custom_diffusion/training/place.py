"""Where a training reads and writes, and what of that is refused before a model is loaded."""

from __future__ import annotations

import datetime
from contextlib import nullcontext
from pathlib import Path

from ..data.captions import has_listing
from ..data.concepts import Concept
from ..data.pictures import find_pictures
from ..data.regularization import check_same_prompt
from ..delta import SUFFIX
from ..errors import UserError
from ..storage import FolderLock, check_output, check_writable
from ..tokens import file_name
from . import checkpoints, parallel
from .event_file import LOGS, is_for_tensorboard
from .plan import TrainingPlan, Wording

PREVIEWS, COPIES, CLASS_PICTURES = "images", "embeddings", "class_images-"
"""In a training's folder; the last one for each concept, with its number."""


def class_folder(plan: TrainingPlan, folder: Path, number: int, concept: Concept) -> Path | None:
    """Where the class pictures of a concept are, or will be. folder: the training's."""
    if not plan.with_prior_preservation:
        return None
    made = folder / f"{CLASS_PICTURES}{number}"
    if plan.real_prior:
        return made
    return concept.class_data_dir or (made if plan.num_class_images else None)


def dated_folder(logs: Path, plan: TrainingPlan, wording: Wording) -> Path:
    """Where a page's training goes: LOGS/DATE/NAME, as the WebUI has it; or the newest such folder with a save, if the
    plan is to go on.

    Raises UserError if there is no save to go on from.
    """
    name = plan.result_name
    if plan.resume_from_checkpoint is None:
        return logs / datetime.date.today().isoformat() / name
    found = [(checkpoints.resolve_checkpoint(folder, "latest"), folder) for folder in logs.glob(f"*/{name}")]
    saves = [(save, folder) for save, folder in found if save is not None]
    if not saves:
        raise UserError(
            f"there is no save of a training {name} in {logs} to resume from; start again without"
            f" {wording.label('resume_from_checkpoint')}"
        )
    return max(saves, key=lambda each: each[0].stat().st_mtime)[1]


def check_place(
    plan: TrainingPlan, wording: Wording, folder: Path, delta: Path | None = None, logging_dir: Path = LOGS
) -> Path | None:
    """The save to go on from, if the plan is to and there is one. folder, delta, logging_dir: see `job.Host`.

    Raises UserError, in the words of the face, for folders that cannot be written or are read as well, for folders
    that are called as a result would be, where another training is writing or has left class pictures of something
    else, for a save that is not there or has more steps behind it than there are to be, and for results that nobody
    said may be replaced.
    """
    for path in (folder / f"{plan.result_name}{SUFFIX}", *([delta] if delta else []), *_words_in(folder, plan)):
        check_output(path)
    if is_for_tensorboard(plan.report_to):
        check_writable(folder / logging_dir)
    _refuse_overlaps(plan, wording, folder, logging_dir)
    _refuse_other_classes(plan, wording, folder)
    if folder.is_dir():
        with FolderLock(folder) if parallel.rank() == 0 else nullcontext():
            return check_results(plan, wording, folder, delta)
    return check_results(plan, wording, folder, delta)


def check_results(plan: TrainingPlan, wording: Wording, folder: Path, delta: Path | None) -> Path | None:
    """As `check_place`, of what is in the folder, for a caller that holds its lock."""
    if folder.is_dir() and parallel.rank() == 0:
        checkpoints.clean_up(folder)
    checkpoint = checkpoints.resolve_checkpoint(folder, plan.resume_from_checkpoint)
    if checkpoint is not None:
        step, _ = checkpoints.read_identity(checkpoint)
        if step > plan.max_train_steps:
            raise UserError(
                f"{checkpoint} has {step} steps behind it; give {wording.label('max_train_steps')} as many or"
                f" more, not {plan.max_train_steps}"
            )
        if checkpoints.is_in(checkpoint, folder):
            return checkpoint
    target = delta or folder / f"{plan.result_name}{SUFFIX}"
    there = [*checkpoints.results_in(folder, plan.result_name), *([target] if target.exists() else [])]
    if there and not plan.overwrite:
        resume = f"{wording.ask('resume_from_checkpoint')} to continue from its last save, " if not checkpoint else ""
        raise UserError(
            f"there is already a training called {plan.result_name} ({there[-1]}); {resume}{wording.ask('overwrite')}"
            f" to replace it, or give another {wording.label('output_dir' if delta is None else 'name')}"
        )
    return checkpoint


def _words_in(folder: Path, plan: TrainingPlan) -> list[Path]:
    """The files of the words that are learned, as they are for most models."""
    return [folder / f"{file_name(token)}.pt" for token in plan.tokens]


def _refuse_overlaps(plan: TrainingPlan, wording: Wording, folder: Path, logging_dir: Path) -> None:
    """Refuse to read pictures and texts where the training puts its own, or removes all there is with a save."""
    used: list[tuple[str, Path]] = []
    for number, concept in enumerate(plan.named_concepts(), start=1):
        where = wording.of_concept("instance_data_dir", number)
        for own in sorted({path.parent for path in find_pictures(concept.instance_data_dir)}):
            if _top(own, folder).startswith(CLASS_PICTURES):
                raise UserError(f"{where} is {own}, where this training has its class pictures; give another folder")
            used.append((where, own))
        if concept.class_data_dir is not None:
            used.append((wording.of_concept("class_data_dir", number), concept.class_data_dir))
    if plan.template is not None:
        used.append((wording.label("template"), plan.template))
    if plan.prior_captions:
        used.append((wording.label("prior_captions"), Path(plan.prior_captions)))
    if is_for_tensorboard(plan.report_to):
        logs = folder / logging_dir
        if logs.resolve() in [path.resolve() for _, path in used]:
            raise UserError(f"{wording.label('logging_dir')} is {logs}, where pictures are; give another folder")
        used.append((wording.label("logging_dir"), logs))
    for label, path in used:
        top = _top(path, folder)
        what = "saves" if checkpoints.is_checkpoint_name(top) else {PREVIEWS: "previews", COPIES: "copies"}.get(top)
        if what is not None:
            raise UserError(f"{label} is {path}, where this training has its {what}; give another folder")


def _refuse_other_classes(plan: TrainingPlan, wording: Wording, folder: Path) -> None:
    """Refuse to go on drawing where the class pictures of an earlier training, of something else, are."""
    if plan.real_prior:
        return
    for number, concept in enumerate(plan.named_concepts(), start=1):
        own = class_folder(plan, folder, number, concept)
        if own is None or own == concept.class_data_dir:
            continue
        if has_listing(own):
            raise UserError(
                f"{own} lists class pictures that {wording.label('real_prior')} has picked; remove it to have some"
                f" drawn, or give {wording.of_concept('class_data_dir', number)}"
            )
        check_same_prompt(own, concept.class_prompt)


def _top(path: Path, folder: Path) -> str:
    """The name that a path has, or begins with, within a folder; "" if it is elsewhere."""
    real, base = path.resolve(), folder.resolve()
    return real.relative_to(base).parts[0] if base in real.parents else ""
