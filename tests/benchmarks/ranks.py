"""What --rank costs in fidelity on the toy model: full matrices, the same cut to a rank, and factors trained at it.

    python tests/benchmarks/ranks.py [--concepts two-faced-cat] [--ranks 1 2 4 8 16 32 64] [--seeds 42] [--output FILE]

Each line is of a training with the demo's recipe, which is the same at every rank, and of the demo's pictures as the
judge sees them. Cut is by the singular values of what was learned in full, all directions of the text alike.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lib_custom_diffusion.algebra.compression import Limit, compress
from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.errors import Interrupted
from lib_custom_diffusion.injection import Injection
from lib_custom_diffusion.standalone.demo import DemoPictures, judged, plan_for
from lib_custom_diffusion.standalone.diffusers_backend import DiffusersBackend
from lib_custom_diffusion.standalone.models import load_model
from lib_custom_diffusion.standalone.toy.concepts import BundledConcept, bundled_concepts
from lib_custom_diffusion.standalone.toy.judge import Judge
from lib_custom_diffusion.standalone.train import run_training
from lib_custom_diffusion.training.plan import TrainingPlan
from lib_custom_diffusion.training.recipes import TOY, plan_settings

COLUMNS = ("asked", "recognised_after", "likeness_after", "text_alignment_after", "drift", "unrelated_change")


def main() -> None:
    options = parse()
    backend, judge = load_model("toy"), Judge.load()
    lines = [f"| concept | seed | matrices | kB | {' | '.join(COLUMNS)} |", "| --- " * (4 + len(COLUMNS)) + "|"]
    print(*lines, sep="\n", flush=True)
    for name in options.concepts:
        bundled = bundled_concepts()[name]
        before = DemoPictures.draw(backend, bundled, {}, "drawing before")
        for seed in options.seeds:
            plan = TrainingPlan.of({"seed": seed, "max_train_steps": options.steps}, plan_settings(TOY))
            for matrices, delta in ways(backend, plan_for(bundled, plan), options.ranks):
                lines.append(f"| {name} | {seed} | {matrices} | {row(backend, judge, bundled, before, delta)} |")
                print(lines[-1], flush=True)
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", nargs="+", default=["two-faced-cat"], help="which to teach")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--seeds", type=int, nargs="+", default=[TrainingPlan.seed], help="of the trainings")
    parser.add_argument("--steps", type=int, help="the demo's if not given")
    parser.add_argument("--output", type=Path, help="write the table there, too")
    return parser.parse_args()


def ways(backend: DiffusersBackend, plan: TrainingPlan, ranks: list[int]) -> Iterator[tuple[str, Delta]]:
    """What is learned in full, what is left of it at each rank, and what is learned at each rank."""
    full = learned(backend, replace(plan, rank=0))
    yield "full", full
    for rank in ranks:
        yield f"cut to {rank}", compress(full, Limit(rank=rank))
        yield f"rank {rank}", learned(backend, replace(plan, rank=rank))


def learned(backend: DiffusersBackend, plan: TrainingPlan) -> Delta:
    with tempfile.TemporaryDirectory() as folder:
        try:
            report = run_training(backend, plan, Path(folder))
        except Interrupted:
            sys.exit("interrupted")
    if report.interrupted:
        sys.exit("interrupted")
    return report.result.delta


def row(backend: DiffusersBackend, judge: Judge, bundled: BundledConcept, before: DemoPictures, delta: Delta) -> str:
    with Injection(backend.unet, [(delta, 1.0)]):
        after = DemoPictures.draw(backend, bundled, delta.embeddings, "drawing")
    metrics = judged(judge, bundled, before, after)
    figures = [f"{metrics[column]:.3g}" for column in COLUMNS]
    return " | ".join([f"{len(delta.to_bytes()) / 1000:.0f}", *figures])


if __name__ == "__main__":
    main()
