"""Two concepts learned alone on the toy, then merged, blended, and drawn alone and together, as the judge sees it.

    python tests/benchmarks/merging.py [--concepts hipster raccoon] [--deltas FILE FILE] [--seeds 16] [--output DIR]

The table has, for each way of joining them:
- each concept's likeness on its own prompts, also as a share of what it had by its own delta;
- off: how far predicted noise is from that by the concept's own delta, relative to how far it is without any
  (noisy pictures of the concept, its own prompts; 0 is its own delta, 1 is none);
- for pictures of both, the left half's likeness to what is named first and the right half's to what is named second:
  the mean of the two, and the lesser, both meant over pictures, with the standard error.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lib_custom_diffusion.algebra.blending import Words, blend, bundle_words
from lib_custom_diffusion.algebra.files import merge_files
from lib_custom_diffusion.backend import Conditioning, Sampling
from lib_custom_diffusion.data.concepts import Concept, find_pictures
from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.injection import Injection
from lib_custom_diffusion.standalone.diffusers_backend import DiffusersBackend
from lib_custom_diffusion.standalone.models import load_model
from lib_custom_diffusion.standalone.report import Row, contact_sheet
from lib_custom_diffusion.standalone.toy import concepts as toy_concepts
from lib_custom_diffusion.standalone.toy.judge import Judge, half_alone, to_input
from lib_custom_diffusion.standalone.train import draw_regularization, run_training
from lib_custom_diffusion.training.plan import TrainingPlan
from lib_custom_diffusion.training.recipes import TOY, plan_settings

SAMPLING = Sampling(steps=25, guidance_scale=4.0, batch_size=16)
CLASS_IMAGES = 32
PROMPTS = ("a {} on a yellow background", "photo of a {} on a pink background")
JOINT_PROMPT = "a {} and a {} on a green background"
TIMESTEPS = (900, 700, 500, 300)


@dataclass(frozen=True)
class Taught:
    """A concept, and the delta that it was learned into, alone."""

    name: str
    folder: Path
    class_word: str
    delta: Delta


@dataclass(frozen=True)
class Trial:
    """Two concepts with their deltas, and what judges them."""

    backend: DiffusersBackend
    judge: Judge
    taught: Sequence[Taught]
    seeds: int

    @cached_property
    def deltas(self) -> list[Delta]:
        return [each.delta for each in self.taught]

    @cached_property
    def words(self) -> Words:
        return bundle_words(self.deltas)

    @cached_property
    def called(self) -> list[str]:
        """What each concept is called in a prompt: "<new2> animal"."""
        tokens = [next(iter(self.words.of(index, delta))) for index, delta in enumerate(self.deltas)]
        return [f"{token} {each.class_word}" for token, each in zip(tokens, self.taught)]

    @cached_property
    def references(self) -> list[Tensor]:
        return [self.judge.embed_pictures(pictures_in(each.folder)) for each in self.taught]

    def likeness(self, pictures: Sequence[Image.Image], concept: int) -> Tensor:
        """Of each picture, (n,)."""
        return (self.judge.embed_pictures(pictures) @ self.references[concept].T).mean(dim=1)

    def draw(self, prompts: Sequence[str], delta: Delta) -> list[Image.Image]:
        pairs = [(prompt, 1000 + seed) for prompt in prompts for seed in range(self.seeds)]
        with Injection(self.backend.unet, [(delta, 1.0)]), torch.no_grad():
            return self.backend.generate([p for p, _ in pairs], [s for _, s in pairs], SAMPLING, self.words.vectors)

    def alone(self, joint: Delta | None) -> tuple[list[float], list[list[Image.Image]]]:
        """Likeness on each concept's own prompts, by the joint delta or else its own, and the pictures."""
        drawn = [
            self.draw([prompt.format(called) for prompt in PROMPTS], joint or own)
            for called, own in zip(self.called, self.deltas)
        ]
        return [float(self.likeness(pictures, index).mean()) for index, pictures in enumerate(drawn)], drawn

    def together(self, joint: Delta) -> tuple[Tensor, list[Image.Image]]:
        """Likeness of the half of each concept in pictures of both, (2, n), in both orders, and the pictures."""
        found, drawn = [], []
        for left, right in ((0, 1), (1, 0)):
            pictures = self.draw([JOINT_PROMPT.format(self.called[left], self.called[right])], joint)
            halves = [[half_alone(picture, side) for picture in pictures] for side in (0, 1)]
            found.append(torch.stack([self.likeness(halves[0], left), self.likeness(halves[1], right)]))
            drawn += pictures
        return torch.cat(found, dim=1), drawn

    def off(self, joint: Delta) -> list[float]:
        """Distance of predicted noise from that by each concept's own delta, relative to that without any."""
        distances = []
        for index, own in enumerate(self.deltas):
            wanted, none, got = (self._noise(index, delta) for delta in (own, Delta({}), joint))
            distances.append(float((got - wanted).norm() / (none - wanted).norm()))
        return distances

    @torch.no_grad()
    def _noise(self, concept: int, delta: Delta) -> Tensor:
        pixels = torch.nn.functional.interpolate(to_input(pictures_in(self.taught[concept].folder)), scale_factor=2)
        latents = self.backend.encode_pictures(pixels).mean
        prompts = [PROMPTS[index % len(PROMPTS)].format(self.called[concept]) for index in range(len(latents))]
        conditioning = Conditioning(self.backend.encode_captions(prompts, self.words.vectors).crossattn)
        generator, predicted = torch.Generator().manual_seed(0), []
        with Injection(self.backend.unet, [(delta, 1.0)]):
            for timestep in TIMESTEPS:
                signal = self.backend.alphas_cumprod[timestep]
                noise = torch.randn(latents.shape, generator=generator)
                noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
                timesteps = torch.full((len(latents),), timestep)
                predicted.append(self.backend.predict(noisy, timesteps, conditioning))
        return torch.stack(predicted)

    def merged(self, only_targets: bool) -> Delta:
        """As the command merges their files, with the model's own captions."""
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / f"{number}.delta.safetensors" for number in range(len(self.deltas))]
            for path, delta in zip(paths, self.deltas):
                delta.save(path)
            made = Path(folder) / "merged.delta.safetensors"
            merge_files(paths, made, lambda: self.backend, only_targets=only_targets)
            return Delta.load(made)


