"""The text encoders of the WebUI's model, one or two: what they make of captions, and words that stand for vectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from modules import devices, sd_hijack, shared
from modules.textual_inversion.textual_inversion import Embedding
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..backend import Conditioning, Sizes
from ..storage import write_atomically
from ..text_features import lengthened
from ..tokens import embedding_pt, embedding_sdxl, file_name

_KEYS = ("clip_l", "clip_g")
"""Of the two parts of a word of SDXL: CLIP's, then OpenCLIP's."""


def text_encoders(model: Any) -> list[Any]:
    """The one of SD 1 and 2, or SDXL's CLIP and OpenCLIP."""
    encoder = model.cond_stage_model
    return [each for each in getattr(encoder, "embedders", [encoder]) if hasattr(each, "tokenize")]


def encode(model: Any, captions: Sequence[str], sizes: Sequence[Sizes]) -> Conditioning:
    """Conditioning of captions, with gradients of the words that are in the host's database.

    sizes: of the captions' pictures; not read by SD 1 and 2.
    """
    # One at a time, as the host itself does: of several at once its transformers make no numbers on recent torch.
    encoded = [_encoded(model, caption) for caption in captions]
    longest = max(features.shape[1] for features, _ in encoded)
    if any(features.shape[1] < longest for features, _ in encoded):
        nothing, _ = _encoded(model, "")
        encoded = [(lengthened(features, nothing, longest), pooled) for features, pooled in encoded]
    crossattn = torch.cat([features for features, _ in encoded])
    if not model.is_sdxl:
        return Conditioning(crossattn)
    pooled = torch.cat([pooled for _, pooled in encoded])
    return Conditioning(crossattn, torch.cat([pooled, _size_features(model, sizes).to(pooled)], dim=1))


def _encoded(model: Any, caption: str) -> tuple[Tensor, Tensor]:
    """Text features (1, positions, width) of all encoders side by side, and the pooled text (1, width).

    The encoders are asked one by one, as sgm's own conditioner keeps no gradients of them.
    """
    features, pooled = [], torch.zeros(1, 0)
    for encoder in text_encoders(model):
        made = encoder([caption])
        if isinstance(made, tuple):  # with what OpenCLIP pools
            made, pooled = made
        features.append(made)
    return torch.cat(features, dim=-1), pooled


def _size_features(model: Any, sizes: Sequence[Sizes]) -> Tensor:
    """What sgm's conditioner makes of pictures' sizes, (pictures, numbers): height before width, top before left."""
    numbers = {
        "original_size_as_tuple": [each.original[::-1] for each in sizes],
        "crop_coords_top_left": [each.corner[::-1] for each in sizes],
        "target_size_as_tuple": [each.target[::-1] for each in sizes],
    }
    readers = [each for each in model.cond_stage_model.embedders if each.input_key in numbers]
    return torch.cat(
        [reader(torch.tensor(numbers[reader.input_key], device=devices.device).float()) for reader in readers], dim=1
    )


def reads_only_known_sizes(model: Any) -> bool:
    """Whether SDXL's conditioner asks for no more than a text and the sizes; the refiner's asks for a score as well."""
    return len(text_encoders(model)) == 2


@torch.no_grad()
def entry_vector(model: Any, entry: str) -> Tensor | None:
    """Vector (1, width) of the vocabulary entry spelled exactly so, of all text encoders; None if there is none."""
    rows = []
    for encoder in text_encoders(model):
        vocabulary, table = _vocabulary_and_table(encoder)
        number = vocabulary.get(entry)
        if number is None:
            return None
        rows.append(table[number : number + 1].detach().float())
    return torch.cat(rows, dim=1)


def _vocabulary_and_table(encoder: Any) -> tuple[Mapping[str, int], Tensor]:
    if hasattr(encoder, "tokenizer"):  # OpenAI's CLIP by transformers
        table = encoder.wrapped.transformer.text_model.embeddings.token_embedding
        return encoder.tokenizer.get_vocab(), table.wrapped.weight
    from modules import sd_hijack_open_clip

    words = getattr(encoder, "vocabulary", sd_hijack_open_clip.tokenizer.encoder)  # see own_vocabulary
    return words, encoder.wrapped.model.token_embedding.wrapped.weight


