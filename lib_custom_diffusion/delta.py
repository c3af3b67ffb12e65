"""Delta: what was learned, in memory and as NAME.delta.safetensors.

The file is read by the first Custom Diffusion extension (its format 0.2.0). Metadata `json` lists the entries; a dense
entry is the tensor KEY (out, in), a low-rank one is KEY.US (out, r) and KEY.Vh (r, in), KEY being the WebUI's
parameter name. Beyond that format, metadata `custom_diffusion` says where the delta comes from, and tensors
`embedding.TOKEN` (vectors, width) carry the modifier tokens, so that one file is the whole concept.

A third kind of entry, `delta_factors_quantized`, is ours alone. KEY.bits (2, r) has the bits of each column of US and
of each row of Vh, KEY.US (Σ bits, out / 8) and KEY.Vh (Σ bits, in / 8) their bit planes as `quantization` describes
them, all uint8, and Δ = US · diag(KEY.step) · Vh with KEY.step (1, r) in float32. A `to_v` of this kind without a Vh
has that of the `to_k` beside it. Readers that do not know the kind find no entry that they could take for another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import __version__
from .algebra.factors import Factors, QuantizedFactors
from .algebra.quantization import MAX_BITS, NUMBERS_A_BYTE, pack, unpack
from .attention import Projection, architecture_of, beside_to_v, family
from .errors import NO_TEXT, UserError
from .reading import read_document
from .reading.document import check_width
from .reading.kinds import DELTA
from .storage import safetensors_bytes, write_atomically
from .versions import why_newer

SUFFIX = ".delta.safetensors"
_FORMAT_VERSION = "0.2.0"
_EMBEDDING = "embedding."
_DEEPEST = 50  # of settings in settings
_MOST_STEPS = 1_000_000_000
_LONGEST = 1000  # letters of a word, and of what it is a kind of: encoding takes longer with each
_UNPACKED = 128  # bytes in memory for one in the file, at most; one bit for each of K's and V's numbers makes 64


Entry = Tensor | Factors


@dataclass
class Provenance:
    """Where a delta comes from.

    architecture: the Backend's word for models it fits; "" when the file does not say.
    checkpoint:   short hash of the checkpoint it was trained on.
    tokens:       class word of each modifier token, "" if its captions do not say one after it.
    steps:        optimizer steps taken.
    settings:     the training's settings, as in config.json.
    """

    architecture: str = ""
    checkpoint: str = ""
    tokens: dict[str, str] = field(default_factory=dict)
    steps: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    library_version: str = __version__


@dataclass
class Delta:
    """Changes of projection weights by key, and the vectors (n, width) of the modifier tokens that go with them."""

    entries: dict[str, Entry]
    embeddings: dict[str, Tensor] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=Provenance)

    def check_fits(self, projections: Mapping[str, Projection]) -> None:
        """Raise UserError unless every entry has a projection of its shape (all of a UNet's cross-attention)."""
        for key, entry in self.entries.items():
            found = projections[key].shape if key in projections else None
            if tuple(entry.shape) == found:
                continue
            own, others = self.provenance.architecture, architecture_of(projections)
            if own and own != others:
                raise UserError(
                    f"the delta does not fit this model: it was made for another kind ({family(own)}) than this"
                    f" ({family(others)})"
                )
            if found is None:
                raise UserError(f"the delta does not fit this model, which has no layer {key}")
            raise UserError(
                f"the delta does not fit this model: {key} is {tuple(entry.shape)} in the delta, {found} in the model"
            )

    def to_bytes(self, dtype: torch.dtype = torch.float16, title: str = "") -> bytes:
        """The file's content. Equal deltas give equal bytes.

        Raises UserError if a value is not finite, or is too large for `dtype`.
        """
        tensors: dict[str, Tensor] = {}
        quantized: dict[str, Tensor] = {}
        for key, entry in self.entries.items():
            if isinstance(entry, QuantizedFactors):
                quantized |= _quantized_tensors(key, entry, self.entries.get(beside_to_v(key)))
            elif isinstance(entry, Factors):
                tensors[f"{key}.US"], tensors[f"{key}.Vh"] = entry.us, entry.vh
            else:
                tensors[key] = entry
        tensors |= {_EMBEDDING + token: vectors for token, vectors in self.embeddings.items()}
        stored = {name: tensor.detach().to(dtype) for name, tensor in tensors.items()} | quantized
        for name, tensor in stored.items():
            if not torch.isfinite(tensor).all():
                raise UserError(f"{name} has values that are not finite as {dtype}; nothing was saved")
        return safetensors_bytes(stored, self._metadata(title))

    def save(self, path: Path, dtype: torch.dtype = torch.float16) -> None:
        """Write the file atomically; raises as `to_bytes` and `write_atomically` do."""
        write_atomically(path, self.to_bytes(dtype, title=path.name.removesuffix(SUFFIX)))

    def _metadata(self, title: str) -> dict[str, str]:
        kinds = {key: _kind(entry) for key, entry in self.entries.items()}
        return {
            "json": json.dumps({"meta": {"version": _FORMAT_VERSION}, "entries": kinds}, sort_keys=True),
            "custom_diffusion": json.dumps(asdict(self.provenance), sort_keys=True),
            "modelspec.sai_model_spec": "1.0.0",
            "modelspec.architecture": f"{self.provenance.architecture or 'unknown'}/custom-diffusion",
            "modelspec.implementation": "custom-diffusion",
            "modelspec.title": title,
            "modelspec.trigger_phrase": ", ".join(self.embeddings),
        }

    @classmethod
    def load(cls, path: Path) -> Delta:
        """Read a file, on the CPU, in the precision it is stored in.

        Raises UserError when it is missing, is no delta file, is damaged, or holds values that are not finite.
        """
        document = read_document(path)
        if document.kind() != DELTA:
            raise UserError(f"{path} is {document.kind()}, not a delta; if it can be made one, convert does it")
        try:
            return from_tensors(document.metadata, document.tensors())
        except UserError as error:
            raise UserError(f"{path}: {error}") from error


def _kind(entry: Entry) -> str:
    if isinstance(entry, QuantizedFactors):
        return "delta_factors_quantized"
    return "delta_factors" if isinstance(entry, Factors) else "delta"


def _quantized_tensors(key: str, entry: QuantizedFactors, neighbour: Entry | None) -> dict[str, Tensor]:
    tensors = {
        f"{key}.bits": torch.stack([entry.us_bits, entry.vh_bits]),
        f"{key}.step": entry.step.float(),
        f"{key}.US": pack(entry.us_levels().T, entry.us_bits),
    }
    if neighbour is entry or not isinstance(neighbour, QuantizedFactors) or neighbour.vh is not entry.vh:
        tensors[f"{key}.Vh"] = pack(entry.vh, entry.vh_bits)
    return tensors


def from_tensors(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Delta:
    """The delta that a file's metadata and tensors are. Raises UserError if they are none."""
    try:
        return _from_tensors(metadata, tensors)
    except UserError as error:
        newer = why_newer(_stated_version(metadata))
        if not newer:
            raise
        raise UserError(f"{error}; {newer}") from error


def _stated_version(metadata: Mapping[str, str]) -> object:
    with suppress(ValueError, RecursionError, AttributeError):
        return json.loads(metadata.get("custom_diffusion", "{}")).get("library_version")
    return None


def _from_tensors(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Delta:
    for name, tensor in tensors.items():
        whole = tensor.dtype == torch.uint8 and name.endswith((".US", ".Vh", ".bits"))
        if tensor.ndim != 2 or tensor.numel() == 0 or not (tensor.is_floating_point() or whole):
            raise UserError(f"{name} should be a matrix of real numbers, not {tuple(tensor.shape)} {tensor.dtype}")
        if not name.endswith((".US", ".Vh")) or not whole:  # of bit planes there are up to 16 a row
            check_width(name, tensor)
    entries: dict[str, Entry] = {}
    kinds = _entry_kinds(metadata)
    _check_unpacked(kinds, tensors)
    for key, kind in sorted(kinds.items()):  # to_k before the to_v that may share its Vh
        if kind == "delta_factors_quantized":
            entries[key] = _quantized_entry(key, tensors, entries.get(beside_to_v(key)))
        else:
            entries[key] = _entry(key, kind, tensors)
    embeddings = {n.removeprefix(_EMBEDDING): t for n, t in tensors.items() if n.startswith(_EMBEDDING)}
    for token in embeddings:
        if not token.strip() or len(token) > _LONGEST:
            raise UserError(f"it has a word {token[:40]!r}, which is not valid; the file is damaged")
    return Delta(entries, embeddings, stated_provenance(metadata))


def _entry_kinds(metadata: Mapping[str, str]) -> dict[str, str]:
    try:
        kinds = json.loads(metadata["json"])["entries"]
        json.dumps(kinds, ensure_ascii=False).encode()  # half a surrogate pair can be neither shown nor written
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError("this is not a delta file: its metadata lists no entries") from error
    if not isinstance(kinds, dict) or not all(isinstance(kind, str) for kind in kinds.values()):
        raise UserError("this is not a delta file: its metadata lists no entries")
    return kinds


def _entry(key: str, kind: str, tensors: Mapping[str, Tensor]) -> Entry:
    names = {"delta": (key,), "delta_factors": (f"{key}.US", f"{key}.Vh")}.get(kind)
    if names is None:
        raise UserError(f"{key} is of the unknown kind {kind!r}")
    missing = [name for name in names if name not in tensors]
    if missing:
        raise UserError(f"{missing[0]} is listed but not there; the file is damaged")
    if not all(tensors[name].is_floating_point() for name in names):
        raise UserError(f"{key} is of the kind {kind} but holds whole numbers; the file is damaged")
    if kind == "delta":
        return tensors[key]
    factors = Factors(*(tensors[name] for name in names))
    if factors.us.shape[1] != factors.vh.shape[0]:
        raise UserError(f"the factors of {key} do not fit: {tuple(factors.us.shape)} and {tuple(factors.vh.shape)}")
    return factors


def _quantized_entry(key: str, tensors: Mapping[str, Tensor], neighbour: Entry | None) -> QuantizedFactors:
    names = [f"{key}.{name}" for name in ("bits", "step", "US", "Vh")]
    shared = names[3] not in tensors and isinstance(neighbour, QuantizedFactors)
    missing = [name for name in (names[:3] if shared else names) if name not in tensors]
    if missing:
        raise UserError(f"{missing[0]} is listed but not there; the file is damaged")
    bits, step = tensors[names[0]], tensors[names[1]]
    if bits.dtype != torch.uint8 or len(bits) != 2 or bits.max() > MAX_BITS or step.shape != (1, bits.shape[1]):
        raise UserError(f"the bits and steps of {key} do not fit; the file is damaged")
    us_bits, vh_bits = bits
    if vh_bits.min() == 0:  # otherwise a few bytes could ask for any amount of memory
        raise UserError(f"{names[0]} has directions without bits; the file is damaged")
    us = _levels(names[2], tensors[names[2]], us_bits).T
    if not shared:
        vh = _levels(names[3], tensors[names[3]], vh_bits)
    else:
        assert isinstance(neighbour, QuantizedFactors)
        vh = neighbour.vh
        if not torch.equal(neighbour.vh_bits, vh_bits):
            raise UserError(f"{key} does not fit the layer beside it, whose {beside_to_v(key)}.Vh it shares")
    return QuantizedFactors.of_levels(us, vh, step, us_bits, vh_bits)


def _check_unpacked(kinds: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError if entries in bit planes would take far more memory than any that were made by compression."""
    asked = 0
    for key, kind in kinds.items():
        if kind == "delta_factors_quantized":
            rows = [tensors[f"{key}.{name}"].shape[1] for name in ("US", "Vh") if f"{key}.{name}" in tensors]
            ranks = [tensors[f"{key}.bits"].shape[1]] if f"{key}.bits" in tensors else []
            asked += 4 * NUMBERS_A_BYTE * sum(rows) * sum(ranks)
    if asked > _UNPACKED * sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()):
        raise UserError("it claims to unpack to much more than it holds; the file is damaged")


def _levels(name: str, planes: Tensor, bits: Tensor) -> Tensor:
    if planes.dtype != torch.uint8 or len(planes) != bits.sum():
        raise UserError(f"{name} should have {int(bits.sum())} bit planes, not {tuple(planes.shape)} {planes.dtype}")
    return unpack(planes, bits)


def _check_depth(value: Any, left: int) -> None:
    """Raise ValueError for what lies too deep to be written again."""
    if left == 0:
        raise ValueError("endlessly nested settings")
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(each, left - 1)


def stated_provenance(metadata: Mapping[str, str]) -> Provenance:
    """What a file's metadata says of how it came about. Raises UserError for what cannot be meant."""
    try:
        stated = json.loads(metadata.get("custom_diffusion", "{}"))
        json.dumps(stated, ensure_ascii=False).encode()  # half a surrogate pair can be neither shown nor written
        _check_depth(stated, _DEEPEST)
        if not isinstance(stated, dict):
            raise TypeError
        found = Provenance(**{name: stated[name] for name in Provenance.__dataclass_fields__ if name in stated})
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError("its custom_diffusion metadata is damaged") from error
    for name, value in asdict(Provenance()).items():
        if type(getattr(found, name)) is not type(value):
            raise UserError(f"its custom_diffusion metadata is damaged: {name} is {getattr(found, name)!r}")
    if not 0 <= found.steps < _MOST_STEPS:
        raise UserError(f"its custom_diffusion metadata is damaged: steps is {str(found.steps)[:40]}")
    texts = [value for value in vars(found).values() if isinstance(value, str)]
    for text in (*texts, *found.tokens, *found.tokens.values()):
        if not isinstance(text, str) or len(text) > _LONGEST or NO_TEXT.search(text):
            raise UserError(f"its custom_diffusion metadata is damaged: it says {str(text)[:40]!r}")
    return found
