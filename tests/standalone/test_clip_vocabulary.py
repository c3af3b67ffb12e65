"""New words on CLIP's own vocabulary, that of Stable Diffusion 1 and XL, of which the toy's is no likeness."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.standalone import clip
from lib_custom_diffusion.standalone.diffusers_backend import DiffusersBackend
from lib_custom_diffusion.tokens import initial_vectors
from tiny_pipeline import WIDTH, stable_diffusion_2


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return clip.tokenizer()


@pytest.fixture(scope="module")
def backend(tokenizer: CLIPTokenizer) -> DiffusersBackend:
    pipeline = stable_diffusion_2()
    torch.manual_seed(1)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    pipeline.tokenizer, pipeline.text_encoder = tokenizer, CLIPTextModel(config)
    return DiffusersBackend(pipeline, "clip")


def test_it_is_clips_vocabulary(tokenizer: CLIPTokenizer) -> None:
    assert len(tokenizer) == 49408
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]


@pytest.mark.parametrize(("initializer", "number"), [("ktn", 42170), ("pll", 47629), ("ucd", 44746)])
def test_the_papers_initializers_are_the_entries_that_its_code_looks_up(
    backend: DiffusersBackend, tokenizer: CLIPTokenizer, initializer: str, number: int
) -> None:
    [by_diffusers_script] = tokenizer.encode([initializer], add_special_tokens=False)
    assert by_diffusers_script == number
    assert number not in tokenizer(initializer, add_special_tokens=False).input_ids  # as text it is something else
    table = backend.pipeline.text_encoder.get_input_embeddings().weight
    [vectors] = initial_vectors(backend, ["<new1>"], [initializer], 1).values()
    assert torch.equal(vectors, table[number][None])
    assert torch.equal(initial_vectors(backend, ["<new1>"], [initializer], 2)["<new1>"], table[number].expand(2, -1))


def test_what_is_no_entry_starts_from_the_words_of_its_text(
    backend: DiffusersBackend, tokenizer: CLIPTokenizer
) -> None:
    table = backend.pipeline.text_encoder.get_input_embeddings().weight
    assert torch.equal(initial_vectors(backend, ["<new1>"], ["cat</w>"], 1)["<new1>"], table[2368][None])
    both = initial_vectors(backend, ["<new1>"], ["black cat"], 2)["<new1>"]
    assert torch.equal(both, table[tokenizer("black cat", add_special_tokens=False).input_ids])


@pytest.mark.parametrize(
    ("initializer", "entries"),
    [
        ("KTN", ["ktn"]), (" Ktn ", ["ktn"]), ("CAT</w>", ["cat</w>"]), ("Cat", ["cat"]),
        ("ktn pll", ["ktn", "pll</w>"]), ("photo of ucd", ["photo</w>", "of</w>", "ucd</w>"]),
        ("black  Cat", ["black</w>", "cat</w>"]), ("zwx", ["z", "wx</w>"]), ("cat, KTN", ["cat</w>", ",</w>", "ktn"]),
    ],
)  # fmt: skip
def test_an_initializer_is_the_entries_that_it_names_in_any_case(
    backend: DiffusersBackend, tokenizer: CLIPTokenizer, initializer: str, entries: list[str]
) -> None:
    table, numbers = backend.pipeline.text_encoder.get_input_embeddings().weight, tokenizer.get_vocab()
    expected = table[[numbers[entry] for entry in entries]]
    found = initial_vectors(backend, ["<new1>"], [initializer], len(entries))["<new1>"]
    assert torch.equal(found, expected)
    average = initial_vectors(backend, ["<new1>"], [initializer], len(entries) + 1)["<new1>"]
    torch.testing.assert_close(average, expected.mean(dim=0).expand(len(entries) + 1, -1))


def test_what_is_written_as_an_entry_and_is_none_is_refused(backend: DiffusersBackend) -> None:
    with pytest.raises(UserError, match=r"the vocabulary of the model clip has no entry ktn</w>; leave out </w>"):
        initial_vectors(backend, ["<new1>"], ["ktn</w>"], 1)


def test_new_words_are_new_and_words_are_known(backend: DiffusersBackend) -> None:
    assert backend.has_token("cat") and not backend.has_token("<new1>")
    assert not backend.has_token("mydog") and not backend.has_token("<my-cat>")


@pytest.mark.parametrize("token", ["ktn", "pll", "ucd", "cat", "Cat", "<|endoftext|>", "<new1>", "mydog"])
def test_a_word_is_known_if_diffusers_could_not_add_it(
    backend: DiffusersBackend, tokenizer: CLIPTokenizer, token: str
) -> None:
    could_be_added = copy.deepcopy(tokenizer).add_tokens(token) == 1
    reads_as_one = len(tokenizer.tokenize(token)) == 1
    assert backend.has_token(token) == (reads_as_one or not could_be_added)


def test_what_is_no_entry_has_no_vector(backend: DiffusersBackend) -> None:
    assert backend.entry_vector("no such entry") is None


def test_a_captions_length_is_that_of_the_tokenizer(backend: DiffusersBackend, tokenizer: CLIPTokenizer) -> None:
    vectors = {"<new1>": torch.zeros(1, WIDTH)}
    assert backend.count_tokens("photo of a <new1>, red", vectors) == 6
    for caption in ("a cat, a dog", "ktn", "it's 5 o'clock!", "a (red:1.3) [cat] BREAK"):
        assert backend.count_tokens(caption, {}) == len(tokenizer(caption).input_ids) - 2
