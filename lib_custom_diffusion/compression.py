"""Compression: as few bytes as it takes for a delta to do the same to text.

Deltas of to_k and to_v act on text features c only, so the error that counts is E‖(Δ − Δ̂)c‖² = ‖(Δ − Δ̂)L‖² with
L Lᵀ = E[c cᵀ] (`text_features.second_moments`). The best Δ̂ of a rank is the truncated SVD of ΔL times L⁻¹, which is
Uᵣ(UᵣᵀΔ): L itself is never inverted. Where no model is at hand L is the identity.

Bits are dealt out across all layers at once, where they save most error. Of a kept direction with singular value s,
the numbers of U are rounded at a cost of s² · 4⁻ᵇ in b bits, so that one more bit must save more than its price λ;
likewise those of Vh, whose rounding costs far less where text features are strong; and a direction is kept if that
saves more than it costs. Strong directions get many bits, weak ones few, and λ is found by bisection. to_k and to_v of
a layer share Vh where that is less. For readers that know nothing of bits, factors are in float16 instead.
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

from .blending import dense
from .delta import Delta, Entry, Factors
from .errors import UserError
from .factors import QuantizedFactors
from .quantization import NOISE, NUMBERS_A_BYTE, quantize
from .spectrum import Spectrum, spectrum_of, square_root, stacked

_SAVINGS = NOISE[:-1] - NOISE[1:]  # of one more bit, by how many there are
_COMPONENT_BYTES = 6  # of an entry: its step, its two numbers of bits
_BISECTIONS = 20
_Item, _Result = TypeVar("_Item"), TypeVar("_Result")


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

    A limit to the rank means float16. Raises UserError if the byte limit is below what the smallest such file takes.
    """
    half = None if moment is None else square_root(moment)
    layers = _in_parallel(lambda group: _decomposed(group, half, quantized), _groups(delta.entries))
    if limit.rank is not None:
        return replace(delta, entries=_entries([c for layer in layers for c in layer.at_rank(limit.rank)]))
    if limit.energy is not None:
        allowed = (1 - limit.energy) * sum(spectrum.tail(0) for layer in layers for spectrum in layer.apart)
        found = _best(layers, lambda choices: sum(c.error for c in choices) <= allowed, cheap=True)
        return replace(delta, entries=_entries(found))
    assert limit.max_bytes is not None
    return _within_bytes(delta, layers, limit.max_bytes)


def _within_bytes(delta: Delta, layers: Sequence[_Layer], max_bytes: int) -> Delta:
    room = max_bytes - len(replace(delta, entries={}).to_bytes())
    no_effect = all(spectrum.tail(0) == 0 for layer in layers for spectrum in layer.apart)
    while room > 0:
        small = replace(delta, entries=_entries(_best(layers, partial(_fits, room))))
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
    rank = 0
    for _ in range(2):  # what vh's rounding costs depends on the rank
        rounding = spectrum.rounding[:worth] * spectrum.outside(rank)
        vh_bits = np.maximum(_bits(rounding, vh_price), 1)
        vh_error = rounding * NOISE[vh_bits]
        saved = squares - us_cost - vh_error - vh_price * vh_bits
        rank = int(np.append(0.0, np.cumsum(saved)).argmax())
    us_bits, vh_bits = us_bits[:, :rank], vh_bits[:rank]
    planes = (us_bits.sum(axis=1) * outs).sum() + vh_bits.sum() * spectrum.width
    size = planes / NUMBERS_A_BYTE + _COMPONENT_BYTES * rank * len(outs) + _header_bytes(spectrum, tensors=4)
    error = spectrum.tail(rank) + us_error[:rank].sum() + vh_error[:rank].sum()
    return _Choice(spectrum, rank, error, size, (us_bits, vh_bits))


