"""A Delta acting on a live UNet, beside its weights: y = Wx + Δx.

Weights are never written, so leaving restores the outputs bit for bit, and whatever else acts on the same layers (a
LoRA that rewrites them, weights moved between devices or kept in 8 bits) is undisturbed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import READ_TEXT, Projection, cross_attentions, projections, refuse_bypassed
from .delta import Delta, Entry, Factors
from .errors import UserError
from .hooks import Hooks

_PROMPTS_KEPT = 2  # a host may ask for the prompt and the negative prompt in turn


class Injection:
    """Deltas with weights, acting on a UNet from creation until `remove` (or the end of the `with` block).

    Several deltas on one layer become one term beforehand, so a layer costs one product more however many act on it.
    One that nothing refers to any more has left as well. See `hooks.Hooks` for copies of the UNet and compiled ones.

    Raises UserError, and changes nothing, if a delta does not fit the UNet, a weight is not finite, or the UNet's
    attention goes round its projections (`attention.refuse_bypassed`); if it does so later, a pass of the UNet raises.
    """

    def __init__(self, unet: nn.Module, deltas: Sequence[tuple[Delta, float]]) -> None:
        layers = projections(unet, "crossattn")
        for delta, weight in deltas:
            delta.check_fits(layers)
            if not math.isfinite(weight):
                raise UserError(f"the weight of a delta should be a finite number, not {weight}")
        self._unet = unet
        self._with_processors = [each for each in cross_attentions(unet) if hasattr(each, "processor")]
        refuse_bypassed(self._with_processors)
        self._terms: list[tuple[nn.Module, _FixedTerm]] = []
        self._prompts = _LastPrompts()
        self._hooks: Hooks | None = None
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
        if self._hooks is None:
            attentions = self._with_processors
            before = [(self._unet, lambda *_: refuse_bypassed(attentions))] if attentions else []
            self._hooks = Hooks(self._terms, before)

    def remove(self) -> None:
        """Leave the UNet as it was. A second call does nothing."""
        if self._hooks is not None:
            self._hooks.remove()
        self._hooks = None
        self._prompts.forget()

    def __enter__(self) -> Injection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


class TrainableDelta:
    """A delta being learned, zero at first: float32 parameters beside each projection, acting until `remove`.

    rank: 0 for one parameter (out, in) a projection, called by its key; else two, Δ = US · Vh: KEY.US (out, rank), zero
    at first, and KEY.Vh (rank, in), random at first by `seed`. There is no further factor; elements of Vh have the
    variance 1 / rank, so that an optimizer's first step, which is as large for all elements of US, moves those of Δ as
    it would move a full matrix's: learning rates mean the same at every rank.

    Under autocast the products run in its precision while the parameters and their gradients stay float32. Of the
    start token nothing is learned, as in the paper's code: see `_LearnedTextTerm`.
    """

    def __init__(self, layers: Mapping[str, Projection], device: torch.device, rank: int = 0, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        # UNets of LDM's kind have their middle before the output, diffusers' have it last: all draw in one order.
        in_order = sorted(layers, key=lambda key: ".middle_block." in key)
        drawn = {key: _parameters(key, layers[key], device, rank, generator) for key in in_order}
        self.parameters: dict[str, nn.Parameter] = {}
        for key in layers:
            self.parameters |= drawn[key]
        self._factors = {key: tuple(drawn[key].values()) for key in layers}
        self._hooks = Hooks(
            (layer.module, (_LearnedTextTerm if layer.role in READ_TEXT else _LearnedTerm)(self._factors[key]))
            for key, layer in layers.items()
        )

    def entries(self) -> dict[str, Entry]:
        """What has been learned, on the CPU in float32."""
        learned = {key: [factor.detach().cpu().clone() for factor in factors] for key, factors in self._factors.items()}
        return {key: each[0] if len(each) == 1 else Factors(*each) for key, each in learned.items()}

    def remove(self) -> None:
        """Leave the UNet as it was. A second call does nothing."""
        self._hooks.remove()


def parameter_shapes(layers: Mapping[str, Projection], rank: int = 0) -> dict[str, tuple[int, int]]:
    """The shapes of a `TrainableDelta`'s parameters, by name."""
    return {name: shape for key, layer in layers.items() for name, shape in _shapes(key, layer, rank).items()}


