"""The model that files with full weights, or with names that depend on its layout, are read and written against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from ..attention import family, is_toy, projections, text_widths
from ..delta import Delta, Entry
from ..errors import UserError

_STANDARD_RESNETS = 2
_STANDARD = ("sd1", "sd2", "sdxl", "")


@dataclass(frozen=True)
class Base:
    """weights (out, in) and biases (out,) of a model's cross-attention by key, float32 on the CPU.

    resnets: of each down block; it decides how LDM's and diffusers' names of one layer belong together.
    """

    weights: Mapping[str, Tensor]
    biases: Mapping[str, Tensor]
    resnets: int = _STANDARD_RESNETS

    @classmethod
    def of(cls, unet: nn.Module) -> Base:
        """From a live UNet of either layout."""
        layers = projections(unet, "crossattn")
        weights = {key: layer.module.weight.detach().float().cpu() for key, layer in layers.items()}
        biases = {
            key: layer.module.bias.detach().float().cpu()
            for key, layer in layers.items()
            if layer.module.bias is not None
        }
        return cls(weights, biases, _resnets(unet))

    def weight(self, key: str, like: Tensor) -> Tensor:
        """The weight of a layer. Raises UserError if the model has no such layer of that shape."""
        if key not in self.weights:
            raise UserError(f"the file does not fit this model: it has no layer {key}")
        if self.weights[key].shape != like.shape:
            shapes = f"{tuple(like.shape)} in the file, {tuple(self.weights[key].shape)} in the model"
            raise UserError(f"the file does not fit this model: {key} is {shapes}")
        return self.weights[key]


def _resnets(unet: nn.Module) -> int:
    if hasattr(unet, "down_blocks"):
        return len(unet.down_blocks[0].resnets)  # type: ignore[index, union-attr]
    count = getattr(unet, "num_res_blocks", _STANDARD_RESNETS)  # LDM: one number, or one a level
    return int(count if isinstance(count, int) else count[0])


def give_model(architecture: str = "") -> str:
    """What to do where the model is missing, which has that architecture, if it is known."""
    toy = " toy-xl" if text_widths(architecture) else " toy"
    return f"give the model it was trained on by --model{toy if is_toy(architecture) else ''}"


def needed(
    base: Base | None, what: str, why: str = "holds full weights, not differences", architecture: str = ""
) -> Base:
    """The base. Raises UserError if there is none. architecture: of the delta, if it is known."""
    if base is None:
        raise UserError(f"{what} {why}; {give_model(architecture)}")
    return base


def difference(key: str, weight: Tensor, base: Base) -> Entry:
    """What training added to a full weight (out, in)."""
    return weight - base.weight(key, weight)


def resnets_of(delta: Delta, base: Base | None) -> int:
    """Resnets of each down block: the base's, or two as in all of SD 1, SD 2 and SDXL.

    Raises UserError for a delta of another architecture without a base.
    """
    if base is not None:
        return base.resnets
    if delta.provenance.architecture not in _STANDARD:
        raise UserError(
            f"how layers are named in a {family(delta.provenance.architecture)} depends on the model;"
            f" {give_model(delta.provenance.architecture)}"
        )
    return _STANDARD_RESNETS
