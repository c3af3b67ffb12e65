"""What a training leaves in its output folder, and how it goes on from there.

    NAME.delta.safetensors  TOKEN.pt …         the result
    checkpoint-STEP/                           the same as of STEP, and state.safetensors to resume from

A checkpoint is written under another name and renamed when it is complete, so whatever is called checkpoint-STEP can
be resumed from, at whatever instant the program was killed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .. import __version__
from ..delta import SUFFIX, Delta
from ..errors import NotSaved, UserError, did_you_mean
from ..storage import given_path, safetensors_bytes, write_atomically
from ..tokens import embedding_file, file_name
from ..versions import why_newer
from .identity import Identity

_CHECKPOINT = re.compile(r"checkpoint-(?:0|[1-9][0-9]*)")
_STATE = "state.safetensors"
_REPLACED = ".replaced-checkpoint-"
_HALF_SAVE = re.compile(r"\.(?:removed-)?checkpoint-\d+\.tmp")
_HALF_FILE = re.compile(r"\.(?:.+\.safetensors|.+\.pt|.+\.csv|config\.json)\.(?:[a-z0-9_]{8}|new)\.tmp")
"""What `write_atomically` calls a file of ours until it is whole; anything else in the folder is somebody's."""


@dataclass(frozen=True)
class TrainingState:
    """All that a training needs to go on as if it had not stopped.

    step:     optimizer steps taken.
    tensors:  the float32 parameters and the optimizer's state.
    scaler:   the gradient scaler's numbers; empty without one.
    identity: what the training is, to refuse going on with another.
    optimizer_numbers, optimizer_groups: of the optimizer, see `optimizers.OptimizerState`.
    """

    step: int
    tensors: dict[str, Tensor]
    scaler: dict[str, Any]
    identity: Identity
    optimizer_numbers: dict[str, dict[str, float]] = field(default_factory=dict)
    optimizer_groups: list[dict[str, float]] = field(default_factory=list)


def save_result(folder: Path, name: str, delta: Delta) -> list[Path]:
    """Write the delta and one WebUI embedding a token, each atomically; return their paths, the delta's first."""
    files = {folder / f"{name}{SUFFIX}": delta.to_bytes(title=name)}
    for token, vectors in delta.embeddings.items():
        stem = file_name(token)
        file, content = embedding_file(vectors, stem, delta.provenance.steps, delta.provenance.architecture)
        files[folder / file] = content
    for path, content in files.items():
        write_atomically(path, content)
    return list(files)


def save_checkpoint(folder: Path, name: str, delta: Delta, state: TrainingState, keep: int | None = None) -> Path:
    """Write checkpoint-STEP with the delta, the embeddings and the state; then remove all but this and `keep` - 1.

    Those of later steps, which a run that went on from an earlier one has left behind, are removed first. Raises
    NotSaved where it cannot be written.
    """
    final = folder / name_of(state.step)
    aside = folder / f".checkpoint-{state.step}.tmp"
    _delete(aside)
    metadata = {
        "library_version": __version__,
        "step": state.step,
        "scaler": state.scaler,
        "identity": state.identity.to_json(),
        "optimizer": {"numbers": state.optimizer_numbers, "groups": state.optimizer_groups},
    }
    try:
        save_result(aside, name, delta)
        write_atomically(aside / _STATE, safetensors_bytes(state.tensors, {"training": json.dumps(metadata)}))
        if final.exists():
            final.rename(folder / f"{_REPLACED}{state.step}")
        aside.rename(final)
    except (NotSaved, OSError) as error:
        _delete(aside)
        raise NotSaved(final, error.reason if isinstance(error, NotSaved) else error.strerror) from error
    _delete(folder / f"{_REPLACED}{state.step}")
    if keep is not None:
        others = [path for path in saves_in(folder) if path != final]
        others.sort(key=lambda path: (_step_of(path) < state.step, _step_of(path)))
        remove(others[: len(others) - (keep - 1)])
    return final


def clean_up(folder: Path) -> None:
    """Put back, or away, what a run that was killed in the middle of a save has left."""
    for replaced in folder.glob(f"{_REPLACED}*"):
        final = folder / name_of(_step_of(replaced))
        if final.exists():
            _delete(replaced)
        else:
            replaced.rename(final)
    for leftover in folder.iterdir():
        if (_HALF_SAVE if leftover.is_dir() else _HALF_FILE).fullmatch(leftover.name):
            _delete(leftover)


