"""<delta:NAME:0.8> in prompts of the WebUI."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from modules import extra_networks, script_callbacks

from ..delta import Delta
from ..errors import UserError
from .acting import ActingDeltas
from .host_backend import forget_encoded_prompts
from .library import DeltaLibrary

HASHES = "Delta hashes"
_TAG = re.compile(r"<delta:([^:>]+)")


class DeltaNetwork(extra_networks.ExtraNetwork):
    """The extra network `delta`. What cannot be used is left out, and the message under the picture says so."""

    def __init__(self, library: DeltaLibrary) -> None:
        super().__init__("delta")
        self.library = library
        self.acting = ActingDeltas()
        self._processing: Any = None
        self._read: dict[str, Delta] = {}

    def activate(self, p: Any, params_list: Sequence[extra_networks.ExtraNetworkParams]) -> None:
        """Have the deltas of the prompt act, and only those."""
        if p.prompts is None:
            return  # not a picture: the host encodes the empty prompt, perhaps while it changes models in mid-picture
        self._processing = p
        wanted: list[tuple[Delta, float]] = []
        hashes: dict[str, str] = getattr(p, "delta_hashes", {}) if getattr(p, "is_hr_pass", False) else {}
        for params in params_list:
            try:
                name, weight = _name_and_weight(params)
                on_disk = self.library.find(name)
                delta = self.library.load(on_disk)
                self.acting.check(delta)
            except UserError as error:
                p.comment(f"Custom Diffusion: <delta:{':'.join(map(str, params.items))}> was left out: {error}")
                continue
            for token in _shared_tokens(delta, wanted):
                p.comment(f"Custom Diffusion: several deltas bring the word {token}; the one of {name} is used")
            wanted.append((delta, weight))
            hashes[_plain(name)] = on_disk.shorthash
            self._forget_prompts_of(p, name, delta)
        self.acting.set(wanted)
        p.delta_hashes = hashes
        if any(hashes.values()):
            p.extra_generation_params[HASHES] = ", ".join(f"{name}: {value}" for name, value in hashes.items() if value)

    def deactivate(self, p: Any) -> None:
        """Leave the host as it was."""
        self._processing = None
        self.acting.clear()

    def follow_model(self, *_: Any) -> None:
        """Move to the model that the host has put in place of the one before."""
        try:
            self.acting.follow()
        except UserError as error:
            if self._processing is not None:
                self._processing.comment(f"Custom Diffusion: the deltas were left out from here on: {error}")

    def before_step(self, params: script_callbacks.CFGDenoiserParams) -> None:
        """The same, for a model that the host had kept loaded and put back without telling."""
        self.follow_model()

    def _forget_prompts_of(self, p: Any, name: str, delta: Delta) -> None:
        """The host keeps encoded prompts by their text: make it encode anew where a word's vectors have changed."""
        if self._read.get(name, delta) is not delta:
            forget_encoded_prompts(p)
        self._read[name] = delta

    def restore_names(self, _infotext: str, values: dict[str, Any]) -> None:
        """In pasted infotext, call each delta by the name that the file of its hash has here."""
        names = {name: self.library.named_by_hash(value) for name, value in _parse_hashes(values).items()}

        def renamed(tag: re.Match[str]) -> str:
            return f"<delta:{names.get(_plain(tag[1])) or tag[1]}"

        for field in ("Prompt", "Hires prompt"):
            if field in values:
                values[field] = _TAG.sub(renamed, values[field])


def _name_and_weight(params: extra_networks.ExtraNetworkParams) -> tuple[str, float]:
    name = str(params.positional[0]).strip()
    text = params.positional[1] if len(params.positional) > 1 else "1"
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise UserError(f"its weight should be a number, not {text!r}")
    return name, weight


def _shared_tokens(delta: Delta, others: Sequence[tuple[Delta, float]]) -> list[str]:
    return sorted(set(delta.embeddings) & {t for other, _ in others if other is not delta for t in other.embeddings})


def _plain(name: str) -> str:
    """The name without what separates names and hashes in infotext."""
    return name.translate(str.maketrans("", "", ":,"))


def _parse_hashes(values: Mapping[str, Any]) -> dict[str, str]:
    pairs = [entry.rpartition(":") for entry in str(values.get(HASHES, "")).split(",") if ":" in entry]
    return {name.strip(): value.strip() for name, _, value in pairs}
