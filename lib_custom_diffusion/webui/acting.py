"""The deltas that act on the host's model right now, with their tokens, whatever model the host has at the moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from modules import devices, sd_hijack, sd_models
from modules.textual_inversion.textual_inversion import Embedding
from torch import Tensor, nn

from ..attention import projections
from ..delta import Delta
from ..errors import UserError
from ..injection import Injection
from .host_text import embedding_of, make_known


def host_unet() -> nn.Module | None:
    """The UNet of the host's model; None while there is no model (asking `shared.sd_model` would load one)."""
    model = sd_models.model_data.sd_model
    return None if model is None else model.model.diffusion_model


@dataclass(frozen=True)
class _Word:
    """A token of ours in the host's database, and the host's own embedding of that name, which it hides."""

    vectors: Tensor
    embedding: Embedding
    hidden: Embedding | None


class ActingDeltas:
    """Deltas with weights, injected into the host's UNet, and their tokens known to its text encoder.

    The host may put another checkpoint in place at any time (the refiner, hires-fix, by hand); `follow` moves the
    deltas over. The last injection is kept, so that the next picture with the same deltas starts at once.
    """

    def __init__(self) -> None:
        self._wanted: list[tuple[Delta, float]] = []
        self._injection: Injection | None = None
        self._unet: nn.Module | None = None
        self._rested: tuple[list[tuple[Delta, float]], nn.Module, Injection] | None = None
        self._words: dict[str, _Word] = {}

    def check(self, delta: Delta) -> None:
        """Raise UserError unless the delta and its tokens fit the host's model."""
        unet = host_unet()
        if unet is None or self._has_fitted(delta, unet):
            return
        delta.check_fits(projections(unet, "crossattn"))
        expected = sd_hijack.model_hijack.embedding_db.expected_shape
        for token, vectors in delta.embeddings.items():
            if vectors.shape[-1] != expected:
                raise UserError(
                    f"the delta does not fit this model: its word {token} is {vectors.shape[-1]} numbers wide, the"
                    f" model's words are {expected}"
                )

    def _has_fitted(self, delta: Delta, unet: nn.Module) -> bool:
        """Whether it acts on this UNet, or did in the picture before: looking through all its layers takes time."""
        known = list(self._wanted) if self._unet is unet else []
        if self._rested is not None and self._rested[1] is unet:
            known += self._rested[0]
        return any(delta is one for one, _ in known)

    def set(self, wanted: Sequence[tuple[Delta, float]]) -> None:
        """Make exactly these act. Raises UserError, and leaves none acting, if one does not fit the model."""
        if self._unet is not host_unet() or _identities(wanted) != _identities(self._wanted):
            self.clear()
            self._wanted = list(wanted)
            self.follow()
        self._make_words_known()

    def follow(self) -> None:
        """Act on the model that the host has now. Raises UserError, and leaves none acting, if one does not fit it."""
        unet = host_unet()
        if self._rested is not None and self._rested[1] is not unet:
            self._rested = None  # lets go of a model that the host has put away
        if not self._wanted or unet is None or self._unet is unet:
            return
        wanted = self._wanted
        self.clear()
        self._injection = self._rested_one(wanted, unet)
        if self._injection is None:
            for delta, _ in wanted:
                self.check(delta)
            self._injection = Injection(unet, [(delta, weight) for delta, weight in wanted if weight])
        self._unet, self._wanted = unet, wanted
        self._make_words_known()

    def clear(self) -> None:
        """Leave the host's model and its words as they were. A second call does nothing."""
        if self._injection is not None and self._unet is not None:
            self._injection.remove()
            self._rested = self._wanted, self._unet, self._injection
        self._injection, self._unet, self._wanted = None, None, []
        self._make_words_known()

    def _rested_one(self, wanted: Sequence[tuple[Delta, float]], unet: nn.Module) -> Injection | None:
        """The injection of the picture before, acting again, if it is the same."""
        rested, self._rested = self._rested, None
        if rested is None or rested[1] is not unet or _identities(rested[0]) != _identities(wanted):
            return None
        rested[2].resume()
        return rested[2]

    def _make_words_known(self) -> None:
        """Bring the host's words to those of the wanted deltas.

        The host empties its database whenever it reads its embeddings folder again, so what is there is looked up each
        time.
        """
        database, model = sd_hijack.model_hijack.embedding_db, sd_models.model_data.sd_model
        wanted = {token: vectors for delta, _ in self._wanted for token, vectors in delta.embeddings.items()}
        for token, word in list(self._words.items()):
            if database.word_embeddings.get(token) is not word.embedding:
                del self._words[token]
            elif wanted.get(token) is not word.vectors:
                del self._words[token]
                database.register_embedding_by_name(word.hidden, model, token)
        for token, vectors in wanted.items():
            if token not in self._words:
                embedding = embedding_of(model, token, vectors.to(devices.device, torch.float32))
                self._words[token] = _Word(vectors, embedding, database.word_embeddings.get(token))
                make_known(model, token, embedding)


def _identities(deltas: Sequence[tuple[Delta, float]]) -> list[tuple[int, float]]:
    return [(id(delta), weight) for delta, weight in deltas]
