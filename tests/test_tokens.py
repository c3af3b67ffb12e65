"""Modifier tokens: how they are written, what they start from, and their files."""

import re
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
import safetensors.torch
import torch

from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.formats import read_words
from lib_custom_diffusion.tokens import embedding_file, embedding_pt, file_name, initial_vectors, split_tokens
from tiny import WIDTH, TinyBackend


def test_tokens_are_joined_by_plus() -> None:
    assert split_tokens("<new1>+<new2>") == ["<new1>", "<new2>"]


@pytest.mark.parametrize("text", ["", "<new1>+", "<new 1>", "<new1>+<new1>", "<new1>,<new2>"])
def test_what_is_no_list_of_tokens_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        split_tokens(text)


def test_vectors_start_from_the_initializer() -> None:
    backend = TinyBackend()
    vectors = initial_vectors(backend, ["<new1>", "<new2>"], ["ktn", "cat"], 1)
    assert torch.equal(vectors["<new2>"], backend.token_vectors("cat"))


def test_initializer_of_several_words_gives_one_each_or_its_average() -> None:
    backend = TinyBackend()
    both = backend.token_vectors("red cat")
    assert torch.equal(initial_vectors(backend, ["<new1>"], ["red cat"], 2)["<new1>"], both)
    assert torch.equal(initial_vectors(backend, ["<new1>"], ["red cat"], 1)["<new1>"], both.mean(0, keepdim=True))
    assert torch.equal(initial_vectors(backend, ["<new1>"], ["cat"], 3)["<new1>"], both[1].expand(3, WIDTH))


def test_token_of_the_vocabulary_is_refused() -> None:
    with pytest.raises(UserError, match="cat is a word that the model tiny knows already"):
        initial_vectors(TinyBackend(), ["cat"], ["ktn"], 1)


def test_too_few_or_empty_initializers_are_refused() -> None:
    with pytest.raises(UserError, match="2 modifier tokens but 1 initializer"):
        initial_vectors(TinyBackend(), ["<a>", "<b>"], ["ktn"], 1)
    with pytest.raises(UserError, match="is empty"):
        initial_vectors(TinyBackend(), ["<a>"], [""], 1)


@pytest.mark.parametrize(("token", "name"), [("<new1>", "new1"), ("../a/b", "ab"), ("<Ünal-2.5_x>", "Ünal-2.5_x")])
def test_file_names_keep_what_the_webui_keeps(token: str, name: str) -> None:
    assert file_name(token) == name


def test_token_without_a_letter_names_no_file() -> None:
    with pytest.raises(UserError, match="no letter or digit"):
        file_name("<>")


def test_embedding_is_read_back_and_equal_vectors_give_equal_bytes(tmp_path: Path) -> None:
    vectors = torch.randn(2, 5)
    (tmp_path / "a.pt").write_bytes(embedding_pt(vectors, "a", 7))
    assert torch.equal(read_words(tmp_path / "a.pt")["<a>"], vectors)
    assert embedding_pt(vectors, "a", 7) == embedding_pt(vectors.clone(), "a", 7)


def test_embedding_has_only_records_that_the_webuis_safe_loader_allows() -> None:
    allowed = re.compile(r"^([^/]+)/((data/\d+)|version|byteorder|(data\.pkl))$")  # modules/safe.py
    names = zipfile.ZipFile(BytesIO(embedding_pt(torch.ones(1, 5), "a", 1))).namelist()
    assert len(names) >= 3
    assert all(allowed.match(name) for name in names)


def test_a_word_of_sdxl_is_a_file_with_the_vectors_of_both_text_encoders_apart() -> None:
    vectors = torch.arange(2.0 * 2048).reshape(2, 2048)
    name, content = embedding_file(vectors, "new1", 7, "sdxl")
    held = safetensors.torch.load(content)
    assert name == "new1.safetensors" and set(held) == {"clip_l", "clip_g"}
    assert torch.equal(held["clip_l"], vectors[:, :768]) and torch.equal(held["clip_g"], vectors[:, 768:])
    assert embedding_file(vectors[:, :1024], "new1", 7, "sd2")[0] == "new1.pt"
    toy = safetensors.torch.load(embedding_file(vectors[:, :256], "new1", 7, "crossattn-14x256")[1])
    assert torch.equal(toy["clip_g"], vectors[:, 128:256])
