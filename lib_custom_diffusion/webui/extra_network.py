"""<delta:NAME:0.8> in prompts of the WebUI."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from modules import extra_networks, script_callbacks, sd_models
from torch import Tensor

from ..delta import Delta
from ..errors import UserError
from ..prompt_remarks import lacking, remarks, stray_tags, without_deltas
from ..prompt_tags import weight_of
from .acting import ActingDeltas
from .delta_library import DeltaLibrary
from .host_backend import forget_encoded_prompts
from .host_text import are_ordinary, database

HASHES = "Delta hashes"
_TAG = re.compile(r"<delta:([^:>]+)")


class DeltaNetwork(extra_networks.ExtraNetwork):
    """The extra network `delta`. What cannot be used is left out, and the message under the picture says so."""

    def __init__(self, library: DeltaLibrary) -> None:
        super().__init__("delta")
        self.deltas = library
        self.acting = ActingDeltas()
        self._processing: Any = None
        self._words: dict[str, Tensor] = {}
        """Those that the host's encoded prompts were encoded with."""

    def activate(self, p: Any, params_list: Sequence[extra_networks.ExtraNetworkParams]) -> None:
        """Have the deltas of the prompt act, and only those."""
        if p.prompts is None:
            return  # not a picture: the host encodes the empty prompt, perhaps while it changes models in mid-picture
        self._processing = p
        wanted: list[tuple[Delta, float]] = []
        hashes: dict[str, str] = getattr(p, "delta_hashes", {}) if getattr(p, "is_hr_pass", False) else {}
        for params in params_list:
            try:
                # The host takes a name that holds a "=" for an argument, so its own reading of them is left alone.
                name, *arguments = params.items
                name, weight = str(name).strip(), weight_of(arguments)
                on_disk = self.deltas.find(name)
                delta = self.deltas.load(on_disk)
                self.acting.check(delta)
            except UserError as error:
                p.comment(f"Custom Diffusion: <delta:{':'.join(map(str, params.items))}> was left out: {error}")
                continue
            if any(delta is other for other, _ in wanted):
                weights = weight + sum(other_weight for other, other_weight in wanted if other is delta)
                p.comment(f"Custom Diffusion: {name} is in the prompt several times; its weights add up to {weights:g}")
            for token in _shared_tokens(delta, wanted):
                p.comment(f"Custom Diffusion: several deltas bring the word {token}; the one of {name} is used")
            wanted.append((delta, weight))
            hashes[_plain(name)] = on_disk.shorthash
        if not getattr(p, "is_hr_pass", False):
            for sentence in self._remarks(p, wanted):
                p.comment(f"Custom Diffusion: {sentence}")
        self.acting.set(wanted)
        self._forget_prompts_of_other_words(p, wanted)
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

    def _remarks(self, p: Any, wanted: Sequence[tuple[Delta, float]]) -> Iterator[str]:
        """What is said of a batch's prompts; the host reads words whatever their case.

        Without a delta, of words that one in the folder has; other brackets may be other extensions'. Of ordinary ones,
        which prompts are full of, nothing.
        """
        yield from (
            f"<{name}:…> is not known; write <delta:…>, in small letters."
            for name in getattr(p, "extra_network_data", None) or ()
            if name.lower() == "delta" != name
        )
        prompts, negative = "\n".join(p.prompts), "\n".join(p.negative_prompts or ())
        yield from stray_tags(prompts, negative)
        text = f"{prompts}\n{without_deltas(negative)}"
        named = [(list(delta.embeddings), weight) for delta, weight in wanted]
        own, embeddings = [word for words, _ in named for word in words], list(database().word_embeddings)
        elsewhere = lacking(text, self.deltas.words(), own, embeddings, str.lower)
        model = sd_models.model_data.sd_model
        yield from (sentence for word, sentence in elsewhere.items() if not are_ordinary(model, word.split()))
        if wanted:
            yield from remarks(text, named, [*embeddings, *elsewhere], ", and no embedding", str.lower)

    def _forget_prompts_of_other_words(self, p: Any, wanted: Sequence[tuple[Delta, float]]) -> None:
        """The host keeps encoded prompts by their text: make it encode anew where words have come, changed or gone."""
        words = {token: vectors for delta, _ in wanted for token, vectors in delta.embeddings.items()}
        if not _same(words, self._words):
            forget_encoded_prompts(p)
        self._words = words

    def restore_names(self, _infotext: str, values: dict[str, Any]) -> None:
        """In pasted infotext, call each delta by the name that the file of its hash has here."""
        names = {name: self.deltas.named_by_hash(value) for name, value in _parse_hashes(values).items()}

        def renamed(tag: re.Match[str]) -> str:
            return f"<delta:{names.get(_plain(tag[1])) or tag[1]}"

        for field in ("Prompt", "Hires prompt"):
            if field in values:
                values[field] = _TAG.sub(renamed, values[field])


def _same(words: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    return words.keys() == others.keys() and all(torch.equal(vectors, others[word]) for word, vectors in words.items())


def _shared_tokens(delta: Delta, others: Sequence[tuple[Delta, float]]) -> list[str]:
    return sorted(set(delta.embeddings) & {t for other, _ in others if other is not delta for t in other.embeddings})


def _plain(name: str) -> str:
    """The name without what separates names and hashes in infotext."""
    return name.translate(str.maketrans("", "", ":,"))


def _parse_hashes(values: Mapping[str, Any]) -> dict[str, str]:
    pairs = [entry.rpartition(":") for entry in str(values.get(HASHES, "")).split(",") if ":" in entry]
    return {name.strip(): value.strip() for name, _, value in pairs}
