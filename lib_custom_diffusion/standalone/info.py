"""The info command: what is in a delta file."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..attention import KEY_PREFIX
from ..delta import Delta, Entry, Factors


def info(options: argparse.Namespace) -> int:
    """Run the command; returns its exit status. Raises UserError if the file is no delta."""
    content = describe(options.file)
    print(json.dumps(content, indent=2) if options.json else _text(content))
    return 0


def describe(path: Path) -> dict[str, Any]:
    """What a delta file holds, in JSON's types; norms are Frobenius norms."""
    delta = Delta.load(path)
    origin = delta.provenance
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "architecture": origin.architecture,
        "checkpoint": origin.checkpoint,
        "steps": origin.steps,
        "library_version": origin.library_version,
        "tokens": {
            token: {"vectors": vectors.shape[0], "width": vectors.shape[1], "class_word": origin.tokens.get(token, "")}
            for token, vectors in delta.embeddings.items()
        },
        "layers": {key: _layer(entry) for key, entry in delta.entries.items()},
        "settings": origin.settings,
    }


def _layer(entry: Entry) -> dict[str, Any]:
    if isinstance(entry, Factors):
        return {"shape": list(entry.shape), "rank": entry.us.shape[1], "norm": entry.norm()}
    return {"shape": list(entry.shape), "rank": None, "norm": entry.float().norm().item()}


def _text(content: dict[str, Any]) -> str:
    size = content["bytes"]
    lines = [
        f"{content['file']}: {size / 1e6:.1f} MB" if size >= 1e5 else f"{content['file']}: {size} bytes",
        f"made for {content['architecture'] or 'an unknown architecture'}"
        f", checkpoint {content['checkpoint'] or 'unknown'}, {content['steps']} steps",
    ]
    for token, found in content["tokens"].items():
        kind = f", a kind of {found['class_word']}" if found["class_word"] else ""
        lines.append(f"token {token}: {found['vectors']} vector(s) of {found['width']}{kind}")
    largest = max((layer["norm"] for layer in content["layers"].values()), default=0.0) or 1.0
    lines.append(f"{len(content['layers'])} layers:")
    for key, layer in content["layers"].items():
        name = (
            key.removeprefix(KEY_PREFIX)
            .removesuffix(".weight")
            .replace("transformer_blocks.", "")
            .replace("attn2.", "")
        )
        shape = "×".join(map(str, layer["shape"])) + (f" rank {layer['rank']}" if layer["rank"] else "")
        lines.append(f"  {name:32} {shape:18} norm {layer['norm']:9.4f} {'█' * round(20 * layer['norm'] / largest)}")
    return "\n".join(lines)
