"""The formulas: how like pictures are to others and to captions, how far a class has moved, which delta is best.

Features are rows, one a picture or caption. Cosines are of rows of unit length.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def image_alignment(pictures: Tensor, references: Tensor) -> float:
    """Mean cosine of every picture (n, d) with every reference (m, d), as in CustomConcept101's evaluate.py."""
    return float((F.normalize(pictures, dim=1) @ F.normalize(references, dim=1).T).mean())


def likeness_of_references(references: Tensor) -> float:
    """How like pictures (m, d) of one thing are among themselves: the mean cosine of two different ones; 1 for one."""
    count = len(references)
    if count == 1:
        return 1.0
    unit = F.normalize(references, dim=1)
    return float(((unit @ unit.T).sum() - count) / (count * (count - 1)))


def text_alignment(pictures: Tensor, captions: Tensor, scale: float = 1.0) -> float:
    """Mean of scale · max(cos, 0) over pictures and their own captions (n, d).

    With a scale of 2.5 this is CLIPScore (arXiv 2104.08718, §3), which CustomConcept101 reports.
    """
    cosines = (F.normalize(pictures, dim=1) * F.normalize(captions, dim=1)).sum(dim=1)
    return float(scale * cosines.clamp_min(0).mean())


def told_apart(pictures: Tensor, captions: Tensor, texts: Sequence[str]) -> float | None:
    """How much nearer pictures are to their own captions (n, d) than to the others': the difference of mean cosines.

    texts: the captions, to know which are the same. None if all are: then there is nothing to tell apart.
    """
    same = torch.tensor([[one == other for other in texts] for one in texts])
    if same.all():
        return None
    cosines = F.normalize(pictures, dim=1) @ F.normalize(captions, dim=1).T
    return float(cosines[same].mean() - cosines[~same].mean())


def kernel_distance(pictures: Tensor, references: Tensor) -> float:
    """KID (arXiv 1801.01401, §4): the unbiased squared distance of (n, d) and (m, d) under the kernel (x·y/d + 1)³.

    It is 0 on average for pictures of one distribution, so it may be a little below. n and m are 2 or more.
    """
    n, m = len(pictures), len(references)
    x, y = pictures.double(), references.double()
    within_x, within_y, across = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    return float(
        (within_x.sum() - within_x.trace()) / (n * (n - 1))
        + (within_y.sum() - within_y.trace()) / (m * (m - 1))
        - 2 * across.mean()
    )


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def score(likeness: float, greatest: float, obedience: float) -> float:
    """One number to choose among deltas by: the harmonic mean of what was learned and what prompts still do, 0 to 1.

    likeness:  the image alignment with the delta; greatest: of the concept's own pictures.
    obedience: what prompts do with the delta, as a share of what they do without it.
    A delta that was trained too little is little like the concept, one that was trained too long ignores the prompt.
    """
    parts = [min(max(part, 0.0), 1.0) for part in (likeness / max(greatest, 1e-6), obedience)]
    return 2 * parts[0] * parts[1] / sum(parts) if all(parts) else 0.0


def chance(one: Sequence[float], other: Sequence[float]) -> float:
    """The standard error of the difference of two figures of the same prompts and seeds, by the jackknife.

    one, other: each figure without every part of its pictures in turn. Infinite for fewer than two parts.
    """
    differences = [a - b for a, b in zip(one, other, strict=True)]
    count = len(differences)
    return ((count - 1) * statistics.pvariance(differences)) ** 0.5 if count > 1 else float("inf")
