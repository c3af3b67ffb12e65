"""The tables of docs that stand on the small model: lines say what was measured, and what was learned is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from lib_custom_diffusion.delta import Delta


def test_a_line_of_the_table_of_priors_is_what_was_measured_and_nothing_is_learned_twice(
    benchmark_script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tables = benchmark_script("toy_tables")
    monkeypatch.setattr(tables, "teach", None)  # nothing can be learned any more
    bench = tables.Bench(SimpleNamespace(checkpoint_hash="0123", name="toy"), None, tmp_path, 10)
    for number, prior in enumerate(tables.PRIORS):
        folder = tmp_path / "0123" / f"hipster-{prior}-10"
        twice = {"recognised": number, "likeness": 0.5 + number / 10, "text_alignment": 0.25}
        figures = {f"{name}_{when}": value for name, value in twice.items() for when in ("before", "after")}
        Delta({}).save(folder / "hipster.delta.safetensors")
        (folder / "figures.json").write_text(
            json.dumps({**figures, "asked": 16, "drift": 0.015, "unrelated_change": 0.25})
        )
    assert list(tables.prior_table(bench, ["hipster"]))[2:] == [
        "| hipster | text | 0 → 0 of 16 | 0.50 → 0.50 | 0.25 → 0.25 | 0.015 | 0.250 |",
        "| hipster | pictures | 1 → 1 of 16 | 0.60 → 0.60 | 0.25 → 0.25 | 0.015 | 0.250 |",
        "| hipster | none | 2 → 2 of 16 | 0.70 → 0.70 | 0.25 → 0.25 | 0.015 | 0.250 |",
    ]
