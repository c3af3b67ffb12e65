"""Modifier tokens: the new words, their vectors, and the files other programs keep them in."""

from __future__ import annotations

import io
import re
import unicodedata
import zipfile
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from .attention import text_widths
from .backend import Backend
from .errors import UserError
from .storage import safetensors_bytes

DEFAULT_INITIALIZERS = "ktn+pll+ucd"
"""Rare entries of CLIP's vocabulary that the paper's code starts new words from."""


_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_LONGEST_NAME = 200  # bytes; file systems take 255, with what is put before and after


_END_OF_WORD = "</w>"  # closes the entries of CLIP's vocabulary that end a word
_TOKEN = re.compile(r"<[^<>\s:]+>")


def tokens_in(prompt: str) -> list[str]:
    """The words in angle brackets that a prompt has, such as <new1>, each once."""
    return list(dict.fromkeys(_TOKEN.findall(prompt)))


def split_tokens(text: str) -> list[str]:
    """The tokens of "<new1>+<new2>". Raises UserError for an empty or repeated one, and spaces or commas in one."""
    tokens = [token.strip() for token in text.split("+")]
    for token in tokens:
        if not token or any(character.isspace() or character == "," for character in token):
            raise UserError(
                f"{text!r} should be a word without spaces or commas, such as <new1>; several are joined by +"
            )
        if tokens.count(token) > 1:
            raise UserError(f"{text!r} names {token} twice")
    return tokens


def check_initializers(tokens: Sequence[str], initializers: Sequence[str]) -> None:
    """Raise UserError unless each token has something to start from."""
    if len(initializers) < len(tokens):
        raise UserError(
            f"{len(tokens)} modifier tokens but {len(initializers)} initializer tokens; give one each, joined by +"
        )
    for token, initializer in zip(tokens, initializers):
        if not initializer.strip():
            raise _stands_for_nothing(initializer, token)


def _stands_for_nothing(initializer: str, token: str) -> UserError:
    return UserError(f"the initializer token {initializer!r} for {token} is empty; give a word such as cat")


def initial_vectors(
    backend: Backend, tokens: Sequence[str], initializers: Sequence[str], vectors_per_token: int
) -> dict[str, Tensor]:
    """The vectors (vectors_per_token, width) that each new token starts from, float32 on the CPU.

    A token with as many vectors as its initializer has (see `initializer_vectors`) takes one each; otherwise each of
    its vectors is the average of the initializer's.

    Raises UserError for a token the model knows already, too few initializers, or one that stands for nothing.
    """
    check_initializers(tokens, initializers)
    vectors = {}
    for token, initializer in zip(tokens, initializers):
        if backend.has_token(token):
            raise UserError(
                f"{token} is a word that the model {backend.name} knows already; choose a new one, such as <new1>"
            )
        found = initializer_vectors(backend, initializer).float().cpu()
        if len(found) == 0:
            raise _stands_for_nothing(initializer, token)
        if len(found) != vectors_per_token:
            found = found.mean(dim=0, keepdim=True).repeat(vectors_per_token, 1)
        vectors[token] = found.clone()
    return vectors


def initializer_vectors(backend: Backend, text: str) -> Tensor:
    """The vectors (n, width) that an initializer stands for; n = 0 for an empty one.

    It is looked up as an entry of the vocabulary first, as the paper's code and diffusers' do: "ktn" is entry 42170 of
    CLIP's, though as text it is read as "k" and "tn". So "cat" is the entry that begins longer words, and "cat</w>" the
    whole word. What is no entry gives the vectors of its text, in which a word that would be cut to pieces is looked up
    likewise ("ktn pll").

    Raises UserError for what is written as an entry, with </w>, and is none.
    """
    text = text.strip()
    entry = backend.entry_vector(text)
    if entry is not None:
        return entry
    if text.endswith(_END_OF_WORD):
        raise UserError(f"the vocabulary of the model {backend.name} has no entry {text}; leave out {_END_OF_WORD}")
    whole, words = backend.token_vectors(text), text.split()
    found = [backend.token_vectors(word) for word in words]
    if len(words) < 2 or not torch.equal(torch.cat(found), whole):
        return whole  # one word, or several that the host has as one
    return torch.cat([_of_word(backend, word, vectors) for word, vectors in zip(words, found)])


