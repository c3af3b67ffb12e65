"""CLIP's vocabulary, that of Stable Diffusion 1, 2 and XL, so that no file of theirs needs a network."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path

from transformers import CLIPTokenizer
from transformers.models.clip.tokenization_clip import bytes_to_unicode

MERGES = Path(__file__).parent / "merges.txt.gz"
WORDS = 49408
POSITIONS = 77

END = "<|endoftext|>"
FIRST = "!"
"""Entry 0, with which OpenCLIP fills up short prompts; CLIP itself does with the end token."""


def tokenizer(padding: str = END, positions: int = POSITIONS) -> CLIPTokenizer:
    """CLIP's tokenizer; `padding` is the entry that short prompts are filled up with.

    The vocabulary is 256 bytes, the same as ends of words, an entry for each merge, start and end.
    """
    merges = gzip.decompress(MERGES.read_bytes()).decode()
    letters = list(bytes_to_unicode().values())
    entries = [*letters, *(f"{letter}</w>" for letter in letters)]
    entries += [merge.replace(" ", "") for merge in merges.splitlines()]
    entries += ["<|startoftext|>", END]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merged = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocabulary.write_text(json.dumps({entry: number for number, entry in enumerate(entries)}), encoding="utf-8")
        merged.write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
        return CLIPTokenizer(str(vocabulary), str(merged), unk_token=END, pad_token=padding, model_max_length=positions)
