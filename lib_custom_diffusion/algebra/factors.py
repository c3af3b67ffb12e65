"""Low-rank matrices, as two factors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Factors:
    """A low-rank matrix US @ Vh: us (out, r), vh (r, in)."""

    us: Tensor
    vh: Tensor

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.us.shape[0], self.vh.shape[1]))

    def dense(self) -> Tensor:
        """The matrix itself, (out, in), float32."""
        return self.us.float() @ self.vh.float()

    def norm(self) -> float:
        """The Frobenius norm of the matrix, without making it: ‖US Vh‖² = tr(USᵀUS · Vh Vhᵀ)."""
        us, vh = self.us.double(), self.vh.double()
        return float(((us.T @ us) * (vh @ vh.T)).sum().clamp_min(0).sqrt())


@dataclass(frozen=True)
class QuantizedFactors(Factors):
    """Factors that are stored in few bits (`quantization`): columns of us are levels times step, rows of vh are levels.

    step: (1, r) float32. us_bits, vh_bits: (r,) uint8, of each column of us and each row of vh.
    Two entries of one layer whose `vh` is the same tensor store it once.
    """

    step: Tensor
    us_bits: Tensor
    vh_bits: Tensor

    @classmethod
    def of_levels(cls, us: Tensor, vh: Tensor, step: Tensor, us_bits: Tensor, vh_bits: Tensor) -> QuantizedFactors:
        """From levels of us (out, r) and of vh (r, in)."""
        return cls(us * step.float(), vh, step, us_bits, vh_bits)

    def us_levels(self) -> Tensor:
        return torch.where(self.step == 0, 0.0, self.us.float() / self.step)
