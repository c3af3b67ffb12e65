"""The spectrum of a layer: how much each singular direction of its delta does to text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


@dataclass(frozen=True)
class Spectrum:
    """The SVD of ΔL, of one entry or of several stacked.

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

    @property
    def width(self) -> int:
        return self.inner.shape[1]

    @property
    def numbers(self) -> int:
        """Numbers that one more rank takes."""
        return sum(self.outs.values()) + self.width

    def vh(self, rank: int) -> Tensor:
        """uᵀΔ (rank, in), which makes u · vh the best Δ̂ of the rank."""
        return self.turn[:, :rank].T @ self.inner

    def us(self, vh: Tensor, noise: npt.NDArray[np.float64]) -> list[Tensor]:
        """Of each entry (out, rank), the best to go with some other vh (rank, in) once it is rounded itself.

        noise: (entries, rank) squared error of that rounding, relative to the squares of each column. Least squares in
        the effect, that of the rounding included: without it columns that nearly cancel out could grow without bound.
        """
        read = (vh if self.half is None else vh @ self.half).double()
        gram, wanted = read @ read.T, read @ self.effect.double().T
        spoils = torch.from_numpy(noise / np.maximum(1 - noise, 1e-9)) * gram.diagonal()
        return [
            part @ torch.linalg.solve(gram + torch.diag(spoil + _NEGLIGIBLE * gram.diagonal().mean()), wanted).T.float()
            for part, spoil in zip(self.u.split(list(self.outs.values())), spoils)
        ]

    @cached_property
    def squares(self) -> npt.NDArray[np.float64]:
        """Squared effect of each direction, (n,), falling."""
        return self.s.double().square().numpy()

    @cached_property
    def _tails(self) -> npt.NDArray[np.float64]:
        return np.append(np.cumsum(self.squares[::-1])[::-1], 0.0) + self.lost

    def tail(self, rank: int) -> float:
        """Squared effect of what is beyond a rank."""
        return float(self._tails[rank])

    def above(self, square: float) -> int:
        """How many directions have a squared effect above this, negligible ones aside."""
        return int(np.searchsorted(-self.squares, -max(square, _NEGLIGIBLE * self.tail(0))))

    @cached_property
    def parts(self) -> npt.NDArray[np.float64]:
        """Squared effect of each direction in each entry, (entries, n)."""
        shares = [part.double().square().sum(dim=0) for part in self.u.split(list(self.outs.values()))]
        return torch.stack(shares).numpy() * self.squares

    @cached_property
    def rounding(self) -> npt.NDArray[np.float64]:
        """Squared effect of errors in the rows of vh that are as large as the rows and in no direction of their own."""
        power = 1.0 if self.half is None else self.half.double().square().sum().item() / self.width
        return power * self.vh(self.above(0.0)).double().square().sum(dim=1).numpy()

    def outside(self, noise: npt.NDArray[np.float64]) -> float:
        """The share of such errors in a vh of some rank that `us` cannot make good.

        That is all that lies outside what vh spans, of the rest as much as the rounding of `us` itself spoils, and some
        for errors too large to be made good one by one.
        noise: (rank,) squared error of that rounding, relative to the squares of each column of `us`.
        """
        return 1 - _MADE_GOOD * float(self._inside[: len(noise)] @ (1 - noise))

    @cached_property
    def _inside(self) -> npt.NDArray[np.float64]:
        """The share of such errors that lies in each direction, (n,)."""
        directions = self.effect[: self.above(0.0)] / self.s[: self.above(0.0), None]
        seen = directions if self.half is None else directions @ self.half.T
        total = self.width if self.half is None else self.half.double().square().sum().item()
        return seen.double().square().sum(dim=1).numpy() / total


def square_root(moment: Tensor) -> Tensor:
    """L with L Lᵀ = moment, ridged, in float32."""
    ridge = _RIDGE * moment.diagonal().mean()
    return torch.linalg.cholesky(moment.double() + ridge * torch.eye(len(moment), dtype=torch.float64)).float()


def spectrum_of(entries: Mapping[str, Entry], half: Tensor | None) -> Spectrum:
    """Of entries on top of each other that read the same.

    Of dense ones by one SVD, of US·Vh by a QR of US and the SVD of R·Vh, which has as many rows as the rank.
    """
    if len(entries) > 1 and any(isinstance(entry, Factors) for entry in entries.values()):
        return _stacked([spectrum_of({key: entry}, half) for key, entry in entries.items()])
    basis, inner = _basis(list(entries.values()))
    turn, s, right = torch.linalg.svd(inner if half is None else inner @ half, full_matrices=False)
    u = turn if basis is None else basis @ turn
    outs = {key: entry.shape[0] for key, entry in entries.items()}
    return Spectrum(outs, u, s, s[:, None] * right, inner, turn, half)


def _basis(entries: Sequence[Entry]) -> tuple[Tensor | None, Tensor]:
    """Orthonormal columns, and what they are to be multiplied by; None where that is the matrix itself."""
    if isinstance(entries[0], Factors):
        basis, r = torch.linalg.qr(entries[0].us.float().cpu())
        return basis, r @ entries[0].vh.float().cpu()
    matrix = torch.cat([entry.detach().float().cpu() for entry in entries if isinstance(entry, Tensor)])
    tall = len(matrix) > 2 * matrix.shape[1]  # then the SVD is faster on the triangle of a QR
    return torch.linalg.qr(matrix) if tall else (None, matrix)


def _stacked(spectra: Sequence[Spectrum]) -> Spectrum:
    """Of all together, without directions that are negligible in each."""
    ranks = [spectrum.above(0.0) for spectrum in spectra]
    effects = torch.cat([spectrum.effect[:rank] for spectrum, rank in zip(spectra, ranks)])
    turn, s, right = torch.linalg.svd(effects, full_matrices=False)  # their u are orthonormal already
    return Spectrum(
        outs={key: out for spectrum in spectra for key, out in spectrum.outs.items()},
        u=torch.block_diag(*(spectrum.u[:, :rank] for spectrum, rank in zip(spectra, ranks))) @ turn,
        s=s,
        effect=s[:, None] * right,
        inner=torch.cat([spectrum.vh(rank) for spectrum, rank in zip(spectra, ranks)]),
        turn=turn,
        half=spectra[0].half,
        lost=sum(spectrum.tail(rank) for spectrum, rank in zip(spectra, ranks)),
    )
