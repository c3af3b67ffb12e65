"""What the toy model learns of each bundled concept, by each way of prior preservation, as the judge sees it.

python tests/benchmarks/learning.py [--concepts raccoon sticker] [--seeds 42 43 44]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lib_custom_diffusion.standalone.demo import DemoPictures, teach
from lib_custom_diffusion.standalone.models import load_model
from lib_custom_diffusion.standalone.toy.concepts import bundled_concepts
from lib_custom_diffusion.standalone.toy.judge import Judge
from lib_custom_diffusion.training.plan import TrainingPlan
from lib_custom_diffusion.training.recipes import TOY, plan_settings

COLUMNS = ("asked", "recognised_before", "recognised_after", "likeness_before", "likeness_after",
           "text_alignment_before", "text_alignment_after", "drift", "unrelated_change", "seconds")  # fmt: skip


def main() -> None:
    options = parse()
    backend, judge = load_model("toy"), Judge.load()
    print(f"| concept | seed | prior | {' | '.join(COLUMNS)} |\n|{' --- |' * (len(COLUMNS) + 3)}")
    for name in options.concepts:
        concept = bundled_concepts()[name]
        before = DemoPictures.draw(backend, concept, {}, "drawing before")
        for seed in options.seeds:
            for prior in ("text", "pictures", "none"):
                with tempfile.TemporaryDirectory() as folder:
                    settings = TrainingPlan.of({"seed": seed}, plan_settings(TOY))
                    result = teach(backend, judge, concept, settings, Path(folder), prior, before)
                if result is None:
                    sys.exit("interrupted")
                figures = " | ".join(f"{result.metrics[column]:.4g}" for column in COLUMNS)
                print(f"| {name} | {seed} | {prior} | {figures} |", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", nargs="+", default=list(bundled_concepts()), help="which to teach")
    parser.add_argument("--seeds", type=int, nargs="+", default=[TrainingPlan.seed], help="of the trainings")
    return parser.parse_args()


if __name__ == "__main__":
    main()
