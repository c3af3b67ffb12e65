"""The spectrum of a layer: how much each singular direction of its delta does to text.

Of SDXL's 140 matrices the singular vectors are four times as large as the matrices. So what is kept of a layer is
numbers, a few of each direction, and of the vectors those of the strongest; weaker ones are worked out anew where a
limit leaves room for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..delta import Entry
from .factors import Factors

_RIDGE = 1e-4  # of the moment, relative to its mean eigenvalue: captions nobody thought of
_MADE_GOOD = 0.9  # of errors within what vh spans; all of small ones, but in few bits they are not small
_NEGLIGIBLE = 1e-9  # of the squared effect: less than a delta in float16 loses by rounding
_HELD = 256  # directions whose vectors are kept


@dataclass(frozen=True)
class Spectrum:
    """The singular values of ΔL, falling, of one entry or of several stacked, Δ = entries on top of each other.

    The first k of the n directions are not negligible.

    entries:  (out, in) each, by key; all read the same features.
    half:     L (in, in), or None for the identity.
    s:        (n,).
    parts:    squared effect of each direction in each entry, (entries, n).
    rounding: squared effect of a random error in a row of vh, as large as the row and in all directions alike, (k,).
    inside:   the share of the effect of such errors that lies along each direction, (k,).
    held:     the strongest left singular vectors, (Σ outs, at most n), float32.
    lost:     squared effect of what n leaves out.
    """

    entries: Mapping[str, Entry]
    half: Tensor | None
    s: Tensor
    parts: npt.NDArray[np.float64]
    rounding: npt.NDArray[np.float64]
    inside: npt.NDArray[np.float64]
    held: Tensor
    lost: float = 0.0

    @cached_property
    def outs(self) -> dict[str, int]:
        """Rows of each entry by key."""
        return {key: entry.shape[0] for key, entry in self.entries.items()}

    @property
    def width(self) -> int:
        """How many features the entries read."""
        return next(iter(self.entries.values())).shape[1]

    @property
    def numbers(self) -> int:
        """Numbers that one more rank takes."""
        return sum(self.outs.values()) + self.width

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """u (Σ outs, rank), orthonormal, and vh = uᵀΔ (rank, in): u · vh is the best Δ̂ of the rank, from 0 to n."""
        enough = rank <= self.held.shape[1]
        u = self.held[:, :rank] if enough else _decomposed(self.entries, self.half).u[:, :rank]
        return u, _read_by(u, self.entries)

    def us(self, vh: Tensor, noise: npt.NDArray[np.float64]) -> list[Tensor]:
        """Of each entry, the us (out, rank), float32, that goes best with some other vh (rank, in), once it is rounded.

        It is the least squares in the effect, that of the rounding included; without that, columns that nearly cancel
        out could grow without bound.

        noise: squared error of that rounding, relative to the squares of each column, (entries, rank), below 1.
        """
        read = (vh if self.half is None else vh @ self.half).double()
        gram, seen = read @ read.T, read.T if self.half is None else self.half.double() @ read.T
        spoils = torch.from_numpy(noise / np.maximum(1 - noise, 1e-9)) * gram.diagonal()
        least = _NEGLIGIBLE * gram.diagonal().mean()
        return [
            torch.linalg.solve(gram + torch.diag(spoil + least), _times(entry, seen).T).T.float()
            for entry, spoil in zip(self.entries.values(), spoils)
        ]

    @cached_property
    def squares(self) -> npt.NDArray[np.float64]:
        """Squared effect of each direction, (n,), falling."""
        return self.s.double().square().numpy()

    @cached_property
    def _tails(self) -> npt.NDArray[np.float64]:
        return _tails(self.s, self.lost)

    def tail(self, rank: int) -> float:
        """Squared effect of what is beyond a rank."""
        return float(self._tails[rank])

    def above(self, square: float) -> int:
        """How many directions have a squared effect above this, negligible ones aside."""
        return int(np.searchsorted(-self.squares, -max(square, _NEGLIGIBLE * self.tail(0))))

    def outside(self, noise: npt.NDArray[np.float64]) -> float:
        """The share of the errors of `rounding` in a vh of some rank that `us` cannot make good, 0 to 1.

        That is all that lies outside what vh spans, as much of the rest as the rounding of `us` itself spoils, and some
        more, since large errors cannot be made good one by one.

        noise: squared error of that rounding, relative to the squares of each column of `us`, (rank,), rank at most k.
        """
        return 1 - _MADE_GOOD * float(self.inside[: len(noise)] @ (1 - noise))


def square_root(moment: Tensor) -> Tensor:
    """The lower triangular L with L Lᵀ = moment (in, in), which is ridged first; float32."""
    ridge = _RIDGE * moment.diagonal().mean()
    return torch.linalg.cholesky(moment.double() + ridge * torch.eye(len(moment), dtype=torch.float64)).float()


def spectrum_of(entries: Mapping[str, Entry], half: Tensor | None) -> Spectrum:
    """That of entries on top of each other, which read the same features; half as in `Spectrum`."""
    found = _decomposed(entries, half)
    worth = found.above()
    shares = [part.double().square().sum(dim=0) for _, part in _split(found.u, entries)]
    right, width = found.right[:worth], found.right.shape[1]
    power = float(width) if half is None else half.double().square().sum().item()
    seen = right if half is None else right @ half.T
    return Spectrum(
        entries, half, found.s,
        parts=torch.stack(shares).numpy() * found.s.double().square().numpy(),
        rounding=power / width * _read_by(found.u[:, :worth], entries).double().square().sum(dim=1).numpy(),
        inside=seen.double().square().sum(dim=1).numpy() / power,
        held=found.u[:, :_HELD].clone(),
        lost=found.lost,
    )  # fmt: skip


@dataclass(frozen=True)
class _Decomposition:
    """ΔL = u (Σ outs, n) · diag(s) · right (n, in), but for a squared effect of `lost`."""

    u: Tensor
    s: Tensor
    right: Tensor
    lost: float = 0.0

    def above(self) -> int:
        """How many directions are not negligible."""
        return int((self.s.double().square() > _NEGLIGIBLE * _tails(self.s, self.lost)[0]).sum())


def _decomposed(entries: Mapping[str, Entry], half: Tensor | None) -> _Decomposition:
    """Of dense entries by one SVD; of US · Vh by a QR of US and the SVD of R · Vh, which has few rows."""
    if len(entries) > 1 and any(isinstance(entry, Factors) for entry in entries.values()):
        return _stacked([_decomposed({key: entry}, half) for key, entry in entries.items()])
    basis, inner = _basis(list(entries.values()))
    turn, s, right = torch.linalg.svd(inner if half is None else inner @ half, full_matrices=False)
    return _Decomposition(turn if basis is None else basis @ turn, s, right)


def _basis(entries: Sequence[Entry]) -> tuple[Tensor | None, Tensor]:
    """Orthonormal columns, and what they are to be multiplied by; None where that is the matrix itself."""
    if isinstance(entries[0], Factors):
        basis, r = torch.linalg.qr(entries[0].us.float().cpu())
        return basis, r @ entries[0].vh.float().cpu()
    matrix = torch.cat([entry.detach().float().cpu() for entry in entries if isinstance(entry, Tensor)])
    tall = len(matrix) > 2 * matrix.shape[1]  # then the SVD is faster on the triangle of a QR
    return torch.linalg.qr(matrix) if tall else (None, matrix)


def _stacked(found: Sequence[_Decomposition]) -> _Decomposition:
    """Of several on top of each other, without the directions that are negligible in each by itself."""
    ranks = [each.above() for each in found]
    effects = torch.cat([each.s[:rank, None] * each.right[:rank] for each, rank in zip(found, ranks)])
    turn, s, right = torch.linalg.svd(effects, full_matrices=False)  # their u are orthonormal already
    u = torch.block_diag(*(each.u[:, :rank] for each, rank in zip(found, ranks))) @ turn
    return _Decomposition(u, s, right, sum(float(_tails(each.s, each.lost)[rank]) for each, rank in zip(found, ranks)))


def _tails(s: Tensor, lost: float) -> npt.NDArray[np.float64]:
    """Squared effect of what is beyond each rank, (n + 1,)."""
    return np.append(np.cumsum(s.double().square().numpy()[::-1])[::-1], 0.0) + lost


def _split(u: Tensor, entries: Mapping[str, Entry]) -> Iterator[tuple[Entry, Tensor]]:
    """Each entry with its own rows of u."""
    yield from zip(entries.values(), u.split([entry.shape[0] for entry in entries.values()]))


def _read_by(u: Tensor, entries: Mapping[str, Entry]) -> Tensor:
    """uᵀΔ."""
    parts = [
        (part.T @ entry.us.float().cpu()) @ entry.vh.float().cpu()
        if isinstance(entry, Factors)
        else part.T @ entry.detach().float().cpu()
        for entry, part in _split(u, entries)
    ]
    return torch.stack(parts).sum(dim=0) if len(parts) > 1 else parts[0]


def _times(entry: Entry, columns: Tensor) -> Tensor:
    """Δ · columns, in double precision."""
    if isinstance(entry, Factors):
        return entry.us.double().cpu() @ (entry.vh.double().cpu() @ columns)
    return entry.detach().double().cpu() @ columns
