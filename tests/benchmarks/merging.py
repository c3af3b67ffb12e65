"""Two concepts learned alone on the toy, then merged, blended, and drawn alone and together, as the judge sees it.

python tests/benchmarks/merging.py [--concepts raccoon blue-cat] [--deltas FILE FILE] [--seeds 8] [--output DIR]

The table has, for each way of joining them: each concept's likeness on its own prompts, also as a share of what it had
alone; and for pictures of both, the lesser of the two likenesses, meant over pictures. "padding N" merges with the
first N padding positions after the end token as further targets, which the paper does not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lib_custom_diffusion.backend import Sampling
from lib_custom_diffusion.blending import Words, blend, bundle_words
from lib_custom_diffusion.concepts import find_pictures
from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.injection import Injection
from lib_custom_diffusion.merging import merge, target_features
from lib_custom_diffusion.standalone.demo import teach
from lib_custom_diffusion.standalone.diffusers_backend import DiffusersBackend
from lib_custom_diffusion.standalone.models import load_model
from lib_custom_diffusion.standalone.report import Row, contact_sheet
from lib_custom_diffusion.standalone.toy.concepts import BundledConcept, bundled_concepts
from lib_custom_diffusion.standalone.toy.judge import Judge
from lib_custom_diffusion.standalone.train import TOY_RECIPE
from lib_custom_diffusion.text_features import concept_words, count_tokens, read_captions, spoken_features

SAMPLING = Sampling(steps=25, guidance_scale=4.0, batch_size=8)
PADDING = (0, 4, 16, 64)


@dataclass(frozen=True)
class Trial:
    """Two concepts with their deltas, and what judges them."""

    backend: DiffusersBackend
    judge: Judge
    concepts: list[BundledConcept]
    deltas: list[Delta]
    seeds: int

    @cached_property
    def words(self) -> Words:
        return bundle_words(self.deltas)

    @cached_property
    def vectors(self) -> dict[str, Tensor]:
        return {token: vectors.float() for token, vectors in self.words.vectors.items()}

    @cached_property
    def tokens(self) -> list[str]:
        return [next(iter(self.words.of(index, delta))) for index, delta in enumerate(self.deltas)]

    def draw(self, prompts: Sequence[str], delta: Delta) -> list[Image.Image]:
        pairs = [(prompt, 1000 + seed) for prompt in prompts for seed in range(self.seeds)]
        with Injection(self.backend.unet, [(delta, 1.0)]), torch.no_grad():
            return self.backend.generate([p for p, _ in pairs], [s for _, s in pairs], SAMPLING, self.vectors)

    def alone(self, joint: Delta | None) -> tuple[list[float], list[list[Image.Image]]]:
        """Likeness on each concept's own prompts, by the joint delta or else its own, and the pictures."""
        values, drawn = [], []
        for concept, own, token in zip(self.concepts, self.deltas, self.tokens):
            prompts = [prompt.replace(concept.modifier_token, token) for prompt in concept.prompts]
            pictures = self.draw(prompts, joint or own)
            values.append(self.judge.likeness(pictures, references(concept)))
            drawn.append(pictures[:: self.seeds] + pictures[1 :: self.seeds])
        return values, drawn

    def together(self, joint: Delta) -> tuple[float, list[Image.Image]]:
        """The lesser likeness, meant over pictures of both, and the pictures."""
        called = [f"a {t} {c.instance_prompt.split()[-1]}" for t, c in zip(self.tokens, self.concepts)]
        orders = (called, called[::-1])
        pictures = self.draw([f"{a} and {b} on a {c} background" for a, b in orders for c in ("green", "white")], joint)
        embedded = self.judge.embed_pictures(pictures)
        each = [(embedded @ self.judge.embed_pictures(references(c)).T).mean(dim=1) for c in self.concepts]
        return float(torch.stack(each).amin(dim=0).mean()), pictures

    def merged(self, padding: int) -> Delta:
        targets = target_features(self.backend, self.deltas, self.words)
        if padding:
            targets = [torch.cat([t, self._padding(index, padding)]) for index, t in enumerate(targets)]
        found = merge(self.deltas, targets, spoken_features(self.backend, read_captions()[::3], {}))
        print(f"padding {padding}: residual {found.residual:.1e}, rows {found.target_rows}", flush=True)
        return found.delta

    @torch.no_grad()
    def _padding(self, index: int, count: int) -> Tensor:
        """Features of the first padding positions of a concept's own prompt."""
        rows = []
        for spoken in concept_words(self.words.of(index, self.deltas[index])):
            prompt = f"photo of a {spoken}"
            first = 2 + count_tokens(self.backend, prompt, self.vectors)
            features = self.backend.encode_captions([prompt], self.vectors).crossattn
            rows.append(features[0, first : first + count].double())
        return torch.cat(rows)