def _of_word(backend: Backend, word: str, vectors: Tensor) -> Tensor:
    entry = backend.entry_vector(word) if len(vectors) > 1 else None
    return vectors if entry is None else entry


def split_at_tokens(text: str, tokens: Iterable[str]) -> list[str]:
    """The text cut before and after each token that stands in it as a word, longest tokens first.

    Punctuation may touch a token, letters and digits may not. Parts of nothing but spaces are left out.
    """
    words = "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True))
    parts = re.split(rf"((?<!\w)(?:{words})(?!\w))", text) if words else [text]
    return [part for part in parts if part.strip()]


def renamed_in(text: str, names: Mapping[str, str]) -> str:
    """The text with each token that stands in it as a word by its new name."""
    words = "|".join(re.escape(token) for token in sorted(names, key=len, reverse=True))
    return re.sub(rf"(?<!\w)(?:{words})(?!\w)", lambda found: names[found[0]], text) if words else text


def file_name(token: str) -> str:
    """The token as a file name, with the characters the WebUI allows: letters, digits, "." "_" "-" and space.

    A name that Windows keeps for devices gets an underscore in front. Raises UserError if nothing is left of it, or too
    much for a file system.
    """
    name = "".join(character for character in token if character.isalnum() or character in "._- ").strip(" .")
    if not name:
        raise UserError(f"{token!r} has no letter or digit to use in a file name")
    if len(name.encode()) > _LONGEST_NAME:
        raise UserError(f"{token[:20]!r}… is too long for a file name; use fewer than {_LONGEST_NAME} letters")
    return f"_{name}" if _RESERVED.fullmatch(name) else name


def file_names(tokens: Iterable[str]) -> dict[str, str]:
    """A file name for each token. Raises UserError for two that some file system takes for one, such as a and A."""
    names = {token: file_name(token) for token in tokens}
    taken: dict[str, str] = {}
    for token, name in names.items():
        other = taken.setdefault(unicodedata.normalize("NFC", name).casefold(), token)
        if other != token:
            raise UserError(f"the words {other} and {token} would be saved as the same file; rename one of them")
    return names


def embedding_file(vectors: Tensor, name: str, step: int, architecture: str) -> tuple[str, bytes]:
    """The WebUI's embedding file of a word with vectors (n, width) for that `attention.architecture`, and its name.

    NAME.pt, or NAME.safetensors with the vectors of both text encoders apart for a word of SDXL.
    """
    widths = text_widths(architecture)
    if widths is None or sum(widths) != vectors.shape[1]:
        return f"{name}.pt", embedding_pt(vectors, name, step)
    return f"{name}.safetensors", embedding_sdxl(vectors.split(widths, dim=1), step)


def embedding_sdxl(parts: Sequence[Tensor], step: int) -> bytes:
    """An embedding file of SDXL's, as the WebUI and ComfyUI take it, of CLIP's (n, width) and OpenCLIP's vectors."""
    left, right = (part.detach().cpu().float().contiguous() for part in parts)
    return safetensors_bytes({"clip_l": left, "clip_g": right}, {"format": "pt", "step": str(step)})


def embedding_pt(vectors: Tensor, name: str, step: int) -> bytes:
    """A WebUI embedding file (`NAME.pt`) for vectors (n, width). Equal vectors give equal bytes.

    The WebUI's safe loader refuses the records that newer versions of torch add to their archives, so only those that
    every version knows are kept.
    """
    content = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": vectors.detach().cpu().float().clone()},
        "name": name,
        "step": step,
        "sd_checkpoint": None,
        "sd_checkpoint_name": None,
    }
    written = io.BytesIO()
    torch.save(content, written)
    kept = io.BytesIO()
    with zipfile.ZipFile(written) as source, zipfile.ZipFile(kept, "w") as target:
        for record in source.namelist():
            folder, _, rest = record.partition("/")
            if rest in ("data.pkl", "version", "byteorder") or rest.startswith("data/"):
                target.writestr(zipfile.ZipInfo(f"{folder}/{rest}"), source.read(record))
    return kept.getvalue()
