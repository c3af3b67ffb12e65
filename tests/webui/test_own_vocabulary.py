"""SDXL whose encoders have a vocabulary of their own: the host's second encoder reads it, others stay as they are."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace

import modules
import pytest
import torch

from lib_custom_diffusion.webui import own_vocabulary

OPEN_CLIP = {"<start_of_text>": 5, "<end_of_text>": 6, **{str(number): number for number in range(5)}}
OWN = {"!": 0, ",</w>": 1, "fox</w>": 2, "<start>": 3, "<end>": 4}


class Tokenizer:
    bos_token_id, eos_token_id = OWN["<start>"], OWN["<end>"]

    def __init__(self, vocabulary: dict[str, int] = OWN) -> None:
        self.vocabulary = vocabulary

    def __len__(self) -> int:
        return len(self.vocabulary)

    def get_vocab(self) -> dict[str, int]:
        return self.vocabulary

    def __call__(self, texts: Sequence[str], **_: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [[self.vocabulary[f"{word}</w>"] for word in text.split()] for text in texts]}


class FrozenOpenCLIPEmbedder2WithCustomWords:
    """The host's: it reads OpenCLIP's vocabulary, whatever the model has."""

    def __init__(self, wrapped: object, hijack: object) -> None:
        self.wrapped, self.hijack = wrapped, hijack
        self.id_start, self.id_end, self.id_pad = OPEN_CLIP["<start_of_text>"], OPEN_CLIP["<end_of_text>"], 0

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        return [[OPEN_CLIP[word] for word in text.split()] for text in texts]


def model(words: int, tokenizer: Tokenizer) -> SimpleNamespace:
    """An SDXL whose second encoder has so many words."""
    table = torch.nn.Embedding(words, 3)
    wrapped = SimpleNamespace(model=SimpleNamespace(token_embedding=SimpleNamespace(wrapped=table)))
    second = FrozenOpenCLIPEmbedder2WithCustomWords(wrapped, "hijack")
    return SimpleNamespace(conditioner=SimpleNamespace(embedders=[SimpleNamespace(tokenizer=tokenizer), second]))


@pytest.fixture(autouse=True)
def open_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    host = ModuleType("modules.sd_hijack_open_clip")
    host.tokenizer = SimpleNamespace(encoder=OPEN_CLIP)
    monkeypatch.setitem(sys.modules, host.__name__, host)
    monkeypatch.setattr(modules, "sd_hijack_open_clip", host, raising=False)


def test_the_second_encoder_reads_the_words_of_the_first() -> None:
    loaded = model(len(OWN), Tokenizer())
    own_vocabulary.follow_model(loaded)
    second = loaded.conditioner.embedders[1]
    assert second.tokenize(["fox fox"]) == [[2, 2]]
    assert (second.id_start, second.id_end, second.id_pad, second.comma_token) == (3, 4, 0, 1)
    assert isinstance(second, FrozenOpenCLIPEmbedder2WithCustomWords) and second.hijack == "hijack"
    table = second.wrapped.model.token_embedding.wrapped.weight
    assert torch.equal(second.encode_embedding_init_text("fox", 1), table[2:3])


@pytest.mark.parametrize("words", [len(OPEN_CLIP), len(OWN) + 1])
def test_every_other_model_stays_as_it_is(words: int) -> None:
    loaded = model(words, Tokenizer(OWN if words != len(OPEN_CLIP) else OPEN_CLIP))
    before = list(loaded.conditioner.embedders)
    own_vocabulary.follow_model(loaded)
    assert loaded.conditioner.embedders == before
    refiner = SimpleNamespace(conditioner=SimpleNamespace(embedders=before[1:]))
    for other in (refiner, SimpleNamespace(cond_stage_model=None)):
        own_vocabulary.follow_model(other)
    assert refiner.conditioner.embedders == before[1:]


def test_open_clip_is_told_the_sizes_of_the_toys_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setitem(sys.modules, "open_clip", SimpleNamespace(add_model_config=told.append))
    own_vocabulary.make_known()
    [file] = [path for folder in told for path in folder.glob("*.json")]
    assert file.stem == "custom-diffusion-toy-xl"
    assert json.loads(file.read_text())["text_cfg"]["heads"] == 2
