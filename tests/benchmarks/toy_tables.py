"""The tables in docs that stand on the bundled small model, in one command, as Markdown to paste.

    python tests/benchmarks/toy_tables.py --work FOLDER [--tables prior merging compression]

1. What is learned with the text prior, with regularization pictures, and with neither: a concept and a seed.
2. Two concepts, learned apart and joined in each way (see merging.py).
3. Bytes and errors of what was learned, compressed (see algebra.py).

Concepts that have been learned are kept in FOLDER, for the model that learned them, and not learned again. Use another
folder when the code has changed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import merging

import algebra
from lib_custom_diffusion.algebra.files import moments_of
from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.standalone.demo import DemoPictures, teach
from lib_custom_diffusion.standalone.diffusers_backend import DiffusersBackend
from lib_custom_diffusion.standalone.models import load_model
from lib_custom_diffusion.standalone.toy.concepts import bundled_concepts
from lib_custom_diffusion.standalone.toy.judge import Judge
from lib_custom_diffusion.storage import write_atomically
from lib_custom_diffusion.text_features import class_noun
from lib_custom_diffusion.training.plan import TrainingPlan
from lib_custom_diffusion.training.recipes import TOY, plan_settings

PRIORS = ("text", "pictures", "none")
SEEDS = 4  # pictures of each prompt, where concepts are joined


@dataclass(frozen=True)
class Bench:
    """The model, its judge, and where what was learned is kept."""

    backend: DiffusersBackend
    judge: Judge
    work: Path
    steps: int

    def learned(self, name: str, prior: str) -> tuple[dict[str, Any], Delta]:
        """Figures and delta of a bundled concept; learned if it has not been."""
        folder = self.work / (self.backend.checkpoint_hash or self.backend.name) / f"{name}-{prior}-{self.steps}"
        figures, delta = folder / "figures.json", folder / f"{name}.delta.safetensors"
        if not figures.is_file():
            plan = TrainingPlan.of({"max_train_steps": self.steps}, plan_settings(TOY))
            result = teach(self.backend, self.judge, bundled_concepts()[name], plan, folder, prior, self.before(name))
            if result is None:
                sys.exit("interrupted")
            write_atomically(figures, json.dumps(result.metrics).encode())
        return json.loads(figures.read_text()), Delta.load(delta)

    def before(self, name: str) -> DemoPictures:
        """What the model draws without it."""
        if name not in _before:
            _before[name] = DemoPictures.draw(self.backend, bundled_concepts()[name], {}, "drawing before")
        return _before[name]


_before: dict[str, DemoPictures] = {}


def prior_table(bench: Bench, names: Sequence[str]) -> Iterator[str]:
    """A line for each prior of the first concept."""
    yield "| concept | prior | recognised | likeness | text alignment | drift of the class | change elsewhere |"
    yield "| --- " * 7 + "|"
    for prior in PRIORS:
        m, _ = bench.learned(names[0], prior)
        yield (
            f"| {names[0]} | {prior} | {m['recognised_before']} → {m['recognised_after']} of {m['asked']}"
            f" | {m['likeness_before']:.2f} → {m['likeness_after']:.2f}"
            f" | {m['text_alignment_before']:.2f} → {m['text_alignment_after']:.2f}"
            f" | {m['drift']:.3f} | {m['unrelated_change']:.3f} |"
        )


def merging_table(bench: Bench, names: Sequence[str]) -> Iterator[str]:
    """The concepts' deltas, joined in each way."""
    taught = []
    for name in names:
        bundled, (_, delta) = bundled_concepts()[name], bench.learned(name, "text")
        taught.append(merging.Taught(name, bundled.folder, class_noun(bundled.class_prompt), delta))
    return merging.table(merging.Trial(bench.backend, bench.judge, taught, SEEDS), list(merging.WAYS), [])


def compression_table(bench: Bench, names: Sequence[str]) -> Iterator[str]:
    """The first concept's delta, beside the earlier programs' way."""
    _, delta = bench.learned(names[0], "text")
    printed = StringIO()
    with redirect_stdout(printed):
        algebra.compare(delta, moments_of(delta, lambda: bench.backend))
    yield from printed.getvalue().splitlines()


TABLES: Mapping[str, Callable[[Bench, Sequence[str]], Iterator[str]]] = {
    "prior": prior_table,
    "merging": merging_table,
    "compression": compression_table,
}


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    bench = Bench(load_model("toy"), Judge.load(), options.work, options.steps)
    kept = bench.backend.checkpoint_hash
    print(f"{kept}, {options.steps} steps, seed {TrainingPlan.seed}; torch {torch.__version__}", flush=True)
    for name in options.tables:
        started = time.process_time()
        print(f"\n{name}\n")
        for line in TABLES[name](bench, options.concepts):
            print(line, flush=True)
        print(f"{name}: {(time.process_time() - started) / 60:.1f} minutes of processor", file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for what is learned, outside the repository")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument(
        "--concepts", nargs=2, choices=bundled_concepts(), default=["two-faced-cat", "hipster"], help="things"
    )
    parser.add_argument("--steps", type=int, default=TOY["max_train_steps"], help="of each training")
    parser.add_argument("--threads", type=int, default=1, help="of the processor")
    return parser.parse_args()


if __name__ == "__main__":
    main()