def _shapes(key: str, layer: Projection, rank: int) -> dict[str, tuple[int, int]]:
    """Those of one projection, by the names of the delta file."""
    out, width = layer.shape
    if rank == 0:
        return {key: (out, width)}
    rank = min(rank, out, width)
    return {f"{key}.US": (out, rank), f"{key}.Vh": (rank, width)}


def _parameters(
    key: str, layer: Projection, device: torch.device, rank: int, generator: torch.Generator
) -> dict[str, nn.Parameter]:
    """What is learned of one projection, all zero but Vh."""
    shapes = _shapes(key, layer, rank)
    made = {name: nn.Parameter(torch.zeros(shape, device=device)) for name, shape in shapes.items()}
    if rank:
        name = f"{key}.Vh"
        drawn = torch.randn(shapes[name], generator=generator) * shapes[name][0] ** -0.5
        made[name] = nn.Parameter(drawn.to(device))
    return made


class _LearnedTerm:
    """A forward hook that adds Δx to a layer's output, for Δ or its two factors."""

    def __init__(self, factors: tuple[nn.Parameter, ...]) -> None:
        self.factors = factors

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + self.change(inputs[0])

    def change(self, x: Tensor) -> Tensor:
        """Δx, in x's precision."""
        for factor in reversed(self.factors):
            x = F.linear(x, factor.to(x.dtype))
        return x


class _LearnedTextTerm(_LearnedTerm):
    """The same for keys and values (batch, positions, out), with no gradient through position 0.

    There stands the start token, whose feature is the same in every prompt because the text encoder reads from left to
    right: what is learned there moves every picture. The delta acts on it all the same, in training as in drawing.
    """

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        change = self.change(inputs[0])
        return output + torch.cat([change[:, :1].detach(), change[:, 1:]], dim=1)


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
        matrices = self.matrices  # another thread may be at another precision
        if matrices[0].dtype != output.dtype or matrices[0].device != output.device:
            self.matrices = matrices = tuple(matrix.to(output.device, output.dtype) for matrix in self.given)
        *inner, outer = matrices
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
        if torch.is_grad_enabled() or not x.is_cpu or _is_compiling():
            return super().__call__(layer, inputs, output)
        changes = self.prompts.changes(x, self)
        change = changes.get(self)
        if change is None or change.dtype != output.dtype:
            change = changes[self] = self.change(output, x)
        return output.add_(change)


class _Prompt(NamedTuple):
    """One prompt (batch, positions, width), and weight · Δx of each layer that has read it."""

    x: Tensor
    changes: dict[_FixedTextTerm, Tensor]


class _Pass(NamedTuple):
    """One pass of the UNet, whose layers are all given the same tensor: by whom it was asked for, and what it holds."""

    x: Tensor
    version: int
    readers: set[_FixedTextTerm]
    changes: dict[_FixedTextTerm, Tensor]


class _LastPrompts:
    """What the layers made of the last few prompts, by what is in them: a host hands over a new tensor in each step.

    Each attribute is replaced as a whole, as several threads may draw on one UNet.
    """

    def __init__(self) -> None:
        self._kept: tuple[_Prompt, ...] = ()
        self._pass: _Pass | None = None

    def changes(self, x: Tensor, reader: _FixedTextTerm) -> dict[_FixedTextTerm, Tensor]:
        """weight · Δx of each layer that has read this x.

        x is compared with what is known once a pass: a layer that asks a second time is in the next one.
        """
        last = self._pass
        if last is not None and x is last.x and x._version == last.version and reader not in last.readers:
            last.readers.add(reader)
            return last.changes
        kept = self._kept
        changes = next((changes for known, changes in kept if torch.equal(known, x)), None)
        if changes is None:
            changes = {}
            self._kept = (*kept[1 - _PROMPTS_KEPT :], _Prompt(x.clone(), changes))
        if not x.is_inference():  # of those it is not known if they changed
            self._pass = _Pass(x, x._version, {reader}, changes)
        return changes

    def forget(self) -> None:
        """Let go of all that was kept."""
        self._kept, self._pass = (), None


def _is_compiling() -> bool:
    """Whether torch.compile is looking. The WebUI's torch 2.1 cannot say, and compiles around what it cannot follow."""
    return hasattr(torch.compiler, "is_compiling") and torch.compiler.is_compiling()


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
