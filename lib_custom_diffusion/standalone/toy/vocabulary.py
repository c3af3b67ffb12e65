"""A small vocabulary in CLIP's format: byte-level BPE in which every word of the world is one token.

Format: `vocab.json` and `merges.txt` as openai/clip-vit-large-patch14 has them: all bytes, all bytes that end a word
(`</w>`), one token a merge, then the start and the end token. Any text tokenises, down to single bytes.
"""

import json
from itertools import pairwise
from pathlib import Path

START, END = "<|startoftext|>", "<|endoftext|>"
CONTEXT = 77


def byte_letters() -> list[str]:
    """The letters that stand for the 256 bytes, in GPT-2's order: printable ones for themselves, then U+0100 and on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(0x100 + index) for index in range(len(others))]


def bpe(pieces: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Merge neighbours, lowest rank first, until no merge applies (Sennrich et al., arXiv 1508.07909)."""
    while True:
        present = [pair for pair in pairwise(pieces) if pair in ranks]
        if not present:
            return pieces
        best = min(present, key=ranks.__getitem__)
        merged, index = [], 0
        while index < len(pieces):
            if tuple(pieces[index : index + 2]) == best:
                merged.append(best[0] + best[1])
                index += 2
            else:
                merged.append(pieces[index])
                index += 1
        pieces = merged


def merges_for(words: list[str]) -> list[tuple[str, str]]:
    """Merges that make each word one token. Later merges rank lower, so they never undo what an earlier word got."""
    ranks: dict[tuple[str, str], int] = {}
    for word in words:
        pieces = bpe([*word[:-1], word[-1] + "</w>"], ranks)
        while len(pieces) > 1:
            ranks[pieces[0], pieces[1]] = len(ranks)
            pieces = bpe(pieces, ranks)
    return list(ranks)


def write(words: list[str], folder: Path, pad: str = END) -> None:
    """Write the tokenizer's four files, which CLIPTokenizer.from_pretrained(folder) reads.

    pad: what fills the room behind a caption: CLIP's end token, or OpenCLIP's first of all tokens.
    """
    letters, merges = byte_letters(), merges_for(words)
    # Two routes can lead to one token; a token is listed once.
    joined = dict.fromkeys(left + right for left, right in merges)
    tokens = [*letters, *(letter + "</w>" for letter in letters), *joined, START, END]
    tokens = list(dict.fromkeys(tokens))
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
    settings = special | {"tokenizer_class": "CLIPTokenizer", "model_max_length": CONTEXT, "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n", encoding="utf-8")