def _bits(squares: npt.NDArray[np.float64], price: float | npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """For numbers of these squared effects, how many bits save more error than they cost at this price of one."""
    return (squares[..., None] * _SAVINGS > np.asarray(price)[..., None]).sum(axis=-1)


def _header_bytes(spectrum: Spectrum, tensors: int) -> int:
    """What the file's header has on a spectrum's entries: a line each in the list of entries, and one a tensor."""
    return sum((1 + tensors) * len(key) + 36 + 70 * tensors for key in spectrum.outs)


@dataclass(frozen=True)
class _Layer:
    """A group of entries: the spectrum of each, and of all stacked where they might share a basis."""

    apart: list[Spectrum]
    quantized: bool
    together: Spectrum | None = None

    def at_rank(self, rank: int) -> list[_Choice]:
        return [_in_float16(spectrum, min(rank, len(spectrum.s))) for spectrum in self.apart]

    def at_price(self, price: float) -> list[_Choice]:
        """The way of storing it that makes squared error + price · bytes least."""
        apart = [self._one_at_price(spectrum, price) for spectrum in self.apart]
        if self.together is None:
            return apart
        together = self._one_at_price(self.together, price)
        return [together] if together.cost(price) < sum(choice.cost(price) for choice in apart) else apart

    def _one_at_price(self, spectrum: Spectrum, price: float) -> _Choice:
        if self.quantized:
            found = _quantized(spectrum, price)
        else:
            found = _in_float16(spectrum, spectrum.above(2 * price * spectrum.numbers))
        return min(_left_out(spectrum), found, key=lambda choice: choice.cost(price))

    def with_stacked(self, price: float) -> _Layer:
        """The same with the stacked spectrum, of what matters at this price."""
        alone = len({spectrum.width for spectrum in self.apart}) == len(self.apart)
        if alone or not self.quantized:
            return self
        least = min(spectrum.numbers for spectrum in self.apart) / NUMBERS_A_BYTE
        return replace(self, together=stacked(self.apart, price * least / len(self.apart)))


def _in_parallel(work: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    """The results in order, worked out by as many threads as torch may use, one each: its SVD gains little by more."""
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, items))
    finally:
        torch.set_num_threads(threads)


def _fits(room: int, choices: Sequence[_Choice]) -> bool:
    return sum(choice.bytes for choice in choices) <= room


def _best(layers: Sequence[_Layer], fits: Callable[[list[_Choice]], bool], cheap: bool = False) -> list[_Choice]:
    """The choices of least squared error that fit; with `cheap`, those of fewest bytes that fit."""
    price = _limiting_price(layers, fits, cheap)
    layers = _in_parallel(lambda layer: layer.with_stacked(price), layers)
    return _choices(layers, _limiting_price(layers, fits, cheap))


def _limiting_price(layers: Sequence[_Layer], fits: Callable[[list[_Choice]], bool], cheap: bool) -> float:
    """The least price of a byte at which the choices fit, or with `cheap` the highest."""
    spectra = [spectrum for layer in layers for spectrum in layer.apart]
    dearest = 2 * NUMBERS_A_BYTE * max((s.tail(0) / s.numbers for s in spectra), default=1.0) or 1.0
    good, bad = (dearest * 1e-16, dearest) if cheap else (dearest, dearest * 1e-16)
    for _ in range(_BISECTIONS):
        middle = (good * bad) ** 0.5
        good, bad = (middle, bad) if fits(_choices(layers, middle)) else (good, middle)
    return good


def _choices(layers: Sequence[_Layer], price: float) -> list[_Choice]:
    return [choice for layer in layers for choice in layer.at_price(price)]


def _decomposed(group: Mapping[str, Entry], text_half: Tensor | None, quantized: bool) -> _Layer:
    apart = [spectrum_of(key, entry, _half_of(key, entry, text_half)) for key, entry in group.items()]
    whole_bytes = all(size % NUMBERS_A_BYTE == 0 for entry in group.values() for size in entry.shape)
    return _Layer(apart, quantized and whole_bytes)


def _entries(choices: Sequence[_Choice]) -> dict[str, Entry]:
    """The entries that the choices stand for; layers of rank 0 are left out."""
    made = _in_parallel(
        lambda choice: _float16_entries(choice) if choice.bits is None else _quantized_entries(choice),
        [choice for choice in choices if choice.rank],
    )
    return dict(sorted((key, entry) for entries in made for key, entry in entries.items()))


def _float16_entries(choice: _Choice) -> dict[str, Entry]:
    spectrum, rank = choice.spectrum, choice.rank
    vh = spectrum.vh(rank)
    balance = vh.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny).sqrt()  # keeps both in float16's range
    (key,) = spectrum.outs
    return {key: Factors(spectrum.u[:, :rank] * balance, vh / balance[:, None])}


def _quantized_entries(choice: _Choice) -> dict[str, Entry]:
    """Vh is rounded first; US is then the least-squares best to go with the rounded Vh, and is rounded itself."""
    assert choice.bits is not None
    us_bits, vh_bits = (torch.from_numpy(bits).to(torch.uint8) for bits in choice.bits)
    spectrum = choice.spectrum
    vh, _ = quantize(spectrum.vh(choice.rank), vh_bits)
    parts = spectrum.us(vh).split(list(spectrum.outs.values()))
    entries: dict[str, Entry] = {}
    for key, part, bits in zip(spectrum.outs, parts, us_bits):
        levels, step = quantize(part.T, bits)
        entries[key] = QuantizedFactors.of_levels(levels.T, vh, step.T, bits, vh_bits)
    return entries
