"""A Delta acting on a live UNet, beside its weights: y = Wx + Δx.

Weights are never written, so leaving restores the outputs bit for bit, and whatever else acts on the same layers (a
LoRA that rewrites them, weights moved between devices or kept in 8 bits) is undisturbed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from .attention import READ_TEXT, Projection, projections
from .delta import Delta, Entry, Factors

_PROMPTS_KEPT = 2  # a host may ask for the prompt and the negative prompt in turn


class Injection:
    """Deltas with weights, acting on a UNet from creation until `remove` (or the end of the `with` block).

    Several deltas on one layer become one term beforehand, so a layer costs one product more however many act on it.
    Raises UserError, and changes nothing, if a delta does not fit the UNet.
    """

    def __init__(self, unet: nn.Module, deltas: Sequence[tuple[Delta, float]]) -> None:
        layers = projections(unet, "crossattn")
        for delta, _ in deltas:
            delta.check_fits(layers)
        self._terms: list[tuple[nn.Module, _FixedTerm]] = []
        self._prompts = _LastPrompts()
        self._handles: list[RemovableHandle] = []
        for key, layer in layers.items():
            terms = [(delta.entries[key], weight) for delta, weight in deltas if key in delta.entries]
            if terms:
                entry, weight = _combined(terms)
                reads_text = layer.role in READ_TEXT
                term = _FixedTextTerm(entry, weight, self._prompts) if reads_text else _FixedTerm(entry, weight)
                self._terms.append((layer.module, term))
        self.resume()

    def resume(self) -> None:
        """Act again after `remove`, without preparing anything anew. A second call does nothing."""
        if not self._handles:
            self._handles = [module.register_forward_hook(term) for module, term in self._terms]

    def remove(self) -> None:
        """Leave the UNet as it was. A second call does nothing."""
        while self._handles:
            self._handles.pop().remove()
        self._prompts.forget()

    def __enter__(self) -> Injection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


class TrainableDelta:
    """A delta being learned: one zero-initialised float32 parameter (out, in) a projection, acting until `remove`.

    Under autocast the products run in its precision while the parameters and their gradients stay float32. Of the
    start token nothing is learned, as in the paper's code: see `_LearnedTextTerm`.
    """

    def __init__(self, layers: Mapping[str, Projection], device: torch.device) -> None:
        self.parameters = {
            key: nn.Parameter(torch.zeros(layer.shape, dtype=torch.float32, device=device))
            for key, layer in layers.items()
        }
        self._handles = [
            layer.module.register_forward_hook(
                (_LearnedTextTerm if layer.role in READ_TEXT else _LearnedTerm)(self.parameters[key])
            )
            for key, layer in layers.items()
        ]

    def remove(self) -> None:
        """Leave the UNet as it was. A second call does nothing."""
        while self._handles:
            self._handles.pop().remove()


class _LearnedTerm:
    """A forward hook that adds Δx to a layer's output."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        return output + F.linear(x, self.parameter.to(x.dtype))


class _LearnedTextTerm(_LearnedTerm):
    """The same for keys and values (batch, positions, out), with no gradient through position 0.

    There stands the start token, whose feature is the same in every prompt because the text encoder reads from left to
    right: what is learned there moves every picture. The delta acts on it all the same, in training as in drawing.
    """

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x, delta = inputs[0], self.parameter.to(inputs[0].dtype)
        start = F.linear(x[:, :1], delta.detach()).detach()
        return output + torch.cat([start, F.linear(x[:, 1:], delta)], dim=1)


