"""A new embedding in the WebUI's folder, to be trained."""

from __future__ import annotations

import torch
from modules import devices, sd_hijack, shared

from ..errors import UserError
from ..tokens import file_name, initializer_vectors
from .host_backend import HostBackend, refuse_kind, refuse_without_checkpoint
from .host_text import are_ordinary, home_of, text_encoders, write_word

MAX_VECTORS = 75


@torch.no_grad()
def create_embedding(name: str, initialization_text: str, vectors: int, overwrite: bool) -> str:
    """Write NAME.pt, or SDXL's NAME.safetensors, have the host read it, and return NAME as file names may have it.

    As the host's own, except that any torch can read what any torch wrote, and that a text such as "ktn", which is an
    entry of the vocabulary, gives that entry, see `tokens.initializer_vectors`. Otherwise vector i starts
    from the text's word i, the words spread evenly where there are more or fewer; without a text all are zero.

    Raises UserError for a name that is taken or empty, a number of vectors that does not fit in a prompt, or a text
    that is written as an entry and is none.
    """
    if not 1 <= vectors <= MAX_VECTORS:
        raise UserError(f"an embedding has 1 to {MAX_VECTORS} vectors, not {vectors}")
    refuse_without_checkpoint()
    model = shared.sd_model
    if model is None:
        raise UserError("no checkpoint is loaded; choose one at the top of the page")
    refuse_kind(model)
    stem = file_name(name)
    if home_of(model, stem).exists() and not overwrite:
        raise UserError(f"there is an embedding {stem} already; choose another name, or tick Overwrite Old Embedding")
    with devices.autocast():
        for encoder in text_encoders(model):
            encoder([""])  # with --medvram this brings it to the GPU
    width = sd_hijack.model_hijack.embedding_db.get_expected_shape()
    value = torch.zeros(vectors, width)
    if initialization_text.strip():
        words = initializer_vectors(HostBackend(), initialization_text)[:vectors].float().cpu()
        for index in range(vectors):
            value[index] = words[index * len(words) // vectors]
    write_word(model, stem, value, 0)
    sd_hijack.model_hijack.embedding_db.load_textual_inversion_embeddings(force_reload=True)
    return stem


def refuse_ordinary(name: str) -> None:
    """Raise UserError for a name that prompts are full of: an entry of the model's vocabulary, or several, as "my cat".

    The host reads an embedding wherever a prompt has the tokens of its name, one after another.
    """
    refuse_without_checkpoint()
    words = file_name(name).split()
    if are_ordinary(shared.sd_model, words):
        knows = "is a word" if len(words) == 1 else "are words"
        raise UserError(
            f"{' '.join(words)} {knows} that the model knows already, and would mean your concept in every prompt;"
            " choose a made-up name, such as mycat"
        )
