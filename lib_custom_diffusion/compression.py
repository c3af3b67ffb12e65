"""Compression: as few bytes as it takes for a delta to do the same to text.

Deltas of to_k and to_v act on text features c only, so the error that counts is E‖(Δ − Δ̂)c‖² = ‖(Δ − Δ̂)L‖² with
L Lᵀ = E[c cᵀ] (`text_features.second_moments`). The best Δ̂ of a rank is the truncated SVD of ΔL times L⁻¹, which is
Uᵣ(UᵣᵀΔ): L itself is never inverted. Where no model is at hand L is the identity.

Bytes are dealt out across all layers at once: with λ the price of a byte, each layer takes the way of storing it and
the rank that make its squared error + λ · bytes least, and λ is found by bisection. The ways are float16 factors, and
one-byte factors (`delta.Int8Factors`), where to_k and to_v of a layer may share Vh.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .blending import dense
from .delta import Delta, Entry, Factors, Int8Factors
from .errors import UserError

_RIDGE = 1e-4  # of the moment, relative to its mean eigenvalue: captions nobody thought of
_INT8_NOISE = 1.2e-4
"""Squared error of one-byte factors relative to what they keep: each of the two is rounded to 1/127 of its largest
number, which among 768 normally distributed ones is 3.3 standard deviations: 2 · (3.3 / 127)² / 12."""
FLOAT16, INT8 = 2, 1  # bytes a number
_ENTRY_BYTES, _TENSOR_BYTES = (
    115,
    160,
)  # of the file's header: an entry in the list of entries, a tensor's shape and place
_BISECTIONS = 30


@dataclass(frozen=True)
class Limit:
    """What to compress to; exactly one is set.

    max_bytes: size of the file. rank: of every layer. energy: share of the squared effect on text that is kept, over
    all layers together, 0 to 1.
    """

    max_bytes: int | None = None
    rank: int | None = None
    energy: float | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("max_bytes", "rank", "energy") if getattr(self, name) is not None]
        if len(given) != 1:
            raise UserError(f"compression takes one of max_bytes, rank and energy, not {', '.join(given) or 'none'}")
        if self.rank is not None and self.rank < 1:
            raise UserError(f"the rank must be 1 or more, not {self.rank}")
        if self.energy is not None and not 0 < self.energy < 1:
            raise UserError(f"the energy share must lie between 0 and 1, such as 0.99, not {self.energy}")


def compress(delta: Delta, limit: Limit, moment: Tensor | None = None, int8: bool = True) -> Delta:
    """The delta as factors within the limit, with the least effect of what is left out.

    moment: E[c cᵀ] (width, width) of text features; None weighs all directions alike.
    int8:   whether one-byte factors may be used. The first extension and other readers of its format know only float16.

    Raises UserError if the byte limit is below what the smallest such file takes.
    """
    half = None if moment is None else _square_root(moment)
    layers = [_decomposed(group, half) for group in _groups(delta.entries)]
    widths = (FLOAT16, INT8) if int8 else (FLOAT16,)
    if limit.rank is not None:
        return replace(delta, entries=_entries([c for layer in layers for c in layer.at_rank(limit.rank)]))
    if limit.energy is not None:
        allowed = (1 - limit.energy) * sum(spectrum.tail(0) for layer in layers for spectrum in layer.apart)
        found = _best(layers, widths, lambda choices: sum(c.error for c in choices) <= allowed, cheap=True)
        return replace(delta, entries=_entries(found))
    assert limit.max_bytes is not None
    return _within_bytes(delta, layers, limit.max_bytes, widths)


def _within_bytes(delta: Delta, layers: Sequence[_Layer], max_bytes: int, widths: Sequence[int]) -> Delta:
    room = max_bytes - len(replace(delta, entries={}).to_bytes())
    no_effect = all(spectrum.tail(0) == 0 for layer in layers for spectrum in layer.apart)
    while room > 0:
        small = replace(delta, entries=_entries(_best(layers, widths, partial(_fits, room))))
        excess = len(small.to_bytes()) - max_bytes
        if excess <= 0 and (small.entries or no_effect):
            return small
        room -= max(excess, max_bytes // 100)
    raise UserError(
        f"this delta cannot be made as small as {max_bytes} bytes: its words and names take as much already"
    )


def functional_error(delta: Delta, approximation: Delta, moment: Tensor | None = None) -> float:
    """(Σ E‖(Δ − Δ̂)c‖² / Σ E‖Δc‖²)^½ over all layers; moment as in `compress`, best of captions that it did not see."""
    missed = total = 0.0
    for key, entry in delta.entries.items():
        matrix = dense(entry)
        other = approximation.entries.get(key)
        missed += _effect(matrix - dense(other) if other is not None else matrix, _moment_of(key, matrix, moment))
        total += _effect(matrix, _moment_of(key, matrix, moment))
    return (missed / total) ** 0.5 if total else 0.0


def _effect(matrix: Tensor, moment: Tensor | None) -> float:
    weighted = matrix if moment is None else matrix @ moment.to(matrix)
    return max((weighted * matrix).sum().item(), 0.0)


def _moment_of(key: str, entry: Entry, moment: Tensor | None) -> Tensor | None:
    """The moment of what a layer reads: text for to_k and to_v; for to_q and to_out unknown, so all directions alike.

    Raises UserError if the text features are of another width than the layer reads.
    """
    if moment is None or _reads_text(key, entry, moment):
        return moment
    return torch.eye(entry.shape[1], dtype=moment.dtype) * moment.diagonal().mean()


def _half_of(key: str, entry: Entry, half: Tensor | None) -> Tensor | None:
    """L for the same."""
    if half is None or _reads_text(key, entry, half):
        return half
    return torch.eye(entry.shape[1]) * half.square().sum(dim=1).mean().sqrt()


def _reads_text(key: str, entry: Entry, features: Tensor) -> bool:
    if ".attn2.to_k." not in key and ".attn2.to_v." not in key:
        return False
    if len(features) != entry.shape[1]:
        sizes = f"{entry.shape[1]} text features, the model has {len(features)}"
        raise UserError(f"{key} reads {sizes}: made for another model")
    return True


def _groups(entries: Mapping[str, Entry]) -> list[dict[str, Entry]]:
    """Entries that may share a basis: to_k and to_v of one layer, any other by itself."""
    groups: dict[str, dict[str, Entry]] = {}
    for key in sorted(entries):
        groups.setdefault(key.replace(".attn2.to_v.", ".attn2.to_k."), {})[key] = entries[key]
    return list(groups.values())


@dataclass(frozen=True)
class _Spectrum:
    """The SVD of ΔL, of one entry or of two stacked.

    outs:   rows of each entry by key.
    u:      (Σ outs, n), orthonormal. s: singular values (n,). effect: uᵀΔL (n, in).
    inner, turn: Δ = basis · inner and u = basis · turn for some orthonormal basis, so that uᵀΔ = turnᵀ · inner.
    half:   L (in, in), or None for the identity.
    lost:   squared effect of what n leaves out.
    """

    outs: dict[str, int]
    u: Tensor
    s: Tensor
    effect: Tensor
    inner: Tensor
    turn: Tensor
    half: Tensor | None
    lost: float = 0.0

    def vh(self, rank: int) -> Tensor:
        """uᵀΔ (rank, in), which makes u · vh the best Δ̂ of the rank."""
        return self.turn[:, :rank].T @ self.inner

    @cached_property
    def squares(self) -> npt.NDArray[np.float64]:
        return self.s.double().square().numpy()

    @cached_property
    def tails(self) -> npt.NDArray[np.float64]:
        """Squared effect of what is beyond each rank, (n + 1,)."""
        return np.append(np.cumsum(self.squares[::-1])[::-1], 0.0) + self.lost

    @property
    def numbers(self) -> int:
        """Numbers that one more rank takes."""
        return sum(self.outs.values()) + self.inner.shape[1]

    def tail(self, rank: int) -> float:
        return float(self.tails[rank])

    def above(self, square: float) -> int:
        """How many singular values have a square above this."""
        return int(np.searchsorted(-self.squares, -square))


@dataclass(frozen=True)
class _Choice:
    """A spectrum stored one way: to a rank, with so many bytes a number."""

    spectrum: _Spectrum
    rank: int
    width: int

    @property
    def bytes(self) -> int:
        if not self.rank:
            return 0
        entries, int8 = len(self.spectrum.outs), self.width == INT8
        scales = 4 * self.rank * entries + 2 * self.spectrum.inner.shape[1] if int8 else 0
        tensors = 2 * entries + 2 if int8 else 2
        header = _ENTRY_BYTES * entries + _TENSOR_BYTES * tensors
        return self.rank * self.spectrum.numbers * self.width + scales + header

    @property
    def error(self) -> float:
        tail = self.spectrum.tail(self.rank)
        return tail + (_INT8_NOISE * (self.spectrum.tail(0) - tail) if self.width == INT8 else 0.0)

    def cost(self, price: float) -> float:
        return self.error + price * self.bytes


@dataclass(frozen=True)
class _Layer:
    """A group of entries: the spectrum of each, and of both stacked where they might share a basis."""

    apart: list[_Spectrum]
    together: _Spectrum | None = None

    def at_rank(self, rank: int) -> list[_Choice]:
        return [_Choice(spectrum, min(rank, len(spectrum.s)), FLOAT16) for spectrum in self.apart]

    def at_price(self, price: float, widths: Sequence[int]) -> list[_Choice]:
        """The way of storing it that makes squared error + price · bytes least."""
        apart = [
            min((_at_price(spectrum, price, width) for width in widths), key=lambda choice: choice.cost(price))
            for spectrum in self.apart
        ]
        if self.together is None:
            return apart
        together = _at_price(self.together, price, INT8)
        return [together] if together.cost(price) < sum(choice.cost(price) for choice in apart) else apart

    def with_stacked(self, price: float) -> _Layer:
        """The same with the stacked spectrum, of what matters at this price."""
        if len({spectrum.inner.shape[1] for spectrum in self.apart}) == len(self.apart):
            return self  # only one, or two that read different things
        return replace(self, together=_stacked(self.apart, price))


def _at_price(spectrum: _Spectrum, price: float, width: int) -> _Choice:
    worth = spectrum.above(price * spectrum.numbers * width)
    return min((_Choice(spectrum, rank, width) for rank in (0, worth)), key=lambda choice: choice.cost(price))


def _stacked(spectra: Sequence[_Spectrum], price: float) -> _Spectrum:
    """The spectrum of the entries on top of each other, of what matters at this price: all above an eighth of it."""
    ranks = [spectrum.above(price * spectrum.numbers / 8) for spectrum in spectra]
    effects = torch.cat([spectrum.effect[:rank] for spectrum, rank in zip(spectra, ranks)])
    turn, s, right = torch.linalg.svd(effects, full_matrices=False)  # their u are orthonormal already
    return _Spectrum(
        outs={key: out for spectrum in spectra for key, out in spectrum.outs.items()},
        u=torch.block_diag(*(spectrum.u[:, :rank] for spectrum, rank in zip(spectra, ranks))) @ turn,
        s=s,
        effect=s[:, None] * right,
        inner=torch.cat([spectrum.vh(rank) for spectrum, rank in zip(spectra, ranks)]),
        turn=turn,
        half=spectra[0].half,
        lost=sum(spectrum.tail(rank) for spectrum, rank in zip(spectra, ranks)),
    )


def _fits(room: int, choices: Sequence[_Choice]) -> bool:
    return sum(choice.bytes for choice in choices) <= room


def _best(
    layers: Sequence[_Layer], widths: Sequence[int], fits: Callable[[list[_Choice]], bool], cheap: bool = False
) -> list[_Choice]:
    """The choices of least squared error that fit; with `cheap`, those of fewest bytes that fit."""
    price = _limiting_price(layers, widths, fits, cheap)
    if INT8 in widths:
        layers = [layer.with_stacked(price) for layer in layers]
        price = _limiting_price(layers, widths, fits, cheap)
    return _choices(layers, price, widths)


def _limiting_price(
    layers: Sequence[_Layer], widths: Sequence[int], fits: Callable[[list[_Choice]], bool], cheap: bool
) -> float:
    """The least price of a byte at which the choices fit, or with `cheap` the highest."""
    dearest = 2 * max((float(s.squares[0]) / s.numbers for layer in layers for s in layer.apart), default=1.0) or 1.0
    good, bad = (dearest * 1e-16, dearest) if cheap else (dearest, dearest * 1e-16)
    for _ in range(_BISECTIONS):
        middle = (good * bad) ** 0.5
        good, bad = (middle, bad) if fits(_choices(layers, middle, widths)) else (good, middle)
    return good


def _choices(layers: Sequence[_Layer], price: float, widths: Sequence[int]) -> list[_Choice]:
    return [choice for layer in layers for choice in layer.at_price(price, widths)]


def _decomposed(group: Mapping[str, Entry], text_half: Tensor | None) -> _Layer:
    return _Layer([_spectrum(key, entry, _half_of(key, entry, text_half)) for key, entry in group.items()])


def _square_root(moment: Tensor) -> Tensor:
    """L with L Lᵀ = moment, ridged, in float32."""
    ridge = _RIDGE * moment.diagonal().mean()
    return torch.linalg.cholesky(moment.double() + ridge * torch.eye(len(moment), dtype=torch.float64)).float()


def _spectrum(key: str, entry: Entry, half: Tensor | None) -> _Spectrum:
    """Of a dense entry by its SVD; of US·Vh by a QR of US and the SVD of R·Vh, which has as many rows as the rank."""
    if isinstance(entry, Factors):
        basis, r = torch.linalg.qr(entry.us.float().cpu())
        inner = r @ entry.vh.float().cpu()
    else:
        basis, inner = None, entry.detach().float().cpu()
    turn, s, right = torch.linalg.svd(inner if half is None else inner @ half, full_matrices=False)
    u = turn if basis is None else basis @ turn
    return _Spectrum({key: len(u)}, u, s, s[:, None] * right, inner, turn, half)


def _entries(choices: Sequence[_Choice]) -> dict[str, Entry]:
    """The entries that the choices stand for; layers of rank 0 are left out."""
    entries: dict[str, Entry] = {}
    for choice in choices:
        if choice.rank:
            entries |= _int8_entries(choice) if choice.width == INT8 else _float16_entries(choice)
    return dict(sorted(entries.items()))


def _float16_entries(choice: _Choice) -> dict[str, Entry]:
    spectrum, rank = choice.spectrum, choice.rank
    vh = spectrum.vh(rank)
    balance = vh.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny).sqrt()  # keeps both in float16's range
    (key,) = spectrum.outs
    return {key: Factors(spectrum.u[:, :rank] * balance, vh / balance[:, None])}


def _int8_entries(choice: _Choice) -> dict[str, Entry]:
    """Vh is rounded first; US is then the least-squares best to go with the rounded Vh, and is rounded itself."""
    spectrum = choice.spectrum
    vh_scale = _input_scale(spectrum)
    vh_codes, _ = _rounded(spectrum.vh(choice.rank) / vh_scale.float(), dim=1)
    vh = vh_codes * vh_scale.float()
    read = (vh if spectrum.half is None else vh @ spectrum.half).double()  # (rank, in)
    mixture = torch.linalg.lstsq(read @ read.T, read @ spectrum.effect.double().T).solution.float()  # (rank, n)
    entries: dict[str, Entry] = {}
    for (key, _), us in zip(spectrum.outs.items(), (spectrum.u @ mixture.T).split(list(spectrum.outs.values()))):
        codes, scale = _rounded(us, dim=0)
        entries[key] = replace(Int8Factors.from_codes(codes, scale, vh_codes, vh_scale), vh=vh)
    return entries


def _input_scale(spectrum: _Spectrum) -> Tensor:
    """Scales (1, in) of Vh's columns, coarse where text features are small: then all columns' rounding counts alike."""
    if spectrum.half is None:
        return torch.ones(1, spectrum.inner.shape[1], dtype=torch.float16)
    scale = spectrum.half.norm(dim=1, keepdim=True).T.reciprocal()  # E[c_j²] is the squared norm of row j of L
    return (scale / scale.median()).clamp(1e-3, 1e3).half()


def _rounded(matrix: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Whole numbers -127 to 127, and the scales along `dim` by which they make the matrix."""
    scale = matrix.abs().amax(dim=dim, keepdim=True).clamp_min(1e-30) / 127
    return (matrix / scale).round(), scale
