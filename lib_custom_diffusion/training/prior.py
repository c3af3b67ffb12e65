"""Prior preservation in text space: what ordinary prompts draw stays, without a single regularization picture.

The cross-attention's key and value projections read text features and nothing else, so "do on ordinary captions what
you did before" is a quadratic form in a delta Δ:

    λ Σ_layers tr(Δ Σ Δᵀ) / tr(W Σ Wᵀ),    Σ = E Σ_p a_p c_p c_pᵀ,

with c_p the text features of a caption at position p, and a_p the share of the cross-attention that position p gets.
What a layer returns is Σ_p a_p V c_p, so by Jensen's inequality the form bounds the squared change of what the layers
return, relative to what they return (for V; for K it is the logits that change so little). The captions are ordinary
ones, and captions of what the concept is a kind of, which the paper (arXiv 2212.04488, §3.2) protects with
regularization pictures.

Layers that read no text (to_q and to_out) are not covered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..attention import READ_TEXT, Projection, recorded_attention
from ..backend import Backend, Conditioning
from ..text_features import class_noun, class_prompts, read_captions
from .parametrisation import parametrisation

PRIORS = ("text", "none")
CLASS_SHARE = 0.25
"""How much of Σ is of captions of the class, if a concept has one."""
_BATCH = 16
_MEASURED_CAPTIONS = 8
_MEASURED_CELLS = 8 * 64 * 64  # of latents, in one pass of the UNet: its memory grows with them
_NOISE_LEVELS = (0.25, 0.5, 0.75)  # where the attention is measured, as parts of the noise schedule


@dataclass(frozen=True)
class TextPrior:
    """The quadratic form of one training.

    weight:  λ.
    moment:  Σ (width, width), float32, where the UNet computes.
    scales:  tr(W Σ Wᵀ) by key, of the layers that read text.
    """

    weight: float
    moment: Tensor
    scales: Mapping[str, float]

    @torch.no_grad()
    def add_gradients(self, parameters: Mapping[str, nn.Parameter]) -> Tensor:
        """Add the form's gradient, 2 λ Δ Σ / tr(W Σ Wᵀ), to that of each Δ (out, width); returns the form, a scalar.

        For Δ = US · Vh it is passed on to both factors, without making Δ: with P = Vh Σ, that of US is US (P Vhᵀ), and
        that of Vh is (USᵀ US) P. parameters: KEY, or KEY.US and KEY.Vh.
        """
        total = self.moment.new_zeros(())
        for key, scale in self.scales.items():
            weight = self.weight / scale
            if key in parameters:
                product = parameters[key] @ self.moment
                _add_gradient(parameters[key], product, 2 * weight)
                total += (parameters[key] * product).sum() * weight
                continue
            us, vh = parameters[f"{key}.US"], parameters[f"{key}.Vh"]
            product = vh @ self.moment
            inner, outer = product @ vh.T, us.T @ us
            _add_gradient(us, us @ inner, 2 * weight)
            _add_gradient(vh, outer @ product, 2 * weight)
            total += (outer * inner).sum() * weight
        return total


def _add_gradient(parameter: nn.Parameter, gradient: Tensor, scale: float) -> None:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    parameter.grad.add_(gradient, alpha=scale)


@torch.no_grad()
def text_prior(
    backend: Backend,
    layers: Mapping[str, Projection],
    class_prompts: Sequence[str],
    latents: Sequence[Tensor],
    weight: float,
    captions: Path | None = None,
) -> TextPrior:
    """The form for a training of `layers`.

    class_prompts: what the concepts are kinds of, such as "cat"; empty ones count for nothing.
    latents:       of some pictures, each (channels, h, w); the attention is measured while these are denoised.
    captions:      a text file of ordinary captions, one a line; None for the model's own.

    Raises UserError if that file cannot be read.
    """
    ordinary = read_captions(captions or backend.captions)
    moments = _ordinary_moments(backend, ordinary)
    classes = list(dict.fromkeys(prompt.strip() for prompt in class_prompts if prompt.strip()))
    if classes:
        of_classes = torch.stack([_class_moments(backend, prompt) for prompt in classes]).mean(dim=0)
        moments = (1 - CLASS_SHARE) * moments + CLASS_SHARE * of_classes
    shares = attention_shares(backend, ordinary, latents)
    moment = torch.einsum("k,kde->de", shares, moments).float().to(backend.device)
    scales = {key: _trace(layer.module.weight, moment) for key, layer in layers.items() if layer.role in READ_TEXT}
    return TextPrior(weight, moment, scales)


def _trace(weight: Tensor, moment: Tensor) -> float:
    """tr(W Σ Wᵀ) for a frozen weight (out, width) in any precision."""
    base = weight.to(moment)
    return ((base @ moment) * base).sum().item()


def _class_moments(backend: Backend, class_prompt: str) -> Tensor:
    """Half of the prompt as it is, half of ordinary ways to ask for the class."""
    asked = class_prompts(class_noun(class_prompt))
    return (moments_by_kind(backend, [class_prompt]) + moments_by_kind(backend, asked)) / 2


_moments: WeakKeyDictionary[nn.Module, tuple[list[str], Tensor]] = WeakKeyDictionary()
"""What ordinary captions gave, by UNet: a page trains one model many times."""


def _ordinary_moments(backend: Backend, captions: list[str]) -> Tensor:
    known = _moments.get(backend.unet)
    if known is None or known[0] != captions:
        known = _moments[backend.unet] = captions, moments_by_kind(backend, captions)
    return known[1]


def _kinds(backend: Backend, captions: Sequence[str], positions: int) -> Tensor:
    """1 where a position of a caption is of a kind, (kinds, captions, positions), float64.

    The kinds: the start token, the caption's own words, the end token, and the padding after it.
    """
    kinds = torch.zeros(4, len(captions), positions, dtype=torch.float64)
    for index, caption in enumerate(captions):
        end = min(1 + backend.count_tokens(caption, {}), positions - 1)
        for kind, part in enumerate((slice(0, 1), slice(1, end), slice(end, end + 1), slice(end + 1, None))):
            kinds[kind, index, part] = 1
    return kinds


@torch.no_grad()
def moments_by_kind(backend: Backend, captions: Sequence[str]) -> Tensor:
    """E c cᵀ (kinds, width, width), float64 on the CPU: over positions of a kind within a caption, then over captions.

    Weighed by `attention_shares` and added up, they are Σ.
    """
    total: Tensor | None = None
    for start in range(0, len(captions), _BATCH):
        batch = captions[start : start + _BATCH]
        features = backend.encode_captions(batch, {}).crossattn.double().cpu()
        kinds = _kinds(backend, batch, features.shape[1])
        weighed = torch.einsum("kbp,bpd->kbpd", kinds / kinds.sum(dim=2, keepdim=True).clamp(min=1), features)
        moments = weighed.flatten(1, 2).mT @ features.flatten(0, 1)
        total = moments if total is None else total + moments
    assert total is not None
    return total / len(captions)


@torch.no_grad()
def attention_shares(backend: Backend, captions: Sequence[str], latents: Sequence[Tensor], seed: int = 0) -> Tensor:
    """The part of the attention that each kind of position gets (kinds,), float64, summing to 1.

    On average over layers, heads, some of the captions, and three noise levels of the latents, each (channels, h, w).
    """
    captions = captions[:: max(1, len(captions) // _MEASURED_CAPTIONS)][:_MEASURED_CAPTIONS]
    clean = torch.stack([latents[index % len(latents)] for index in range(len(captions))]).to(backend.device)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed)).to(clean)
    conditioning = backend.encode_captions(captions, {})
    asked = parametrisation(backend)
    at_once = max(1, _MEASURED_CELLS // clean[0, 0].numel())
    parts = []
    for start in range(0, len(captions), at_once):
        rows = range(start, min(start + at_once, len(captions)))
        seen: list[Tensor] = []
        with recorded_attention(backend.unet, seen):
            for level in _NOISE_LEVELS:
                timesteps = torch.full((len(rows),), round(level * (asked.timesteps - 1)), device=backend.device)
                noisy = asked.add_noise(clean[rows.start : rows.stop], noise[rows.start : rows.stop], timesteps)
                backend.predict(noisy, timesteps, Conditioning.cat([conditioning.row(row) for row in rows]))
        parts.append(torch.stack(seen).double().mean(dim=0))
    shares = torch.cat(parts)  # (captions, positions)
    return torch.einsum("kbp,bp->k", _kinds(backend, captions, shares.shape[1]), shares) / len(captions)
