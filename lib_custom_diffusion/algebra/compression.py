"""Compression: as few bytes as it takes for a delta to do the same to text.

Deltas of to_k and to_v act on text features c only, so the error that counts is E‖(Δ − Δ̂)c‖² = ‖(Δ − Δ̂)L‖² with
L Lᵀ = E[c cᵀ] (`text_features.second_moments`). The best Δ̂ of a rank is the truncated SVD of ΔL times L⁻¹, which is
Uᵣ(UᵣᵀΔ): L itself is never inverted. Where no model is at hand L is the identity.

Bits are dealt out across all layers at once, where they save most error. Of a kept direction with singular value s,
the numbers of U are rounded at a cost of s² · 4⁻ᵇ in b bits, so that one more bit must save more than its price λ;
likewise those of Vh, whose rounding costs far less where text features are strong; and a direction is kept if that
saves more than it costs. Strong directions get many bits, weak ones few, and λ is found by bisection. to_k and to_v of
a layer share Vh; a direction that only one of them has takes no bits of the other. For readers that know nothing of
bits, factors are in float16 instead, apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..attention import beside_to_v, reads_text
from ..delta import Delta, Entry, Factors
from ..errors import UserError
from .blending import dense
from .factors import QuantizedFactors
from .quantization import NOISE, NUMBERS_A_BYTE, quantize
from .spectrum import Spectrum, spectrum_of, square_root

_SAVINGS = NOISE[:-1] - NOISE[1:]  # of one more bit, by how many there are
_COMPONENT_BYTES = 6  # of an entry: its step, its two numbers of bits
_BISECTIONS = 20
_TRIES = 6
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


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


def compress(delta: Delta, limit: Limit, moment: Tensor | None = None, quantized: bool = True) -> Delta:
    """The delta as factors within the limit, with the least effect of what is left out.

    moment:    E[c cᵀ] (width, width) of text features; None weighs all directions alike.
    quantized: whether numbers may take fewer bits than float16, as the first extension and other readers do not know.

    A limit to the rank means float16. The delta itself is returned where it is within the limit, or, for a share of the
    effect, where nothing smaller is. Raises UserError if the byte limit is below what the smallest such file takes.
    """
    readable = quantized or not any(isinstance(entry, QuantizedFactors) for entry in delta.entries.values())
    if limit.max_bytes is not None and readable and _within(delta, limit.max_bytes):
        return delta
    if limit.rank is not None and readable and _ranks_within(delta, limit.rank):
        return delta
    half = None if moment is None else square_root(moment)
    quantized &= limit.rank is None
    spectra = _spectra(delta.entries, half, shared=quantized)
    if limit.rank is not None:
        chosen = [_in_float16(spectrum, min(limit.rank, len(spectrum.s))) for spectrum in spectra]
        return replace(delta, entries=_entries(chosen))
    if limit.energy is not None:
        return _within_loss(delta, spectra, quantized, 1 - limit.energy, moment)
    assert limit.max_bytes is not None
    return _within_bytes(delta, spectra, quantized, limit.max_bytes)


def _within_loss(
    delta: Delta, spectra: Sequence[Spectrum], quantized: bool, loss: float, moment: Tensor | None
) -> Delta:
    """The fewest bytes that lose no more than this share of the squared effect, measured and not only reckoned."""
    total, aim = sum(spectrum.tail(0) for spectrum in spectra), loss
    for _ in range(_TRIES):
        fits = partial(_loses, aim * total)
        small = replace(delta, entries=_entries(_best(spectra, quantized, fits, cheap=True)))
        measured = functional_error(delta, small, moment) ** 2
        if measured <= loss:
            return delta if _within(delta, len(small.to_bytes())) else small
        aim *= 0.97 * loss / measured
    return delta


def _within_bytes(delta: Delta, spectra: Sequence[Spectrum], quantized: bool, max_bytes: int) -> Delta:
    room = max_bytes - len(replace(delta, entries={}).to_bytes())
    no_effect = all(spectrum.tail(0) == 0 for spectrum in spectra)
    while room > 0:
        small = replace(delta, entries=_entries(_best(spectra, quantized, partial(_fits, room))))
        excess = len(small.to_bytes()) - max_bytes
        if excess <= 0 and (small.entries or no_effect):
            return small
        room -= max(excess, max_bytes // 100)
    raise UserError(
        f"this delta cannot be made as small as {max_bytes} bytes: its words and names take as much already"
    )


def _within(delta: Delta, max_bytes: int) -> bool:
    """Whether its file is no larger; of matrices that are larger by themselves no file is made."""
    matrices = sum(entry.numel() for entry in delta.entries.values() if isinstance(entry, Tensor))
    return matrices * torch.float16.itemsize <= max_bytes and len(delta.to_bytes()) <= max_bytes


def _ranks_within(delta: Delta, rank: int) -> bool:
    return all(isinstance(entry, Factors) and entry.us.shape[1] <= rank for entry in delta.entries.values())


def with_rank(delta: Delta, rank: int | None, error: float) -> tuple[Delta, int]:
    """The delta as factors in float16, no layer above the rank, and that rank; factors within it stay as they are.

    rank: the least at which the matrices of all layers together lose no more than `error`, relative, if None.
    """
    rank_of = {key: entry.us.shape[1] for key, entry in delta.entries.items() if isinstance(entry, Factors)}
    wanted = [key for key in delta.entries if rank is None or rank_of.get(key, rank + 1) > rank]
    spectra = dict(zip(wanted, _spectra({key: delta.entries[key] for key in wanted}, None, shared=False)))
    if rank is None:
        rank = _least_rank(list(spectra.values()), error)
    above = [spectrum for key, spectrum in spectra.items() if rank_of.get(key, rank + 1) > rank]
    made = _entries([_in_float16(spectrum, min(rank, len(spectrum.s))) for spectrum in above])
    return replace(delta, entries={**delta.entries, **made}), rank


def _least_rank(spectra: Sequence[Spectrum], error: float) -> int:
    """The least rank of all at which what they lose together is no more than this, relative."""
    allowed = error**2 * sum(spectrum.tail(0) for spectrum in spectra)
    most = max((len(spectrum.s) for spectrum in spectra), default=1)
    lost = (sum(spectrum.tail(min(rank, len(spectrum.s))) for spectrum in spectra) for rank in range(1, most + 1))
    return next((rank for rank, squares in enumerate(lost, start=1) if squares <= allowed), most)


def functional_error(delta: Delta, approximation: Delta, moment: Tensor | None = None) -> float:
    """(Σ E‖(Δ − Δ̂)c‖² / Σ E‖Δc‖²)^½ over all layers; moment as in `compress`, best of captions that it did not see."""
    missed = total = 0.0
    for key, entry in delta.entries.items():
        other, seen = approximation.entries.get(key), _moment_of(key, entry, moment)
        missed += _effect(_difference(entry, other) if other is not None else entry, seen)
        total += _effect(entry, seen)
    return (missed / total) ** 0.5 if total else 0.0


def _difference(entry: Entry, other: Entry) -> Entry:
    """Δ − Δ̂; of two low-rank matrices without making either, which may be far larger than their factors."""
    if isinstance(entry, Factors) and isinstance(other, Factors):
        us = torch.cat([entry.us.float(), -other.us.float()], dim=1)
        if us.shape[1] < min(entry.shape):
            return Factors(us, torch.cat([entry.vh.float(), other.vh.float()]))
    return dense(entry) - dense(other)


def _effect(entry: Entry, moment: Tensor | float) -> float:
    """E‖Δc‖² = tr(Δ M Δᵀ)."""
    rows = entry.vh.double() if isinstance(entry, Factors) else dense(entry)
    weighted = rows * moment if isinstance(moment, float) else rows @ moment.to(rows)
    if isinstance(entry, Factors):
        us = entry.us.double()
        return max(((us.T @ us) * (weighted @ rows.T)).sum().item(), 0.0)
    return max((weighted * rows).sum().item(), 0.0)


def _moment_of(key: str, entry: Entry, moment: Tensor | None) -> Tensor | float:
    """The moment of what a layer reads: text for to_k and to_v; for to_q and to_out unknown, so all directions alike.

    Raises UserError if the text features are of another width than the layer reads.
    """
    if moment is None:
        return 1.0
    return moment if _reads_text(key, entry, moment) else moment.diagonal().mean().item()


def _half_of(key: str, entry: Entry, half: Tensor | None) -> Tensor | None:
    """L for the same."""
    if half is None or _reads_text(key, entry, half):
        return half
    return torch.eye(entry.shape[1]) * half.square().sum(dim=1).mean().sqrt()


def _reads_text(key: str, entry: Entry, features: Tensor) -> bool:
    if not reads_text(key):
        return False
    if len(features) != entry.shape[1]:
        sizes = f"{entry.shape[1]} text features, the model has {len(features)}"
        raise UserError(f"{key} reads {sizes}: made for another model")
    return True


def _groups(entries: Mapping[str, Entry]) -> list[dict[str, Entry]]:
    """Entries that may share a basis: to_k and to_v of one layer, any other by itself."""
    groups: dict[str, dict[str, Entry]] = {}
    for key in sorted(entries):
        groups.setdefault(beside_to_v(key), {})[key] = entries[key]
    return list(groups.values())


@dataclass(frozen=True)
class _Choice:
    """A spectrum stored one way.

    error: squared effect of what that loses. bytes: what it takes of a file.
    bits: of us (entries, rank) and of vh (rank,); None for float16.
    """

    spectrum: Spectrum
    rank: int
    error: float
    bytes: float
    bits: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None

    def cost(self, price: float) -> float:
        return self.error + price * self.bytes


def _left_out(spectrum: Spectrum) -> _Choice:
    return _Choice(spectrum, 0, spectrum.tail(0), 0)


def _in_float16(spectrum: Spectrum, rank: int) -> _Choice:
    size = 2 * rank * spectrum.numbers + _header_bytes(spectrum, tensors=2)
    return _Choice(spectrum, rank, spectrum.tail(rank), size)


def _quantized(spectrum: Spectrum, price: float) -> _Choice:
    """The rank and the bits that make squared error + price · bytes least."""
    outs = np.array(list(spectrum.outs.values()))
    us_price, vh_price = price * outs[:, None] / NUMBERS_A_BYTE, price * spectrum.width / NUMBERS_A_BYTE
    worth = spectrum.above(min(outs) * price / NUMBERS_A_BYTE + vh_price)
    squares, parts = spectrum.squares[:worth], spectrum.parts[:, :worth]
    us_bits = _bits(parts, us_price)
    us_error = (parts * NOISE[us_bits]).sum(axis=0)
    us_cost = us_error + (us_price * us_bits).sum(axis=0) + price * _COMPONENT_BYTES * len(outs)
    noise = parts.sum(axis=1) @ NOISE[us_bits] / parts.sum()  # of each column of us, (worth,)
    rank = 0
    for _ in range(2):  # what vh's rounding costs depends on the rank
        rounding = spectrum.rounding[:worth] * spectrum.outside(noise[:rank])
        vh_bits = np.maximum(_bits(rounding, vh_price), 1)
        vh_error = rounding * NOISE[vh_bits]
        saved = squares - us_cost - vh_error - vh_price * vh_bits
        rank = int(np.append(0.0, np.cumsum(saved)).argmax())
    us_bits, vh_bits = us_bits[:, :rank], vh_bits[:rank]
    planes = (us_bits.sum(axis=1) * outs).sum() + vh_bits.sum() * spectrum.width
    size = planes / NUMBERS_A_BYTE + _COMPONENT_BYTES * rank * len(outs) + _header_bytes(spectrum, tensors=3, shared=1)
    error = spectrum.tail(rank) + us_error[:rank].sum() + vh_error[:rank].sum()
    return _Choice(spectrum, rank, error, size, (us_bits, vh_bits))


def _bits(squares: npt.NDArray[np.float64], price: float | npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """For numbers of these squared effects, how many bits save more error than they cost at this price of one."""
    return (squares[..., None] * _SAVINGS > np.asarray(price)[..., None]).sum(axis=-1)


def _header_bytes(spectrum: Spectrum, tensors: int, shared: int = 0) -> int:
    """What the file's header has on a spectrum's entries: a line each in the list of entries, and one a tensor."""
    lines = [len(key) + 36 for key in spectrum.outs] + [len(key) + 70 for key in spectrum.outs for _ in range(tensors)]
    return sum(lines) + shared * lines[-1]


def _at_price(spectrum: Spectrum, price: float, quantized: bool) -> _Choice:
    """The way of storing it that makes squared error + price · bytes least."""
    if quantized and _in_whole_bytes(*spectrum.outs.values(), spectrum.width):
        found = _quantized(spectrum, price)
    else:
        found = _in_float16(spectrum, spectrum.above(2 * price * spectrum.numbers))
    return min(_left_out(spectrum), found, key=lambda choice: choice.cost(price))


def _in_whole_bytes(*lengths: int) -> bool:
    return all(length % NUMBERS_A_BYTE == 0 for length in lengths)


def _in_parallel(work: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    """The results in order, worked out by as many threads as torch may use, one each: its SVD gains little by more."""
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, items))
    finally:
        torch.set_num_threads(threads)


def _loses(allowed: float, choices: Sequence[_Choice]) -> bool:
    return sum(choice.error for choice in choices) <= allowed


def _fits(room: int, choices: Sequence[_Choice]) -> bool:
    return sum(choice.bytes for choice in choices) <= room


def _best(
    spectra: Sequence[Spectrum], quantized: bool, fits: Callable[[list[_Choice]], bool], cheap: bool = False
) -> list[_Choice]:
    """The choices of least squared error that fit; with `cheap`, those of fewest bytes that fit.

    They are those of the least price of a byte at which they fit, or with `cheap` of the highest.
    """
    dearest = 2 * NUMBERS_A_BYTE * max((s.tail(0) / s.numbers for s in spectra), default=1.0) or 1.0
    good, bad = (dearest * 1e-16, dearest) if cheap else (dearest, dearest * 1e-16)
    for _ in range(_BISECTIONS):
        middle = (good * bad) ** 0.5
        fit = fits([_at_price(spectrum, middle, quantized) for spectrum in spectra])
        good, bad = (middle, bad) if fit else (good, middle)
    return [_at_price(spectrum, good, quantized) for spectrum in spectra]


def _spectra(entries: Mapping[str, Entry], text_half: Tensor | None, shared: bool) -> list[Spectrum]:
    """One of each entry; where they may share Vh, one of to_k and to_v together."""
    groups = _groups(entries) if shared else [{key: entry} for key, entry in entries.items()]

    def spectra_of(group: Mapping[str, Entry]) -> list[Spectrum]:
        halves = {key: _half_of(key, entry, text_half) for key, entry in group.items()}
        alike = len({entry.shape[1] for entry in group.values()}) == 1
        if alike and _in_whole_bytes(*(size for entry in group.values() for size in entry.shape)):
            return [spectrum_of(group, next(iter(halves.values())))]
        return [spectrum_of({key: entry}, halves[key]) for key, entry in group.items()]

    return [spectrum for found in _in_parallel(spectra_of, groups) for spectrum in found]


def _entries(choices: Sequence[_Choice]) -> dict[str, Entry]:
    """The entries that the choices stand for; layers of rank 0 are left out."""
    made = _in_parallel(
        lambda choice: _float16_entries(choice) if choice.bits is None else _quantized_entries(choice),
        [choice for choice in choices if choice.rank],
    )
    return dict(sorted((key, entry) for entries in made for key, entry in entries.items()))


def _float16_entries(choice: _Choice) -> dict[str, Entry]:
    u, vh = choice.spectrum.factors(choice.rank)
    balance = vh.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny).sqrt()  # keeps both in float16's range
    (key,) = choice.spectrum.outs
    return {key: Factors(u * balance, vh / balance[:, None])}


def _quantized_entries(choice: _Choice) -> dict[str, Entry]:
    """Vh is rounded first; US is then the least-squares best to go with the rounded Vh, and is rounded itself."""
    assert choice.bits is not None
    us_bits, vh_bits = (torch.from_numpy(bits).to(torch.uint8) for bits in choice.bits)
    spectrum = choice.spectrum
    vh, _ = quantize(spectrum.factors(choice.rank)[1], vh_bits)
    parts = spectrum.us(vh, NOISE[choice.bits[0]])
    entries: dict[str, Entry] = {}
    for key, part, bits in zip(spectrum.outs, parts, us_bits):
        levels, step = quantize(part.T, bits)
        entries[key] = QuantizedFactors.of_levels(levels.T, vh, step.T, bits, vh_bits)
    return entries
