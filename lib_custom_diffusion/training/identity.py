"""What the saves of a training belong to, so that no other training goes on from them unnoticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from ..backend import Backend
from ..data.captions import Captioner, caption_beside, captioner, class_captions
from ..data.concepts import Concept, PictureSettings
from ..data.pictures import find_pictures
from ..errors import UserError
from ..storage import is_special

FREE_TO_CHANGE = {
    "max_train_steps", "checkpointing_steps", "checkpoints_total_limit", "validation_prompt", "validation_steps",
    "num_validation_images", "report_to",
}  # fmt: skip
"""Settings that a resumed run may have otherwise than the run it continues."""
_PARTS = {"vae": "VAE", "tokenizer": "tokenizer"}
_SHOWN = 3

Pictures = list[list[str]]
"""The pictures of a folder in their order: name, SHA-256 of the content, caption."""


@dataclass(frozen=True)
class Identity:
    """What the result of a training depends on.

    settings: all that change it, by name.
    model:    hash, or name, of what is trained, and `Backend.parts`.
    pictures: by the name of what they are of, such as "concept 1"; None for those that are still to be drawn or picked.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, str] = field(default_factory=dict)
    pictures: Mapping[str, Pictures | None] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return json.loads(json.dumps(asdict(self), default=str))

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Identity:
        """What `to_json` gave. Raises ValueError, TypeError or AttributeError for anything else."""
        known = cls(**stored)
        for part in (known.settings, known.model, known.pictures):
            dict(part)
        return known


def identify(
    concepts: Sequence[Concept],
    pictures: PictureSettings,
    settings: Mapping[str, Any],
    backend: Backend | None = None,
    awaited: Collection[int] = (),
) -> Identity:
    """The identity of a training of these concepts.

    settings: of the training. Those of `pictures` are added, and what the backend, if there is one, says of the model.
    awaited:  numbers of the concepts whose class pictures are still to be drawn or picked.

    Raises UserError for folders and captions that cannot be read.
    """
    own = asdict(pictures)
    if backend is not None:
        own |= {"resolution": pictures.resolution or backend.resolution, "prediction_type": backend.prediction_type}
    elif pictures.resolution is None:  # the model's own
        del own["resolution"]
    template = pictures.template if pictures.caption_source == "template" else None
    own["template"] = template and content_hash(template)
    if not any(concept.class_data_dir for concept in concepts):
        del own["num_class_images"]
    found: dict[str, Pictures | None] = {}
    words = _own_words(pictures)
    for number, concept in enumerate(concepts, start=1):
        own[f"instance_prompt of concept {number}"] = concept.instance_prompt
        own[f"class_prompt of concept {number}"] = concept.class_prompt
        captioned = [(path, words(path, Random(0))) for path in find_pictures(concept.instance_data_dir)]
        found[f"concept {number}"] = _identified(captioned)
        if number in awaited:
            found[f"the class of concept {number}"] = None
        elif concept.class_data_dir is not None:
            listed = class_captions(concept.class_data_dir, concept.class_prompt)
            found[f"the class of concept {number}"] = _identified(listed[: pictures.num_class_images or None])
    return Identity({**settings, **own}, {} if backend is None else _model(backend), found)


def _model(backend: Backend) -> dict[str, str]:
    model = {"architecture": backend.architecture, "hash": backend.checkpoint_hash}
    return (model if model["hash"] else {**model, "name": backend.name}) | dict(backend.parts)


def _own_words(pictures: PictureSettings) -> Captioner:
    """What a picture itself has to say in its caption."""
    rules = pictures.filename_word_regex, pictures.filename_join_string
    if pictures.caption_source != "template":
        return captioner(pictures.caption_source, "", None, *rules)
    name = captioner("filename", "", None, *rules)
    return lambda path, rng: caption_beside(path) or name(path, rng)


def content_hash(path: Path) -> str:
    """SHA-256 of a file's content; of no content where it cannot be read, which whoever uses it says."""
    try:
        return hashlib.sha256(b"" if is_special(path) else path.read_bytes()).hexdigest()
    except OSError:
        return hashlib.sha256().hexdigest()


def _identified(captioned: Sequence[tuple[Path, str]]) -> Pictures:
    return [[path.name, content_hash(path), caption] for path, caption in captioned]


def differences(then: Identity, now: Identity, label: Callable[[str], str] = str) -> list[str]:
    """What differs between a save's identity and that of the training that would go on from it, in words.

    What one of them does not tell of is not compared. label: what the user knows a setting as.
    """
    before, after = then.to_json(), now.to_json()
    told = [
        f"{label(name)} was {value!r}, is {after['settings'][name]!r}"
        for name, value in before["settings"].items()
        if name not in FREE_TO_CHANGE and name in after["settings"] and after["settings"][name] != value
    ]
    others = [name for name, value in before["model"].items() if after["model"].get(name, value) != value]
    told += dict.fromkeys(f"the {_PARTS.get(name, 'model')} is another" for name in others)
    if before["pictures"] and after["pictures"]:
        for of in dict.fromkeys([*before["pictures"], *after["pictures"]]):
            told += _different_pictures(of, before["pictures"].get(of, []), after["pictures"].get(of, []))
    return told


def _different_pictures(of: str, then: Pictures | None, now: Pictures | None) -> list[str]:
    if then is None or now is None:
        return []
    if [each[1:] for each in then] == [each[1:] for each in now]:
        return []  # names alone decide nothing
    if not then or not now:
        return [f"pictures of {of} were {'added' if now else 'left out'}"]
    contents = [{content: name for name, content, _ in each} for each in (then, now)]
    added = [name for name, content, _ in now if content not in contents[0]]
    gone = [name for name, content, _ in then if content not in contents[1]]
    changes = [f"{what} {_some(names)}" for what, names in (("added", added), ("removed", gone)) if names]
    if not changes:
        captions = {content: caption for _, content, caption in then}
        said = [name for name, content, caption in now if captions[content] != caption]
        changes = [f"other captions of {_some(said)}" if said else "in another order"]
    return [f"pictures of {of}: {', '.join(changes)}"]


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def refuse_others(
    checkpoint: Path, then: Identity, now: Identity, advice: str = "", label: Callable[[str], str] = str
) -> None:
    """Raise UserError, naming what differs, unless a checkpoint belongs to the training that would go on from it.

    advice: how the user may go on nevertheless.
    """
    told = differences(then, now, label)
    if told:
        raise UserError(
            f"{checkpoint} belongs to another training ({'; '.join(told)}); keep them the same to resume{advice}"
        )