def rescue(folder: Path, name: str, step: int, learned: Callable[[], Delta]) -> str:
    """Put what was learned, which is much smaller than a save, where there is room; says where, and what to do.

    learned: gives the delta as it is after `step` steps.
    """
    last = resolve_checkpoint(folder, "latest")
    if last is not None and last.name == name_of(step):
        return f"What was learned is in {last}"
    advice = f"Once that is fixed, resume from {last}" if last else "Once that is fixed, start again"
    stem = f"{name}-{step}"
    for path in (folder / f"{stem}{SUFFIX}", Path(tempfile.gettempdir(), f"{stem}-{os.getpid()}{SUFFIX}")):
        with suppress(NotSaved):
            write_atomically(path, learned().to_bytes(title=name))
            return f"What was learned in {step} steps is in {path}. {advice}"
    return advice


def _delete(path: Path) -> None:
    """Take a folder or a file off the disk; what is another user's, or open in another program, may stay."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def name_of(step: int) -> str:
    """What a save is called in its folder."""
    return f"checkpoint-{step}"


def is_checkpoint_name(name: str) -> bool:
    """Whether a save has that name."""
    return _CHECKPOINT.fullmatch(name) is not None


def saves_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder, in the order of their steps."""
    return sorted((path for path in folder.glob("checkpoint-*") if is_checkpoint_name(path.name)), key=_step_of)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def resolve_checkpoint(folder: Path, asked: str | None) -> Path | None:
    """The checkpoint to resume from: None if not asked, the newest for "latest", else the folder named.

    With "latest" and no checkpoint yet the training starts at the beginning. Raises UserError if a named one is not
    there.
    """
    if asked is None:
        return None
    if asked == "latest":
        saves = saves_in(folder)
        return saves[-1] if saves else None
    for candidate in (folder / asked, given_path(asked)):
        if (candidate / _STATE).is_file():
            return candidate
    near = did_you_mean(asked, [path.name for path in saves_in(folder)])
    raise UserError(f"there is no save {asked} in {folder}; use latest, or leave the option out to start again{near}")


def is_in(checkpoint: Path, folder: Path) -> bool:
    """Whether a checkpoint is one of those in a folder, rather than of a training elsewhere."""
    return checkpoint.resolve().parent == folder.resolve()


def results_in(folder: Path, name: str) -> list[Path]:
    """What a training of that name has left in a folder: its checkpoints, and its delta last if it is finished."""
    return [*saves_in(folder), *(path for path in [folder / f"{name}{SUFFIX}"] if path.exists())]


def remove(paths: Sequence[Path]) -> None:
    """Take checkpoints and files of a training off the disk. What is half removed is no longer called a checkpoint."""
    for path in paths:
        if path.is_dir():
            aside = path.with_name(f".removed-{path.name}.tmp")
            _delete(aside)
            with suppress(OSError):  # another program has a file of it open
                path.rename(aside)
            _delete(aside)
        else:
            _delete(path)


def read_identity(checkpoint: Path) -> tuple[int, Identity]:
    """The step of a checkpoint, and what it belongs to. Raises UserError if it is damaged, or of a newer version."""
    with _opened(checkpoint / _STATE) as (_, metadata):
        return int(metadata["step"]), _identity(metadata)


def load_state(checkpoint: Path) -> TrainingState:
    """Read a checkpoint's state. Raises UserError as `read_identity` does."""
    with _opened(checkpoint / _STATE) as (file, metadata):
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        optimizer = metadata.get("optimizer", {"numbers": {}, "groups": []})  # earlier versions had AdamW alone
        return TrainingState(
            int(metadata["step"]), tensors, dict(metadata["scaler"]), _identity(metadata),
            dict(optimizer["numbers"]), list(optimizer["groups"]),
        )  # fmt: skip


def shapes_in(checkpoint: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a state's tensors, by name. Raises UserError as `read_identity` does."""
    with _opened(checkpoint / _STATE) as (file, _):
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a dict


def check_shapes(then: Mapping[str, Sequence[int]], now: Mapping[str, Sequence[int]]) -> None:
    """Raise UserError if something that a save and a training both have is of another shape in one of them."""
    for name, shape in now.items():
        if name in then and tuple(then[name]) != tuple(shape):
            raise UserError(
                f"the save cannot be resumed from: {name} is {tuple(then[name])} in it and {tuple(shape)} now"
            )


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The open file of a state, and what it says of the training."""
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = json.loads((file.metadata() or {})["training"])
            if newer := why_newer(metadata.get("library_version")):
                raise UserError(f"{path} cannot be resumed from: {newer}, or start again")
            yield file, metadata
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged; resume from an earlier checkpoint") from error


def _identity(metadata: Mapping[str, Any]) -> Identity:
    """Also of the saves of earlier versions, which have the settings of the training alone, by other names."""
    if "identity" in metadata:
        return Identity.from_json(metadata["identity"])
    return Identity(settings=dict(metadata["settings"]))
