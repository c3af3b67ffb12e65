"""A file of any program made into another program's files; what those hold is in `formats`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .. import formats
from ..delta import Delta, Factors
from ..errors import UserError
from ..formats import Base, Imported
from .compression import functional_error, with_rank
from .files import LoadModel, Tell, silent
from .reports import Converted

LORAS = ("lora", "lora-diffusers")
LORA_ERROR = 0.01  # relative, of a LoRA whose rank is not given
_OF_DIFFUSERS = ("pytorch_lora_weights", "pytorch_custom_diffusion_weights")
_EMBEDDING_BYTES = 1_000_000


def convert_files(
    sources: Sequence[Path],
    kind: str,
    load_model: LoadModel | None = None,
    rank: int | None = None,
    tell: Tell = silent,
    exact: bool = False,
) -> Converted:
    """One file with layers, and any with words, as another program's files; nothing is written.

    load_model: of the model they belong to, for formats with full weights. rank: the highest of a LoRA's layers; the
    least at which LORA_ERROR is kept if None. exact: a LoRA's dense layers become full differences instead.
    Raises UserError for files that are none, more than one with layers, and as `formats.write` does.
    """
    backend = load_model() if load_model is not None else None
    base = Base.of(backend.unet) if backend is not None else None
    tell("Reading the files")
    delta, found = _joined(sources, base)
    dropped = {path: imported.dropped for path, imported in found.items() if imported.dropped}
    beside = {path: list(imported.delta.embeddings) for path, imported in found.items() if path not in sources}
    delta.provenance.architecture = delta.provenance.architecture or (backend.architecture if backend else "")
    if not (delta.entries or delta.embeddings):
        raise UserError(f"{sources[0]} has neither layers nor words: nothing would be written")
    if kind not in LORAS:
        return Converted(formats.write(delta, kind, base), delta, dropped, beside)
    cut, error = 0, 0.0
    if not exact:
        tell("Finding the factors")
        delta, cut, error = _low_rank(delta, rank)
    ranks = [entry.us.shape[1] for entry in delta.entries.values() if isinstance(entry, Factors)]
    files = formats.write(delta, kind, base)
    return Converted(files, delta, dropped, beside, max(ranks, default=0), cut, error)


def _joined(paths: Sequence[Path], base: Base | None) -> tuple[Delta, dict[Path, Imported]]:
    """One delta of the only file with layers and of all files with words, those beside it included."""
    found = {path: formats.read(path, base) for path in paths}
    with_layers = [path for path, imported in found.items() if imported.delta.entries]
    if len(with_layers) > 1:
        raise UserError(
            f"{with_layers[0]} and {with_layers[1]} both hold layers; convert one by one, or use blend or merge"
        )
    for path in with_layers:
        if not found[path].delta.embeddings and len(paths) == 1:
            found |= _words_beside(path)
    delta = found[with_layers[0]].delta if with_layers else Delta({})
    for path, imported in found.items():
        for token, vectors in imported.delta.embeddings.items():
            if delta.embeddings.setdefault(token, vectors) is not vectors:
                raise UserError(f"{path} has a word {token}, and so has another file; rename one")
    return delta, found


def _words_beside(path: Path) -> dict[Path, Imported]:
    """Embeddings beside diffusers' weights: files named <…>, as its script has them, or that say such a token."""
    found = {}
    for other in sorted(path.parent.glob("<*>.*" if not path.name.startswith(_OF_DIFFUSERS) else "*")):
        if other != path and other.is_file() and other.stat().st_size < _EMBEDDING_BYTES:
            try:
                imported = formats.read(other)
            except UserError:
                continue  # whatever else lies there
            if not imported.delta.entries and all(token.startswith("<") for token in imported.delta.embeddings):
                found[other] = imported
    return found


def _low_rank(delta: Delta, rank: int | None) -> tuple[Delta, int, float]:
    """The delta with no layer above the rank, how many layers were cut for it, and the relative error of all.

    Layers that are factors within the rank stay as they are.
    """
    low, rank = with_rank(delta, rank, LORA_ERROR)
    made = [key for key, entry in low.entries.items() if entry is not delta.entries[key]]
    if not made:
        return delta, 0, 0.0
    return low, sum(min(delta.entries[key].shape) > rank for key in made), functional_error(delta, low)
