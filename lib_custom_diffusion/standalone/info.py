"""The info command: what a file is, and what is in it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .. import formats
from ..attention import family, short_name, text_widths
from ..delta import Delta, Entry, Factors
from ..errors import UserError
from ..reading import read_document
from ..reading.kinds import DELTA
from ..text_features import class_noun


def info(options: argparse.Namespace) -> int:
    """Run the command; returns its exit status. Raises UserError if the file is nothing that is known."""
    content = describe(options.file)
    print(json.dumps(content, indent=2) if options.json else _text(content))
    return 0


def describe(path: Path) -> dict[str, Any]:
    """What a delta, LoRA or embedding holds, in JSON's types; norms are Frobenius norms.

    note: why there is no more to tell of a file whose numbers mean nothing without its model.
    """
    document = read_document(path)
    delta, note, left_out = Delta({}), "", ""
    try:
        imported = formats.understood(path, document)
        delta, left_out = imported.delta, formats.dropped_text(imported.dropped)
    except UserError as error:
        if not any(module.recognises(document) for module in formats.FORMATS) or document.kind() == DELTA:
            raise
        note = str(error)
    origin = delta.provenance
    return {
        "file": str(path),
        "kind": document.kind(),
        "note": note,
        "bytes": path.stat().st_size,
        "architecture": origin.architecture,
        "checkpoint": origin.checkpoint,
        "steps": origin.steps,
        "library_version": origin.library_version,
        "tokens": {
            token: {
                "vectors": vectors.shape[0],
                "width": vectors.shape[1],
                "class_word": class_noun(origin.tokens.get(token, "")),
            }
            for token, vectors in delta.embeddings.items()
        },
        "layers": {key: _layer(entry) for key, entry in delta.entries.items()},
        "left_out": left_out,
        "settings": origin.settings,
    }


def _layer(entry: Entry) -> dict[str, Any]:
    if isinstance(entry, Factors):
        return {"shape": list(entry.shape), "rank": entry.us.shape[1], "norm": entry.norm()}
    return {"shape": list(entry.shape), "rank": None, "norm": entry.float().norm().item()}


def _vectors_text(found: dict[str, Any], architecture: str) -> str:
    vectors = f"{found['vectors']} vector{'s' if found['vectors'] > 1 else ''}"
    widths = text_widths(architecture)
    if widths is None or sum(widths) != found["width"]:
        return f"{vectors} of {found['width']} numbers"
    return f"{vectors} for each of two text encoders, of {widths[0]} and {widths[1]} numbers"


def _text(content: dict[str, Any]) -> str:
    size = content["bytes"]
    bytes_ = f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size} bytes"
    lines = [f"{content['file']}: {content['kind']}, {bytes_}"]
    if content["note"]:
        return f"{lines[0]}\n{content['note']}"
    if content["kind"] == DELTA:
        made_for = content["architecture"]
        also = f" ({made_for})" if made_for != family(made_for) else ""
        lines.append(
            f"made for {family(made_for) or 'a kind of model that it does not name'}{also}; checkpoint"
            f" {content['checkpoint'] or 'unknown'}, trained for {content['steps']} steps"
        )
    if content["left_out"]:
        lines.append(f"beside what a delta can hold: {content['left_out']}")
    for token, found in content["tokens"].items():
        kind = f", a kind of {found['class_word']}" if found["class_word"] else ""
        lines.append(f"word {token}: {_vectors_text(found, content['architecture'])}{kind}")
    if not content["layers"]:
        return "\n".join(lines)
    largest = max((layer["norm"] for layer in content["layers"].values()), default=0.0) or 1.0
    count = len(content["layers"])
    lines.append(f"{count} layer{'s' if count > 1 else ''}, with how strongly each is changed:")
    for key, layer in content["layers"].items():
        shape = "×".join(map(str, layer["shape"])) + (f" rank {layer['rank']}" if layer["rank"] else "")
        bar = "█" * round(20 * layer["norm"] / largest)
        lines.append(f"  {short_name(key):32} {shape:18} {layer['norm']:9.4f} {bar}")
    return "\n".join(lines)