def main() -> None:
    options = parse()
    backend, judge = load_model("toy"), Judge.load()
    concepts = [bundled_concepts()[name] for name in options.concepts]
    deltas = [Delta.load(path) for path in options.deltas] or [taught(backend, judge, concept) for concept in concepts]
    trial = Trial(backend, judge, concepts, deltas, options.seeds)
    ways = {"plain sum": blend(deltas, [1.0, 1.0]).delta, "half of each": blend(deltas, [0.5, 0.5]).delta}
    ways |= {f"merged, padding {padding}": trial.merged(padding) for padding in PADDING}
    first, drawn = trial.alone(None)
    shares_of, joint = {}, {}
    rows = [Row(f"{concept.name} alone", pictures[:8]) for concept, pictures in zip(concepts, drawn)]
    print(f"| way | {' | '.join(f'{concept.name} | of alone' for concept in concepts)} | both |")
    print(f"|{' --- |' * (2 * len(concepts) + 2)}\n| each alone | {' | '.join(f'{v:.3f} | 100%' for v in first)} | |")
    for name, delta in ways.items():
        values, drawn = trial.alone(delta)
        both, pictures = trial.together(delta)
        shares_of[name], joint[name] = [value / best for value, best in zip(values, first)], both
        shares = " | ".join(f"{value:.3f} | {share:.0%}" for value, share in zip(values, shares_of[name]))
        print(f"| {name} | {shares} | {both:.3f} |", flush=True)
        rows += [Row(f"{name}: {concept.name}", own[:8]) for concept, own in zip(concepts, drawn)]
        rows.append(Row(f"{name}: both", pictures[:: trial.seeds] + pictures[1 :: trial.seeds]))
    contact_sheet(rows).save(options.output / "merging.png")
    merged = "merged, padding 0"
    kept = min(shares_of[merged])
    print(f"merged: each keeps at least {kept:.0%} of its likeness, {'met' if kept >= 0.9 else 'MISSED'} (90%)")
    best = max(joint[name] for name in joint if not name.startswith("merged"))
    print(
        f"both in one picture: {joint[merged]:.3f} merged, {best:.3f} blended,"
        f" {'met' if joint[merged] > best else 'MISSED'} (more than blended)"
    )


def taught(backend: DiffusersBackend, judge: Judge, concept: BundledConcept) -> Delta:
    with tempfile.TemporaryDirectory() as folder:
        if teach(backend, judge, concept, TOY_RECIPE, Path(folder)) is None:
            sys.exit("interrupted")
        return Delta.load(Path(folder) / f"{concept.name}.delta.safetensors")


def references(concept: BundledConcept) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in find_pictures(concept.folder)]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", nargs=2, default=["raccoon", "blue-cat"], help="which two")
    parser.add_argument(
        "--deltas", type=Path, nargs=2, default=[], help="their deltas, if they have been trained already"
    )
    parser.add_argument("--seeds", type=int, default=8, help="pictures of each prompt")
    parser.add_argument("--output", type=Path, default=Path("."), help="folder for merging.png")
    return parser.parse_args()


if __name__ == "__main__":
    main()
