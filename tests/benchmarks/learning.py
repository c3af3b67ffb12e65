"""What the toy model learns of each bundled concept, with and without prior preservation, as the judge sees it.

python tests/benchmarks/learning.py [--seeds 42 43 44] [--steps N] [--learning_rate R] [--embedding_learning_rate R]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lib_custom_diffusion.standalone.demo import teach
from lib_custom_diffusion.standalone.models import load_model
from lib_custom_diffusion.standalone.toy.concepts import bundled_concepts
from lib_custom_diffusion.standalone.toy.judge import Judge
from lib_custom_diffusion.standalone.train import TOY_RECIPE

COLUMNS = ("likeness_before", "likeness_after", "text_alignment_before", "text_alignment_after", "drift",
           "unrelated_change", "seconds")  # fmt: skip


def main() -> None:
    options = parse()
    config = replace(
        TOY_RECIPE,
        max_train_steps=options.steps,
        learning_rate=options.learning_rate,
        embedding_learning_rate=options.embedding_learning_rate,
    )
    backend, judge = load_model("toy"), Judge.load()
    print(f"| concept | seed | prior preservation | {' | '.join(COLUMNS)} |\n|{' --- |' * (len(COLUMNS) + 3)}")
    for name in options.concepts:
        for seed in options.seeds:
            for prior in (True, False):
                with tempfile.TemporaryDirectory() as folder:
                    settings = replace(config, seed=seed)
                    result = teach(backend, judge, bundled_concepts()[name], settings, Path(folder), prior)
                if result is None:
                    sys.exit("interrupted")
                figures = " | ".join(f"{result.metrics[column]:.3f}" for column in COLUMNS)
                print(f"| {name} | {seed} | {'yes' if prior else 'no'} | {figures} |", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", nargs="+", default=list(bundled_concepts()), help="which to teach")
    parser.add_argument("--seeds", type=int, nargs="+", default=[TOY_RECIPE.seed], help="of the trainings")
    parser.add_argument("--steps", type=int, default=TOY_RECIPE.max_train_steps, help="of each training")
    parser.add_argument("--learning_rate", default=TOY_RECIPE.learning_rate, help="of the deltas")
    parser.add_argument("--embedding_learning_rate", default=TOY_RECIPE.embedding_learning_rate, help="of the new word")
    return parser.parse_args()


if __name__ == "__main__":
    main()
