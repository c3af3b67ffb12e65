"""What is in a delta file: at a glance from its header, and in full."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

from ..attention import family, short_name, text_widths
from ..delta import Delta, Entry, Factors, stated_provenance
from ..errors import UserError
from ..reading import read_header
from ..text_features import concept_words

_EMBEDDING = "embedding."
_NORMS = (
    "<p>How strongly each layer is changed: the norm of its delta (Frobenius). Bars compare the layers with the one"
    " that is changed most.</p>"
)


@dataclass(frozen=True)
class Summary:
    """What a delta's header says. `tokens` has the class word of each token, "" if there is none."""

    architecture: str
    checkpoint: str
    steps: int
    tokens: dict[str, str]

    def activation_text(self) -> str:
        """The tokens with their class words, as a prompt wants them: "<new1> cat"."""
        return ", ".join(concept_words(self.tokens))

    @property
    def made_for(self) -> str:
        """The kind of model that it fits, in the word that people have for it; "" if the file does not say."""
        return family(self.architecture)

    def table(self) -> dict[str, str]:
        """The same as rows for people, without those the file says nothing of."""
        rows = {
            "Made for": self.made_for,
            "Checkpoint": self.checkpoint,
            "Steps": str(self.steps or ""),
            "Words": self.activation_text(),
        }
        return {name: value for name, value in rows.items() if value}


def summarize(path: Path) -> Summary:
    """Read the header alone, whatever the file's size. Raises UserError if it has none that can be read."""
    header = read_header(path)
    try:
        found = stated_provenance(header.metadata)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    tokens = [name.removeprefix(_EMBEDDING) for name in header.names if name.startswith(_EMBEDDING)]
    words = {token: found.tokens.get(token, "") for token in tokens}
    return Summary(found.architecture, found.checkpoint, found.steps, words)


def words_of(path: Path) -> list[str]:
    """The words that a delta has; none if the file cannot be read."""
    try:
        return list(summarize(path).tokens)
    except UserError:
        return []


def report_html(path: Path) -> str:
    """All about a file as HTML: what it is, its tokens, and the norm of each layer as a bar. Raises as `Delta.load`."""
    delta = Delta.load(path)
    rows = {"File": path.name, "Size": f"{path.stat().st_size / 1e6:.2f} MB", **summarize(path).table()}
    widths = text_widths(delta.provenance.architecture)
    for token, vectors in delta.embeddings.items():
        own = widths if widths and sum(widths) == vectors.shape[1] else (vectors.shape[1],)
        rows[f"Vectors of {token}"] = " and ".join(f"{len(vectors)} × {width}" for width in own)
    rows["Layers"] = str(len(delta.entries))
    table = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in rows.items()
    )
    norms = {key: _norm(entry) for key, entry in delta.entries.items()}
    largest = max(norms.values(), default=0.0) or 1.0
    bars = "".join(_bar(short_name(key), norm, norm / largest) for key, norm in norms.items())
    return f'<div class="cd-inspection"><table>{table}</table>{_NORMS}<div class="cd-norms">{bars}</div></div>'


def _norm(entry: Entry) -> float:
    return entry.norm() if isinstance(entry, Factors) else entry.float().norm().item()


def _bar(name: str, norm: float, part: float) -> str:
    return (
        f'<div class="cd-norm"><span class="cd-norm-name">{html.escape(name)}</span>'
        f'<span class="cd-norm-bar"><span style="width:{100 * part:.1f}%"></span></span>'
        f'<span class="cd-norm-value">{norm:.4g}</span></div>'
    )
