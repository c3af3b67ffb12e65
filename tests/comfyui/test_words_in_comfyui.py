"""New words in prompts of ComfyUI: their vectors stand where they do, for this CLIP alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lib_custom_diffusion.comfyui.words import with_words
from lib_custom_diffusion.errors import UserError


@pytest.fixture
def vectors(clip):
    """Two vectors of the width of the CLIP's words."""
    words = clip.cond_stage_model.clip_l.transformer.get_input_embeddings()
    return torch.arange(2.0 * words.weight.shape[1]).reshape(2, -1)


def first_tokens(clip, prompt: str, count: int):
    """The first tokens of the prompt after the start token, with their weights; "0" and "1" for the two vectors."""
    (chunk,) = clip.tokenizer.clip_l.tokenize_with_weights(prompt)
    return [(str(int(t[0] > 0)) if torch.is_tensor(t) else t, weight) for t, weight in chunk[1 : count + 1]]


def plain(clip, text: str) -> list[int]:
    return clip.tokenizer.clip_l.tokenizer(text)["input_ids"][1:-1]


@pytest.mark.parametrize("spelling", ["<new1>", "embedding:<new1>", "embedding:new1"])
def test_a_word_stands_for_its_vectors(clip, vectors, spelling: str) -> None:
    known = with_words(clip, {"<new1>": vectors})
    a, cat, comma = (plain(clip, text)[0] for text in ("a", "cat", ","))
    expected = [(a, 1.0), ("0", 1.0), ("1", 1.0), (cat, 1.0)]
    assert first_tokens(known, f"a {spelling} cat", 4) == expected
    assert first_tokens(known, f"a {spelling}, cat", 5) == [*expected[:3], (comma, 1.0), (cat, 1.0)]


@pytest.mark.parametrize("spelling", ["<new1>", " embedding:new1"])
def test_a_word_may_have_a_weight(clip, vectors, spelling: str) -> None:
    known = with_words(clip, {"<new1>": vectors})
    a, cat = (plain(clip, text)[0] for text in ("a", "cat"))
    tokens = first_tokens(known, f"a ({spelling}:1.5) cat", 4)
    assert tokens == [(a, 1.0), ("0", 1.5), ("1", 1.5), (cat, 1.0)]


def test_the_vectors_are_those_of_the_delta(clip, vectors) -> None:
    (chunk,) = with_words(clip, {"<new1>": vectors.half()}).tokenizer.clip_l.tokenize_with_weights("<new1>")
    assert torch.equal(torch.stack([chunk[1][0], chunk[2][0]]), vectors)


def test_the_clip_given_does_not_know_the_word(clip, vectors) -> None:
    before = clip.tokenizer.clip_l.tokenize_with_weights("a <new1> cat")
    with_words(clip, {"<new1>": vectors})
    assert clip.tokenizer.clip_l.tokenize_with_weights("a <new1> cat") == before


def test_prompts_without_the_word_are_read_as_before(clip, vectors) -> None:
    known = with_words(clip, {"<new1>": vectors})
    for prompt in ("a cat", "<new10> a cat", "embedding:new10 a", "embedding:new1.x a", "embedding:other", ""):
        tokens = known.tokenizer.clip_l.tokenize_with_weights(prompt)
        assert tokens == clip.tokenizer.clip_l.tokenize_with_weights(prompt)


def test_words_of_several_nodes_are_known_together_and_the_later_wins(clip, vectors) -> None:
    first = with_words(clip, {"<new1>": vectors, "<new2>": vectors[:1]})
    known = with_words(first, {"<new1>": vectors[1:]})
    assert [t for t, _ in first_tokens(known, "<new1> <new2>", 2)] == ["1", "0"]
    assert [t for t, _ in first_tokens(known, "embedding:new2 embedding:new1", 2)] == ["0", "1"]
    assert [t for t, _ in first_tokens(first, "<new1>", 2)] == ["0", "1"]


def test_each_encoder_of_sdxl_gets_its_part_of_the_vectors(clip) -> None:
    both = clip.clone()
    one = clip.tokenizer.clip_l
    width = clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight.shape[1]
    wider = SimpleNamespace(get_input_embeddings=lambda: torch.nn.Embedding(1, width + 3))
    both.tokenizer = SimpleNamespace(clip_g=one, clip_l=one)  # ComfyUI itself does not keep to one order
    both.cond_stage_model = SimpleNamespace(
        clip_l=clip.cond_stage_model.clip_l, clip_g=SimpleNamespace(transformer=wider)
    )
    known = with_words(both, {"<new1>": torch.arange(2.0 * width + 3)[None]})
    for name, first, last in (("clip_l", 0, width - 1), ("clip_g", width, 2 * width + 2)):
        (chunk,) = getattr(known.tokenizer, name).tokenize_with_weights("<new1>")
        assert chunk[1][0][[0, -1]].tolist() == [first, last]


def test_words_of_another_width_are_refused(clip, vectors) -> None:
    with pytest.raises(UserError, match="its word <new1> is 5 numbers wide, the CLIP's words are"):
        with_words(clip, {"<new1>": torch.zeros(1, 5)})