def are_ordinary(model: Any, words: Sequence[str]) -> bool:
    """Whether all these are entries of the model's vocabulary, which prompts are full of."""
    return all(len(ids) == 1 for ids in model.cond_stage_model.tokenize(words))


def database() -> Any:
    """The host's words."""
    return sd_hijack.model_hijack.embedding_db


def word_vectors(embedding: Embedding) -> Tensor:
    """The vectors (n, width) of a word of the host's, those of SDXL's encoders side by side."""
    vec = embedding.vec
    joined = torch.cat([vec[key] for key in _KEYS], dim=1) if isinstance(vec, dict) else vec
    return joined.detach().float().clone()


def embedding_of(model: Any, token: str, vectors: Tensor) -> Embedding:
    """A word as the host has it in its database, from vectors (n, width)."""
    embedding = Embedding(dict(zip(_KEYS, _parts(model, vectors))) if model.is_sdxl else vectors, token)
    embedding.vectors, embedding.shape = vectors.shape
    return embedding


def _parts(model: Any, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """CLIP's and OpenCLIP's part of a word of SDXL. Its refiner has OpenCLIP alone, and takes the same words."""
    _, table = _vocabulary_and_table(text_encoders(model)[-1])
    left = vectors.shape[1] - table.shape[1]
    return vectors[:, :left], vectors[:, left:]


def home_of(model: Any, name: str) -> Path:
    """The file that a word of that name is kept in: the one in its folder that the host read, if there is one."""
    folder, suffix = Path(shared.cmd_opts.embeddings_dir), ".safetensors" if model.is_sdxl else ".pt"
    known = database().word_embeddings.get(name)
    read_from = Path((known and known.filename) or "")
    if read_from.suffix == suffix and folder.resolve() in read_from.resolve().parents:
        return read_from
    return folder / f"{file_name(name)}{suffix}"


def write_word(model: Any, name: str, vectors: Tensor, step: int) -> Path:
    """Write a word's file as the host reads it: NAME.pt, or SDXL's NAME.safetensors; returns its path."""
    path = home_of(model, name)
    content = embedding_sdxl(_parts(model, vectors), step) if model.is_sdxl else embedding_pt(vectors, name, step)
    write_atomically(path, content)
    return path


def steps_of(embedding: Embedding) -> int:
    """How many steps a word was trained; 0 if its file does not tell."""
    if embedding.step is not None or not str(embedding.filename).endswith(".safetensors"):
        return int(embedding.step or 0)
    try:
        with safe_open(embedding.filename, "pt") as file:
            return int((file.metadata() or {}).get("step", 0))
    except (OSError, ValueError, SafetensorError):
        return 0


def make_known(model: Any, token: str, embedding: Embedding) -> None:
    """Have the host know a word, also where punctuation follows it: `<new1>, on a beach`.

    The tokenizer takes neighbouring punctuation for one word, in which the last character of `<new1>` has another
    number than at a word's end; the host looks embeddings up by those numbers.
    """
    words = database()
    words.register_embedding_by_name(embedding, model, token)
    alone, followed = model.cond_stage_model.tokenize([token, f"{token},"])
    ids = followed[:-1]
    if ids and ids != alone and ids[0] == alone[0]:
        known = [*words.ids_lookup[ids[0]], (ids, embedding)]
        words.ids_lookup[ids[0]] = sorted(known, key=lambda entry: len(entry[0]), reverse=True)


@contextmanager
def standing_for(vectors: Mapping[str, Tensor], model: nn.Module) -> Iterator[None]:
    """Within the block, each named word has the given vectors (n, width)."""
    words = database()
    hidden = {}
    try:
        for token, value in vectors.items():
            hidden[token] = words.word_embeddings.get(token)
            make_known(model, token, embedding_of(model, token, value))
        yield
    finally:
        for token, own in hidden.items():
            words.register_embedding_by_name(own, model, token)


@contextmanager
def brackets_as_text() -> Iterator[None]:
    """Within the block the host reads `(word:1.2)`, `[word]` and BREAK as text, as captions have them elsewhere."""
    settings, chosen = shared.opts.data, shared.opts.emphasis
    settings["emphasis"] = "None"
    try:
        yield
    finally:
        if settings["emphasis"] == "None":  # not chosen anew meanwhile
            settings["emphasis"] = chosen
