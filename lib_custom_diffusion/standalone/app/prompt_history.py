"""The prompts that pictures were drawn of, kept from one start of the app to the next."""

from __future__ import annotations

import json
from pathlib import Path

from ...storage import write_atomically

KEPT = 100


class PromptHistory:
    """Prompts in a JSON file, each once, the newest first."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def all(self) -> list[str]:
        """Nothing if the file is not there or damaged."""
        try:
            prompts = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return []
        return [prompt for prompt in prompts if isinstance(prompt, str)] if isinstance(prompts, list) else []

    def add(self, prompt: str) -> None:
        """Keep a prompt. Raises UserError if the file cannot be written."""
        prompts = [prompt, *(other for other in self.all() if other != prompt)]
        write_atomically(self.path, (json.dumps(prompts[:KEPT], indent=1) + "\n").encode())
