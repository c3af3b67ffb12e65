"""What is read from another program's file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..delta import Delta

_GROUPS = (
    (r"^lora_te\d?_|text_encoder|^text_model|\bte\d?\.", "of the text encoder"),
    (r"attn1[._]", "of self-attention"),
    (r"[._]ff[._]", "of feed-forward layers"),
    (r"attn2[._]norm|[._]norm\d?[._]|proj_(in|out)", "of what stands around attention"),
    (r"attn2", "of cross-attention that no Stable Diffusion has there"),
    (r"(resnets|convs?|conv_in|conv_out|in_layers|out_layers|samplers|[._]op)\b|_conv", "of convolutions"),
    (r"time_embed|label_emb|emb_layers|time_emb", "of embeddings of time and size"),
    (r"^(first_stage_model|vae)\b", "of the autoencoder"),
)


@dataclass(frozen=True)
class Imported:
    """The delta, and the names of what the file holds beyond it and a delta has no place for."""

    delta: Delta
    dropped: list[str] = field(default_factory=list)


def dropped_text(names: Sequence[str]) -> str:
    """What was left out, in groups: "192 tensors of the text encoder, 96 of self-attention"."""
    groups = Counter(next((group for pattern, group in _GROUPS if re.search(pattern, name)), "") for name in names)
    others = groups.pop("", 0)
    said = [f"{count} {group}" for group, count in groups.most_common()]
    if others:
        name = next(name for name in names if not any(re.search(pattern, name) for pattern, _ in _GROUPS))
        said.append(f"{others} {'others' if said else 'tensors'}, such as {name[:80]}")
    return ", ".join(said)