WAYS: dict[str, Callable[[Trial], Delta]] = {
    "merged": lambda trial: trial.merged(only_targets=False),
    "plain sum": lambda trial: blend(trial.deltas, [1.0, 1.0]).delta,
    "half of each": lambda trial: blend(trial.deltas, [0.5, 0.5]).delta,
    "the paper's merge": lambda trial: trial.merged(only_targets=True),
}


def main() -> None:
    options = parse()
    backend, judge = load_model("toy"), Judge.load()
    deltas = [Delta.load(path) for path in options.deltas] or [None, None]
    taught = [teach(backend, name, delta) for name, delta in zip(options.concepts, deltas)]
    rows: list[Row] = []
    for line in table(Trial(backend, judge, taught, options.seeds), options.ways, rows):
        print(line, flush=True)
        if rows:
            contact_sheet(rows).save(options.output / "merging.png")


def table(trial: Trial, ways: Sequence[str], rows: list[Row]) -> Iterator[str]:
    """The table's lines, in Markdown, one after the other; the pictures that were drawn for it go to rows."""
    names = [each.name for each in trial.taught]
    yield f"| way | {' | '.join(f'{name} | of alone | off' for name in names)} | both: mean | lesser |"
    yield f"|{' --- |' * (3 * len(names) + 3)}"
    first, drawn = trial.alone(None)
    rows += [Row(f"{name} alone", pictures[:8]) for name, pictures in zip(names, drawn)]
    yield f"| each alone | {' | '.join(f'{value:.3f} | 100% | 0' for value in first)} | | |"
    for way in ways:
        joint = WAYS[way](trial)
        values, drawn = trial.alone(joint)
        halves, pictures = trial.together(joint)
        shares = [value / best for value, best in zip(values, first)]
        figures = [f"{v:.3f} | {s:.0%} | {o:.2f}" for v, s, o in zip(values, shares, trial.off(joint))]
        joined = [
            f"{each.mean():.3f} ± {each.std() / len(each) ** 0.5:.3f}" for each in (halves.mean(0), halves.amin(0))
        ]
        rows += [Row(f"{way}: {name}", own[:8]) for name, own in zip(names, drawn)]
        rows.append(Row(f"{way}: both", [*pictures[:4], *pictures[trial.seeds : trial.seeds + 4]]))
        yield f"| {way} | {' | '.join([*figures, *joined])} |"


def teach(backend: DiffusersBackend, name: str, delta: Delta | None) -> Taught:
    """A bundled concept, or one of tests/data, taught by the toy's recipe with prior preservation if it was not yet."""
    bundled = toy_concepts.bundled_concepts().get(name)
    folder = bundled.folder if bundled else Path(__file__).parents[1] / "data" / name
    prompt = bundled.instance_prompt if bundled else "photo of a <new1> animal"
    class_prompt = bundled.class_prompt if bundled else "photo of an animal"
    if delta is None:
        with tempfile.TemporaryDirectory() as made:
            class_images, output = Path(made) / "class", Path(made) / "output"
            sampling = replace(SAMPLING, steps=15)
            draw_regularization(backend, class_prompt, class_images, CLASS_IMAGES, sampling, TrainingPlan.seed)
            concept = Concept(prompt, folder, class_prompt, class_images)
            settings = {"with_prior_preservation": True, "num_class_images": 0, "name": name}
            plan = TrainingPlan.of({**settings, "concepts": [concept]}, plan_settings(TOY))
            delta = run_training(backend, plan, output).result.delta
    return Taught(name, folder, prompt.split()[-1], delta)


def pictures_in(folder: Path) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in find_pictures(folder)]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", nargs=2, default=["hipster", "two-faced-cat"], help="bundled, or of tests/data")
    parser.add_argument(
        "--deltas", type=Path, nargs=2, default=[], help="their deltas, if they have been trained already"
    )
    parser.add_argument("--seeds", type=int, default=16, help="pictures of each prompt")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="of joining them")
    parser.add_argument("--output", type=Path, default=Path("."), help="folder for merging.png")
    return parser.parse_args()


if __name__ == "__main__":
    main()
