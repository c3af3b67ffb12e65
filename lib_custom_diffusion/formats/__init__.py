"""Other people's files, one module each: what is in them, as a Delta, and a Delta as one of them.

A format is a module with NAMES (what it can write, and the files' names), recognises(document), read(document, base)
and write(delta, base, kind). Which one a file is, its content says, not its name.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from torch import Tensor

from ..attention import reads_text
from ..delta import SUFFIX, Delta, Factors
from ..errors import UserError
from ..reading import Document, read_document
from ..storage import read_text
from . import adobe, diffusers, embeddings, kohya, legacy
from .base import Base, give_model
from .imported import Imported, dropped_text
from .kohya import how_to_use
from .networks import ADAPTER_CONFIG

FORMATS: tuple[ModuleType, ...] = (legacy, adobe, diffusers, kohya, embeddings)
KINDS = {kind: module for module in FORMATS for kind in module.NAMES}
"""Which module writes each kind of file."""
_NAMED_LORA = re.compile(r"(?:.*[._ -])?lora\.safetensors", re.IGNORECASE)
_ARCHIVES = (".pt", ".ckpt", ".bin", ".pth")
"""What torch's archives are called; what is in them, their names do not say."""
_OF_SDXL = 2048
"""Numbers in a word of SDXL, and in the features of a word."""


def read(path: Path, base: Base | None = None) -> Imported:
    """What a file holds. `base` is the model it belongs to, which files with full weights need.

    Raises UserError for a file that is missing, damaged, unsafe, of an unknown format, does not fit the base, or of
    which nothing would be left.
    """
    return understood(path, read_document(path), base)


def understood(path: Path, document: Document, base: Base | None = None) -> Imported:
    """What a document that was read from a path holds; raises as `read`."""
    config = path.with_name(ADAPTER_CONFIG)
    if path.name.startswith("adapter_model.") and config.is_file():
        document = replace(document, metadata={**document.metadata, ADAPTER_CONFIG: read_text(config)})
    for module in FORMATS:
        if module.recognises(document):
            try:
                found: Imported = module.read(document, base)
            except UserError as error:
                raise UserError(f"{path}: {error}") from error
            if not (found.delta.entries or found.delta.embeddings or module is legacy):
                raise UserError(
                    f"{path} is {document.kind()} without words or cross-attention of Stable Diffusion: nothing of it"
                    f" would be left ({dropped_text(found.dropped)})"
                )
            found.delta.provenance.architecture = found.delta.provenance.architecture or _told_by_width(found.delta)
            return found
    raise UserError(f"{path} is {document.kind()}; read are delta files, {', '.join(k for k in KINDS if k != 'delta')}")


def _told_by_width(delta: Delta) -> str:
    """Whose a delta is that does not say it, where the width of its words or of the text its layers read does; else "".

    Programs call SDXL's layers and words otherwise than all others', so that what is written depends on it.
    """
    read = [
        entry.vh if isinstance(entry, Factors) else entry for key, entry in delta.entries.items() if reads_text(key)
    ]
    return "sdxl" if any(each.shape[1] == _OF_SDXL for each in [*read, *delta.embeddings.values()]) else ""


def kind_of_name(name: str) -> str | None:
    """The kind of file that is called so; None if the name does not say it."""
    if name.lower().endswith(SUFFIX):
        return "delta"
    fixed = [kind for kind, module in KINDS.items() if module.NAMES[kind] == name]
    return fixed[0] if fixed else "lora" if _NAMED_LORA.fullmatch(name) else None


def may_be_called(kind: str, name: str) -> bool:
    """Whether a file of that kind may have the name: neither its end nor a usual name says that it is another."""
    said, written = kind_of_name(name), Path(KINDS[kind].NAMES[kind]).suffix
    ends = _ARCHIVES if written in _ARCHIVES else (written,)
    return Path(name).suffix.lower() in ends and (said is None or KINDS[said] is KINDS[kind])


def read_words(path: Path) -> dict[str, Tensor]:
    """The vectors (n, width) by token of a file with words alone, as `--embedding` takes it.

    Raises UserError as `read` does, and for a file that has layers, too.
    """
    delta = read(path).delta
    if delta.entries or not delta.embeddings:
        raise UserError(f"{path} holds {len(delta.entries)} layers, not only words; name it in the prompt instead")
    return delta.embeddings


def write(delta: Delta, kind: str, base: Base | None = None) -> dict[str, bytes]:
    """The files of a kind by name. Raises UserError for an unknown kind, and where the kind cannot hold the delta."""
    if kind not in KINDS:
        raise UserError(f"there is no format {kind!r}; choose from {', '.join(KINDS)}")
    return KINDS[kind].write(delta, base, kind)


__all__ = [
    "FORMATS",
    "KINDS",
    "Base",
    "Imported",
    "dropped_text",
    "give_model",
    "how_to_use",
    "kind_of_name",
    "may_be_called",
    "read",
    "read_words",
    "understood",
    "write",
]
