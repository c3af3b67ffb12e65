"""What is asked of a delta: prompts with its words, and what their pictures should show in plain words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ...delta import Delta
from ...errors import UserError
from ...storage import read_text
from ...text_features import class_noun, concept_words
from ...tokens import split_at_tokens


@dataclass(frozen=True)
class Question:
    """A prompt, and the caption that its pictures are measured by."""

    prompt: str
    caption: str


def read_lines(path: Path) -> list[str]:
    """The prompts of a text file, one a line. Raises UserError if it cannot be read or has none."""
    lines = [line.strip() for line in read_text(path, f"the prompts in {path}").split("\n")]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise UserError(f"{path} has no prompts; write one a line")
    return lines


def question(line: str, delta: Delta, class_prompt: str) -> Question:
    """A line of the file, for a delta.

    `{}` stands for the delta's words and what they are, such as "<new1> cat", as in CustomConcept101's prompts. The
    caption is the prompt without new words; where one stands for a noun, its class word takes its place. After a tab
    the line may say the caption itself.

    class_prompt: what the concept is, "cat" or "photo of a cat", where the delta does not say it.
    """
    prompt, _, caption = (part.strip() for part in line.partition("\t"))
    nouns = {token: class_noun(delta.provenance.tokens.get(token) or class_prompt) for token in delta.embeddings}
    spoken = " and ".join(concept_words(nouns))
    prompt = prompt.replace("{}", spoken)
    return Question(prompt, caption or _plain(prompt, nouns))


def _plain(prompt: str, nouns: dict[str, str]) -> str:
    parts = split_at_tokens(prompt, nouns)
    for index, part in enumerate(parts):
        if part in nouns:
            after = parts[index + 1].lower() if index + 1 < len(parts) else ""
            noun = nouns[part]
            parts[index] = "" if re.match(rf"\s*{re.escape(noun.lower())}(?!\w)", after) else noun
    return re.sub(r"\s+([,.!?;:])", r"\1", re.sub(r"\s+", " ", " ".join(parts))).strip()