class _FixedTerm:
    """A forward hook that adds weight · Δx for a fixed Δ, which follows the output's device and precision.

    Without gradients it is added in the output's own memory, which no one else has seen yet: one kernel a layer. Under
    autocast the output, not the input, has the precision that the layer computes in.
    """

    def __init__(self, entry: Entry, weight: float) -> None:
        self.given: tuple[Tensor, ...] = (entry.vh, entry.us) if isinstance(entry, Factors) else (entry,)
        self.matrices: tuple[Tensor, ...] = self.given  # as the last output was
        self.weight = weight

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        if torch.is_grad_enabled() or not output.is_contiguous():
            return output + self.change(output, x)
        outer, x = self._up_to_the_last(output, x)
        output.view(-1, output.shape[-1]).addmm_(x.reshape(-1, x.shape[-1]), outer.t(), alpha=self.weight)
        return output

    def change(self, output: Tensor, x: Tensor) -> Tensor:
        """weight · Δx, in the output's precision and on its device."""
        outer, x = self._up_to_the_last(output, x)
        return self.weight * F.linear(x, outer)

    def _up_to_the_last(self, output: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The last matrix, and x multiplied by those before it."""
        if self.matrices[0].dtype != output.dtype or self.matrices[0].device != output.device:
            self.matrices = tuple(matrix.to(output.device, output.dtype) for matrix in self.given)
        *inner, outer = self.matrices
        x = x.to(output.dtype)
        for matrix in inner:
            x = F.linear(x, matrix)
        return outer, x


class _FixedTextTerm(_FixedTerm):
    """The same for keys and values, which read the prompt: it stays from step to step, so on a CPU Δx is kept.

    On a GPU, comparing prompts would make the host wait for the device, and the product is hidden there anyway.
    """

    def __init__(self, entry: Entry, weight: float, prompts: _LastPrompts) -> None:
        super().__init__(entry, weight)
        self.prompts = prompts

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        if torch.is_grad_enabled() or not x.is_cpu:
            return super().__call__(layer, inputs, output)
        changes = self.prompts.changes(x)
        change = changes.get(self)
        if change is None or change.dtype != output.dtype:
            change = changes[self] = self.change(output, x)
        return output.add_(change)


class _LastPrompts:
    """What the layers made of the last few prompts, by what is in them: a host hands over a new tensor in each step."""

    def __init__(self) -> None:
        self._kept: deque[tuple[Tensor, dict[_FixedTextTerm, Tensor]]] = deque(maxlen=_PROMPTS_KEPT)
        self._last: Tensor | None = None
        self._last_version = 0
        self._last_changes: dict[_FixedTextTerm, Tensor] = {}

    def changes(self, x: Tensor) -> dict[_FixedTextTerm, Tensor]:
        """weight · Δx of each layer that has read this x."""
        if x is self._last and x._version == self._last_version:
            return self._last_changes  # the layers of one step are given the same tensor
        changes = next((changes for known, changes in self._kept if torch.equal(known, x)), None)
        if changes is None:
            changes = {}
            self._kept.append((x.clone(), changes))
        if not x.is_inference():  # of those it is not known if they changed
            self._last, self._last_version, self._last_changes = x, x._version, changes
        return changes

    def forget(self) -> None:
        """Let go of all that was kept."""
        self._kept.clear()
        self._last, self._last_changes = None, {}


def _combined(terms: Sequence[tuple[Entry, float]]) -> tuple[Entry, float]:
    """One entry and its weight that do the same: a single one as it is, so that a switch to it copies nothing.

    Several become their sum, kept as factors (side by side) where that costs fewer multiplications than a dense matrix.
    """
    out_features, in_features = terms[0][0].shape
    factors = [(entry, weight) for entry, weight in terms if isinstance(entry, Factors)]
    rank = sum(entry.us.shape[1] for entry, _ in factors)
    cheap = rank * (out_features + in_features) < out_features * in_features
    if len(terms) == 1 and cheap:
        return terms[0]
    if len(factors) == len(terms) and cheap:
        us = torch.cat([entry.us.float() * weight for entry, weight in factors], dim=1)
        return Factors(us, torch.cat([entry.vh.float() for entry, _ in factors])), 1.0
    total = torch.zeros(out_features, in_features)
    for entry, weight in terms:
        total.add_(entry.dense() if isinstance(entry, Factors) else entry.float().cpu(), alpha=weight)
    return total, 1.0
