"""How well concepts are learned, beside other ways to learn them, as the judge of the toy model sees it.

    python tests/benchmarks/fidelity.py --work FOLDER [--concepts raccoon sticker] [--seeds 42 43 44] [--minutes 60]
        [--diffusers_script PATH/train_custom_diffusion.py] [--equal seconds] [--output TABLES.md] [--quick]
    python tests/benchmarks/fidelity.py --work FOLDER --concepts held-out --ways text word

Each cell of the tables, a training with its pictures, is kept in FOLDER when it is done, so the same command goes on
where it was stopped; the tables are of what is there. Use another folder when the code has changed; another model gets
a folder of its own within it.

1. Every way in `ways.py`, with the rate that is best for it by a sweep, which is printed: rates by factors of 3 around
   the first guess, and on until the best is none at an end. Best is the greatest likeness + text alignment - drift of
   the class - change elsewhere, on the first concept with a seed that the table has not. Steps are equal; with
   `--equal seconds` each way has as many as it does in the time that ours takes (of the processor, or on a GPU of the
   clock) for --steps.
2. Two concepts: learned together, or apart and then merged, added up, or learned one after the other.
3. Ours, compressed.
4. Ours in another style, of things held out from the toy.
5. In the first table, of held-out concepts, what true drawings of them score that went through the VAE: the most that
   can be asked of a model. Where their text alignment is below that of the class before, so is any good one's.

Figures are means ± standard deviations over seeds: in the rows of all concepts, of the means over concepts.

All of it takes hours. `--quick` takes less of everything: two concepts, one seed, six of the ways, half of the steps,
fewer pictures, and a sweep of three rates that is not carried on beyond them. So it says which way is far ahead of
which, and not which of two near ones is the better. What is named on the command line as well is as it says there.

`held-out` stands for the twelve concepts of held_out.py, without the tables of two concepts and of compression. The
table of styles is of the six of them that are things; where a coat is what was learned, a style would paint it over.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from held_out import HELD_OUT, held_out_concept, true_drawings
from styles import styled
from toy_quality import pictures_through_vae
from ways import WAYS, Task, Taught, train

from lib_custom_diffusion.algebra.blending import blend
from lib_custom_diffusion.algebra.compression import Limit
from lib_custom_diffusion.algebra.files import compress_file, merge_files
from lib_custom_diffusion.backend import Sampling
from lib_custom_diffusion.data import regularization
from lib_custom_diffusion.data.concepts import find_pictures
from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.injection import Injection
from lib_custom_diffusion.standalone.demo import CLASS_SAMPLING, SAMPLING, DemoPictures, judged, plan_for
from lib_custom_diffusion.standalone.diffusers_backend import DiffusersBackend
from lib_custom_diffusion.standalone.models import load_model
from lib_custom_diffusion.standalone.toy.concepts import BundledConcept, bundled_concepts
from lib_custom_diffusion.standalone.toy.judge import Judge, half_alone
from lib_custom_diffusion.storage import write_atomically
from lib_custom_diffusion.text_features import class_noun
from lib_custom_diffusion.training.plan import TrainingPlan
from lib_custom_diffusion.training.recipes import TOY, plan_settings

Figures = dict[str, Any]
OURS = "text"
FACTOR = 3.0
SWEEP_SEED = 7
PAIRS = ("joint", "merged", "blended", "sequential")
RATIOS = (5, 15, 50)
TRUE_SEEDS = range(16)  # drawings cost nothing
FLAMINGO = BundledConcept(
    name="flamingo", description="", folder=Path(__file__).parents[1] / "flamingo",
    instance_prompt="photo of a <new2> swan", class_prompt="photo of a swan", modifier_token="<new2>",
    initializer_token="pll", caption_source="prompt", known_as="flamingo",
    prompts=("a <new2> swan on a yellow background", "a small <new2> swan on a green background"),
    judge_captions=("an animal on a yellow background", "a small animal on a green background"),
    sentences=("", ""), unrelated_prompts=("a car on a white background",),
)  # fmt: skip
"""The second of the two concepts; the first is the first that is named."""


@dataclass(frozen=True)
class Amount:
    """How much is done for a cell: seeds of its pictures, those of a class, pictures of the class to train on, and
    views of each of the concept's.
    """

    seeds: range = range(1000, 1004)
    class_seeds: range = range(1000, 1048)
    class_images: int = 32
    variants: int = TrainingPlan.variants


@dataclass(frozen=True)
class Extent:
    """What is measured, where the command line does not say: concepts, seeds of the trainings, ways and steps of ours.

    most_rates: of a sweep; at three it is not carried on.
    """

    concepts: Sequence[str]
    seeds: Sequence[int]
    ways: Sequence[str]
    steps: int
    most_rates: int
    amount: Amount


WHOLE = Extent(list(bundled_concepts()), (42, 43, 44), list(WAYS), int(str(TOY["max_train_steps"])), 7, Amount())
QUICK = Extent(
    ("two-faced-cat", "sticker"), (42,), ("word", "none", "pictures", "text", "lora-kv", "unet", "script"),
    WHOLE.steps // 2, 3, Amount(range(1000, 1003), range(1000, 1024), 16, 2),
)  # fmt: skip


class Study:
    """The cells: each is measured once, and then read from the disk."""

    def __init__(self, backend: DiffusersBackend, judge: Judge, amount: Amount, options: argparse.Namespace) -> None:
        self.backend, self.judge, self.amount, self.options = backend, judge, amount, options
        self.folder: Path = options.work / (backend.checkpoint_hash or backend.name) / ("quick" * options.quick)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.ends = time.monotonic() + 60 * options.minutes
        self.before, self.sweep = cache(self._before), cache(self._sweep)

    def cell(self, name: str, measure: Callable[[], Figures]) -> Figures | None:
        """The figures of that name; None if they are not there and the time is over."""
        path = self.folder / f"{name}.json"
        if path.is_file():
            return json.loads(path.read_text())
        if time.monotonic() > self.ends:
            return None
        started = time.monotonic()
        figures = measure()
        write_atomically(path, json.dumps(figures, indent=1).encode())
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        return figures

    # One concept.

    def name(self, bundled: BundledConcept, way: str, seed: int, rate: float, steps: int) -> str:
        """Of a cell, and of the delta that is kept beside it."""
        return f"{bundled.name}-{way}-rate{rate:.3g}-steps{steps}-seed{seed}"

    def delta(self, name: str) -> Path:
        """Where what a cell learned is kept."""
        return self.folder / f"{name}.delta.safetensors"

    def taught(self, bundled: BundledConcept, way: str, seed: int, rate: float, steps: int) -> Figures | None:
        """One concept learned in one way. rate: times the recipe's."""
        name = self.name(bundled, way, seed, rate, steps)

        def measure() -> Figures:
            plan = self.plan(bundled, way, seed, steps)
            of_word = plan.embedding_learning_rate if way == "word" else plan.learning_rate
            with tempfile.TemporaryDirectory() as folder:
                task = Task(self.backend, plan, float(of_word) * rate, Path(folder), self.options.diffusers_script)
                taught = WAYS[way].teach(task)
            if taught.delta is not None:
                taught.delta.save(self.delta(name))
            return {**self.judged(bundled, taught), "numbers": taught.numbers, "seconds": taught.seconds}

        return self.cell(name, measure)

    def plan(self, bundled: BundledConcept, way: str, seed: int, steps: int) -> TrainingPlan:
        """The recipe, with the concept's class pictures if the way takes them."""
        given = {"seed": seed, "max_train_steps": steps, "variants": self.amount.variants}
        recipe = TrainingPlan.of(given, plan_settings(TOY))
        pictures = WAYS[way].pictures
        plan = plan_for(bundled, recipe, "pictures" if pictures else "none")
        folder = self._class_pictures(bundled) if pictures else None
        concept = replace(plan.concepts[0], class_data_dir=folder)
        return replace(plan, concepts=(concept,), num_class_images=self.amount.class_images)

    def judged(self, bundled: BundledConcept, taught: Taught) -> Figures:
        """Draw what was learned, and let it be judged."""
        acting = Injection(taught.backend.unet, [(taught.delta, 1.0)]) if taught.delta is not None else nullcontext()
        with acting:
            after = DemoPictures.draw(taught.backend, bundled, taught.vectors, "drawing", *self._seeds())
        return judged(self.judge, bundled, self.before(bundled.name), after)

    def _seeds(self) -> tuple[range, range]:
        return self.amount.seeds, self.amount.class_seeds

    def _before(self, name: str) -> DemoPictures:
        bundled = FLAMINGO if name == FLAMINGO.name else self.concept(name)
        return DemoPictures.draw(self.backend, bundled, {}, f"drawing before, {name}", *self._seeds())

    def _class_pictures(self, bundled: BundledConcept) -> Path:
        folder = self.folder / f"class-{bundled.name}"
        regularization.generate(
            self.backend, bundled.class_prompt, folder, self.amount.class_images, SAMPLING, SWEEP_SEED
        )
        return folder

    # The rates.

    def _sweep(self, way: str) -> dict[float, Figures]:
        """The figures by rate, the rates in their order; none if the time is over before the best is known."""
        bundled = self.concepts()[0]
        found: dict[float, Figures] = {}
        wanted = [WAYS[way].rate * factor for factor in (1 / FACTOR, 1, FACTOR)]
        while wanted:
            for rate in wanted:
                figures = self.taught(bundled, way, SWEEP_SEED, rate, self.options.steps)
                if figures is None:
                    return {}
                found[rate] = figures
            best, least, most = best_of(found), min(found), max(found)
            wanted = [least / FACTOR] if best == least else [most * FACTOR] if best == most else []
            if len(found) >= self.options.most_rates:
                break
        return dict(sorted(found.items()))

    def steps(self, way: str) -> int:
        """How many a way may do."""
        if self.options.equal == "steps" or way == OURS:
            return self.options.steps
        ours, own = (statistics.median(each["seconds"] for each in self.sweep(it).values()) for it in (OURS, way))
        return max(1, round(self.options.steps * ours / own)) if own else self.options.steps

    def row(self, bundled: BundledConcept, way: str, seed: int) -> Figures | None:
        """A cell of the first table; None if it is not there."""
        if not (self.sweep(way) and self.sweep(OURS)):
            return None
        return self.taught(bundled, way, seed, best_of(self.sweep(way)), self.steps(way))

    def concepts(self) -> list[BundledConcept]:
        """Those that are asked for."""
        return [self.concept(name) for name in self.options.concepts]

    def concept(self, name: str) -> BundledConcept:
        """A bundled one, or one of `HELD_OUT`."""
        if name in HELD_OUT:
            return held_out_concept(name, self.folder / "pictures" / name)
        return bundled_concepts()[name]

    # Two concepts.

    def pair(self, way: str, seed: int) -> Figures | None:
        """Two concepts made one, in one of PAIRS."""
        both = [self.concepts()[0], FLAMINGO]
        if not self.sweep(OURS) or any(self.alone(each, seed) is None for each in both):
            return None
        steps = self.options.steps

        def measure() -> Figures:
            deltas = self._joined(way, both, seed)
            return self._judged_pair(both, deltas)

        return self.cell(f"pair-{both[0].name}-{way}-steps{steps}-seed{seed}", measure)

    def alone(self, bundled: BundledConcept, seed: int) -> Path | None:
        """The delta of one concept learned in our way; None if it is not there."""
        if not self.sweep(OURS):
            return None
        arguments = bundled, OURS, seed, best_of(self.sweep(OURS)), self.options.steps
        return None if self.taught(*arguments) is None else self.delta(self.name(*arguments))

    def _joined(self, way: str, both: Sequence[BundledConcept], seed: int) -> list[Delta]:
        """What acts in the end."""
        alone = [
            self.delta(self.name(each, OURS, seed, best_of(self.sweep(OURS)), self.options.steps)) for each in both
        ]
        deltas = [Delta.load(path) for path in alone]
        rate = best_of(self.sweep(OURS)) * float(str(TOY["learning_rate"]))
        with tempfile.TemporaryDirectory() as folder:
            if way == "merged":
                path = Path(folder) / "merged.delta.safetensors"
                merge_files(alone, path, lambda: self.backend)
                return [Delta.load(path)]
            if way == "blended":
                return [blend(deltas, [1.0, 1.0]).delta]
            plans = [self.plan(each, OURS, seed, self.options.steps) for each in both]
            if way == "joint":
                plan = replace(
                    plans[0], concepts=(*plans[0].concepts, *plans[1].concepts), caption_source="prompt", prior="text",
                    modifier_token=tuple(each.modifier_token for each in both), learning_rate=str(rate),
                    initializer_token=tuple(each.initializer_token for each in both),
                    max_train_steps=2 * self.options.steps,
                )  # fmt: skip
                return [train(self.backend, plan, Path(folder))[0]]
            with Injection(self.backend.unet, [(deltas[0], 1.0)]):
                plan = replace(plans[1], learning_rate=str(rate), prior="text")
                return [deltas[0], train(self.backend, plan, Path(folder))[0]]

    def _judged_pair(self, both: Sequence[BundledConcept], deltas: Sequence[Delta]) -> Figures:
        """Each of the two beside the other, on either side, and its class."""
        seeds, class_seeds = self.amount.seeds, self.amount.class_seeds
        words = [class_noun(each.instance_prompt) for each in both]
        prompts = [f"a {words[left]} and a {words[1 - left]} on a green background" for left in (0, 1) for _ in seeds]
        captions = ["an animal and an animal on a green background"] * len(prompts)
        vectors = {token: each.float() for delta in deltas for token, each in delta.embeddings.items()}

        def draw(prompts: Sequence[str], seeds: Sequence[int], sampling: Sampling) -> list[Image.Image]:
            with torch.no_grad():
                return self.backend.generate(prompts, seeds, sampling, vectors)

        with Injection(self.backend.unet, [(delta, 1.0) for delta in deltas]):
            pictures = draw(prompts, [*seeds, *seeds], SAMPLING)
            classes = [draw([each.class_prompt] * len(class_seeds), class_seeds, CLASS_SAMPLING) for each in both]
        count = len(seeds)
        halves_of = [
            [half_alone(picture, int((index < count) == (number == 1))) for index, picture in enumerate(pictures)]
            for number in (0, 1)
        ]
        references = [[Image.open(path).convert("RGB") for path in find_pictures(each.folder)] for each in both]
        halves = list(zip(halves_of, references))
        known = [each.known_as for each in both]
        seen = [self.judge.recognised(*half, own) for half, own in zip(halves, known, strict=True)]
        drifts = [
            self.judge.drift(self.before(each.name).of(each.class_prompt), drawn)
            for each, drawn in zip(both, classes, strict=True)
        ]
        return {
            "asked": len(pictures),
            "recognised": sum(map(all, zip(*seen))),
            "likeness": statistics.mean(self.judge.likeness(*half) for half in halves),
            "likeness_of_the_other": statistics.mean(
                self.judge.likeness(half, wrong) for (half, _), wrong in zip(halves, reversed(references))
            ),
            "text_alignment": self.judge.text_alignment(pictures, captions),
            "drift": statistics.mean(drifts),
        }

    # Compression.

    def compressed(self, bundled: BundledConcept, ratio: int, seed: int) -> Figures | None:
        """Ours at a part of its size; no figures but the reason where that cannot be."""
        whole = self.alone(bundled, seed)
        if whole is None:
            return None

        def measure() -> Figures:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / whole.name
                try:
                    done = compress_file(whole, path, Limit(whole.stat().st_size // ratio), lambda: self.backend)
                except UserError as error:
                    return {"impossible": str(error)}
                delta = Delta.load(path)
            taught = Taught(self.backend, delta.embeddings, 0, 0.0, delta)
            return {**self.judged(bundled, taught), "error": done.error, "kilobytes": done.size / 1000}

        return self.cell(f"{whole.name.partition('.delta')[0]}-compressed{ratio}", measure)

    # True drawings.

    def true(self, bundled: BundledConcept) -> Figures | None:
        """What the judge says of true drawings of a held-out concept, through the VAE, with all else as before."""

        def measure() -> Figures:
            before = self.before(bundled.name)
            others = [each for each in zip(before.prompts, before.pictures) if each[0] not in bundled.prompts]
            drawn = true_drawings(bundled, TRUE_SEEDS)
            seen = pictures_through_vae(self.backend.pipeline, [picture for _, picture in drawn])
            prompts, pictures = zip(*zip([prompt for prompt, _ in drawn], seen, strict=True), *others)
            return {**judged(self.judge, bundled, before, DemoPictures(prompts, pictures)), "seconds": 0.0}

        return self.cell(f"{bundled.name}-true", measure)

    # Styles.

    def styled(self, bundled: BundledConcept, seed: int | None) -> Figures | None:
        """A held-out thing in other styles, ours learned with `seed`; with none, its class by the model as it is."""
        whole = None if seed is None else self.alone(bundled, seed)
        if whole is None and seed is not None:
            return None
        name = f"{bundled.name}-class" if whole is None else whole.name.partition(".delta")[0]

        def measure() -> Figures:
            delta = None if whole is None else Delta.load(whole)
            return styled(self.judge, self.backend, bundled.name, delta, self.amount.seeds)

        return self.cell(f"{name}-styled", measure)


def best_of(found: Mapping[float, Figures]) -> float:
    """The rate with the best figures, each counting alike."""
    return max(found, key=lambda rate: score(found[rate]))


def score(figures: Figures) -> float:
    """What the sweep seeks the most of."""
    gained = figures["likeness_after"] + figures["text_alignment_after"]
    return gained - figures["drift"] - figures["unrelated_change"]


# The tables.

COLUMNS = {
    "recognised": "recognised_after", "likeness": "likeness_after", "text alignment": "text_alignment_after",
    "drift of the class": "drift", "change elsewhere": "unrelated_change", "s/step": "seconds",
}  # fmt: skip
PAIR_COLUMNS = {
    "both recognised": "recognised", "likeness": "likeness", "likeness of the other": "likeness_of_the_other",
    "text alignment": "text_alignment", "drift of the classes": "drift",
}  # fmt: skip
STYLE_COLUMNS = {"thing recognised": "thing", "style recognised": "style", "both recognised": "both"}
SMALL_COLUMNS = {"kB": "kilobytes", "error on text": "error", **dict(list(COLUMNS.items())[:-1])}


def tables(study: Study) -> str:
    """All that is there, in Markdown, with the sweep and what became of the paper's ordering."""
    ways = [way for way in study.options.ways if way != "script" or study.options.diffusers_script]
    concepts, seeds = study.concepts(), study.options.seeds
    first = {
        (bundled.name, WAYS[way].label): [study.row(bundled, way, seed) for seed in seeds]
        for way in ways
        for bundled in concepts
    }
    first |= {
        (bundled.name, "true drawings"): [study.true(bundled)] for bundled in concepts if bundled.name in HELD_OUT
    }
    bundled_only = not set(study.options.concepts) & set(HELD_OUT)
    pairs = {("", way): [study.pair(way, seed) for seed in seeds] for way in PAIRS if bundled_only}
    small = {
        (bundled.name, f"{ratio} ×"): [study.compressed(bundled, ratio, seed) for seed in seeds]
        for ratio in RATIOS
        for bundled in concepts
        if bundled_only
    }
    things = [bundled for bundled in concepts if bundled.name in HELD_OUT and HELD_OUT[bundled.name].coat is None]
    in_styles = {
        (bundled.name, label): [study.styled(bundled, seed) for seed in trained]
        for label, trained in (("the class, before", (None,)), ("ours", seeds))
        for bundled in things
    }
    head = (
        f"{'quick, ' * study.options.quick}{study.backend.checkpoint_hash or study.backend.name},"
        f" {study.options.steps} steps of ours, equal"
        f" {study.options.equal}, seeds {', '.join(map(str, seeds))}; torch {torch.__version__}"
    )
    return "\n\n".join(
        [
            head,
            sweep_table(study, ways),
            table(first, COLUMNS, "way"),
            orderings(first),
            table(pairs, PAIR_COLUMNS, "two concepts"),
            table(small, SMALL_COLUMNS, "compressed"),
            table(in_styles, STYLE_COLUMNS, "in other styles"),
        ]
    )


def sweep_table(study: Study, ways: Sequence[str]) -> str:
    """Each way's scores by rate, as multiples of the recipe's, the best in bold."""
    lines = ["| way | numbers trained | steps | score by rate |", "| --- | --- | --- | --- |"]
    for way in ways:
        found = study.sweep(way)
        if found and study.sweep(OURS):
            best, numbers = best_of(found), next(iter(found.values()))["numbers"]
            tried = [f"{rate:.2g}: {score(figures):.3f}" for rate, figures in found.items()]
            shown = ", ".join(f"**{text}**" if rate == best else text for rate, text in zip(found, tried))
            ends = " (none tried beyond)" * (best in (min(found), max(found)))
            lines.append(f"| {WAYS[way].label} | {numbers:,} | {study.steps(way)} | {shown}{ends} |")
    return "\n".join(lines)


Rows = Mapping[tuple[str, str], Sequence[Figures | None]]
"""Figures of each seed, by concept and by what was done."""


def table(rows: Rows, columns: Mapping[str, str], what: str) -> str:
    """A line for each row, and one for all concepts where there are several."""
    lines = [f"| concept | {what} | seeds | {' | '.join(columns)} |", "| --- " * (3 + len(columns)) + "|"]
    done: dict[str, list[Sequence[Figures | None]]] = {}
    for (concept, label), cells in rows.items():
        lines += line(concept, label, cells, columns)
        done.setdefault(label, []).append(cells)
    for label, each in done.items():
        if len(each) > 1:
            lines += line("all", label, [mean_of(of_seed, columns) for of_seed in zip(*each)], columns)
    return "\n".join(lines)


def line(concept: str, label: str, cells: Sequence[Figures | None], columns: Mapping[str, str]) -> list[str]:
    """A row with means and deviations over the seeds that are there; none without any."""
    there = [cell for cell in cells if cell is not None]
    possible = [cell for cell in there if "impossible" not in cell]
    if not there:
        return []
    if not possible:
        return [f"| {concept} | {label} | 0 | cannot be made so small |{' |' * (len(columns) - 1)}"]
    shown = [spread([cell[name] for cell in possible]) for name in columns.values()]
    asked = f" of {possible[0]['asked']}" if "asked" in possible[0] else ""
    shown = [text + asked if title.endswith("recognised") else text for title, text in zip(columns, shown)]
    return [f"| {concept} | {label} | {len(possible)} | {' | '.join(shown)} |"]


def mean_of(cells: Sequence[Figures | None], columns: Mapping[str, str]) -> Figures | None:
    """The means over concepts, if all are there."""
    if any(cell is None or "impossible" in cell for cell in cells):
        return None
    names = [*columns.values(), *(["asked"] if all(cell and "asked" in cell for cell in cells) else [])]
    return {name: statistics.mean(cell[name] for cell in cells if cell) for name in names}


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation; the mean alone of one value."""
    if len(values) == 1:
        return f"{values[0]:.3g}"
    return f"{statistics.mean(values):.3g} ± {statistics.stdev(values):.2g}"


def orderings(rows: Rows) -> str:
    """Whether the paper's ordering came out (arXiv 2212.04488, §4.1), of means over all that is there."""
    claims = (
        ("text_alignment_after", "pictures", "word", "text alignment above that of the word alone"),
        ("drift", "unet", "pictures", "less drift of the class than the whole UNet"),
        ("drift", "none", "pictures", "less drift of the class than without regularization"),
    )
    told = []
    for figure, more, less, claim in claims:
        values = [
            [cell[figure] for (_, label), cells in rows.items() if label == WAYS[way].label for cell in cells if cell]
            for way in (more, less)
        ]
        if all(values):
            high, low = map(statistics.mean, values)
            told.append(f"- {claim}: {'holds' if high > low else 'does not hold'} ({high:.3f} against {low:.3f})")
    return "\n".join(["The paper's ordering, for K/V with pictures:", *told])


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    backend, amount = load_model("toy"), (QUICK if options.quick else WHOLE).amount
    if options.dry_run:
        backend, amount = tiny(), Amount(range(1), range(2), 2, 1)
    print_and_keep(tables(Study(backend, Judge.load(), amount, options)), options.output)


def print_and_keep(text: str, output: Path | None) -> None:
    print(text)
    if output is not None:
        write_atomically(output, f"{text}\n".encode())


def tiny() -> DiffusersBackend:
    """A model without any training, to try this program."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "standalone"))
    from tiny_pipeline import stable_diffusion_2

    return DiffusersBackend(stable_diffusion_2(), "tiny")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the cells, outside the repository")
    parser.add_argument("--quick", action="store_true", help="less of everything, in under an hour")
    choices = [*bundled_concepts(), *HELD_OUT, "held-out"]
    parser.add_argument("--concepts", nargs="+", choices=choices, help="held-out: the twelve of held_out.py")
    parser.add_argument("--seeds", type=int, nargs="+", help="of the trainings")
    parser.add_argument("--ways", nargs="+", choices=WAYS, help="ways to learn one concept")
    parser.add_argument("--steps", type=int, help="of a training in our way")
    parser.add_argument("--equal", choices=("steps", "seconds"), default="steps", help="what all ways have alike")
    parser.add_argument(
        "--diffusers_script", type=Path, help="path of train_custom_diffusion.py; left out if not given"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no cell is begun after that many")
    parser.add_argument("--threads", type=int, default=1, help="of the processor")
    parser.add_argument("--output", type=Path, help="write the tables there, too")
    parser.add_argument("--dry_run", action="store_true", help="a tiny untrained model; the figures mean nothing")
    options = parser.parse_args()
    extent = QUICK if options.quick else WHOLE
    for name in ("concepts", "seeds", "ways", "steps"):
        if getattr(options, name) is None:
            setattr(options, name, getattr(extent, name))
    if "held-out" in options.concepts:
        options.concepts = list(HELD_OUT)
    options.most_rates = extent.most_rates
    return options


if __name__ == "__main__":
    main()
