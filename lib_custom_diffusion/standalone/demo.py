"""The demo command: a toy model is taught a concept it has never seen, and a judge says how well."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..backend import TOY_SAMPLING
from ..data.concepts import Concept, find_pictures
from ..errors import Interrupted, UserError, did_you_mean
from ..injection import Injection
from ..storage import write_atomically
from ..training import checkpoints
from ..training.checks import check_settings
from ..training.job import Report
from ..training.place import check_place
from ..training.plan import TrainingPlan
from ..training.recipes import TOY, plan_settings
from ..ui.training_page import duration
from .diffusers_backend import DiffusersBackend
from .follow_up import app, of_model
from .models import load_model
from .report import DemoResult, Row, contact_sheet, report_html
from .toy.concepts import BundledConcept, bundled_concepts
from .toy.judge import Judge, half_alone
from .train import FLAGS, run_training

SAMPLING = replace(TOY_SAMPLING, batch_size=8)
SEEDS = range(1000, 1004)
CLASS_SAMPLING = replace(SAMPLING, steps=15)
CLASS_SEEDS = range(1000, 1048)  # a class is not one picture
CLASS_IMAGES = 32
# In the report: how many pictures of each kind of row, and how large, in pixels.
OWN_SHOWN, OWN_SIDE = 6, 128
LARGE_SHOWN, LARGE_SIDE = 2, 192
SMALL_SHOWN, SMALL_SIDE = 4, 92


def demo(options: argparse.Namespace) -> int:
    """Run the command; returns its exit status. Raises UserError for an unknown concept."""
    concepts = bundled_concepts()
    names = list(concepts) if options.concept == "all" else [options.concept or next(iter(concepts))]
    for name in names:
        if name not in concepts:
            near = did_you_mean(name, concepts)
            raise UserError(f"there is no bundled concept {name!r}; choose from {', '.join(concepts)}, all{near}")
    backend, judge = load_model(options.model), Judge.load()
    metrics, started = {}, time.monotonic()
    for number, name in enumerate(names, start=1):
        if len(names) > 1:
            passed = f", {duration(time.monotonic() - started)} so far" if number > 1 else ""
            print(f"{name}: concept {number} of {len(names)}{passed}", file=sys.stderr, flush=True)
        plan = TrainingPlan.of({"seed": options.seed, "max_train_steps": options.max_train_steps}, plan_settings(TOY))
        result = teach(backend, judge, concepts[name], plan, options.output / name)
        if result is None:
            print(f"interrupted; the same command starts {name} again from the beginning", file=sys.stderr)
            return 130
        metrics[name] = result.metrics
        print(_summary(result))
    write_atomically(options.output / "metrics.json", json.dumps({"concepts": metrics}, indent=2).encode())
    page = app(*of_model(options.model), "--deltas_dir", options.output)
    print(f"draw with {names[0] if len(names) == 1 else 'them'} in the app: {page}")
    return 0


def teach(
    backend: DiffusersBackend,
    judge: Judge,
    bundled: BundledConcept,
    plan: TrainingPlan,
    output: Path,
    prior: str = "text",
    before: DemoPictures | None = None,
) -> DemoResult | None:
    """Teach one bundled concept into `output`, with pictures before and after; None if interrupted.

    prior: "text", "none", or "pictures": regularization pictures, drawn by the model, instead of the text prior.
    before: the pictures before, if they are drawn already.
    """
    start = time.monotonic()

    def tell(stage: int, what: str) -> None:
        passed = f"; {duration(time.monotonic() - start)} so far" if stage > 1 else ""
        print(f"{bundled.name}: part {stage} of 3, {what}{passed}", file=sys.stderr, flush=True)

    plan = plan_for(bundled, plan, prior)
    check_settings(plan, FLAGS)
    check_place(plan, FLAGS, output)
    if before is None:
        tell(1, "pictures before")
        before = DemoPictures.draw(backend, bundled, {}, "drawing before")
    tell(2, f"{plan.max_train_steps} steps of training")
    try:
        report = run_training(backend, plan, output)
    except Interrupted:
        return None
    if report.interrupted:
        return None
    checkpoints.remove(checkpoints.saves_in(output))  # it never goes on, and they would be listed beside the delta
    delta = report.result.delta
    tell(3, "pictures after")
    with Injection(backend.unet, [(delta, 1.0)]):
        after = DemoPictures.draw(backend, bundled, delta.embeddings, "drawing after")
    metrics = judged(judge, bundled, before, after)
    metrics |= {"steps": report.step, "seconds": time.monotonic() - start, "peak_memory_mb": peak_memory_mb()}
    return _write_report(backend.name, bundled, before, after, metrics, report, output)


def plan_for(bundled: BundledConcept, plan: TrainingPlan, prior: str = "text") -> TrainingPlan:
    """The plan of teaching a bundled concept; `teach` says what the prior may be."""
    return replace(
        plan,
        concepts=(Concept(bundled.instance_prompt, bundled.folder, bundled.class_prompt),),
        name=bundled.name,
        overwrite=True,
        caption_source=bundled.caption_source,
        modifier_token=(bundled.modifier_token,),
        initializer_token=(bundled.initializer_token,),
        prior="text" if prior == "text" else "none",
        with_prior_preservation=prior == "pictures",
        num_class_images=CLASS_IMAGES,
        sample_batch_size=SAMPLING.batch_size,
    )


def _write_report(
    model: str,
    bundled: BundledConcept,
    before: DemoPictures,
    after: DemoPictures,
    metrics: dict[str, float],
    report: Report,
    output: Path,
) -> DemoResult:
    rows = _rows(bundled, before, after)
    demonstrated = DemoResult(
        model, bundled.name, bundled.description, rows, metrics, bundled.prompts[0], bundled.class_prompt,
        report.result.files, output / "loss.csv",
    )  # fmt: skip
    contact_sheet(rows).save(output / "before_after.png")
    write_atomically(output / "report.html", report_html(demonstrated).encode())
    return demonstrated


def _rows(bundled: BundledConcept, before: DemoPictures, after: DemoPictures) -> list[Row]:
    """What was taught; large, what its word draws before and after; small, what should have stayed."""
    own = _references(bundled)[:OWN_SHOWN]
    rows = [
        Row(
            "What it was taught from",
            own,
            side=OWN_SIDE,
            sentence=f"These pictures, and the words “{bundled.instance_prompt}”.",
        )
    ]
    for prompt, sentence in zip(bundled.prompts, bundled.sentences):
        rows.append(Row(prompt, before.of(prompt)[:LARGE_SHOWN], after.of(prompt)[:LARGE_SHOWN], sentence, LARGE_SIDE))
    for prompt, sentence in (
        (bundled.class_prompt, "Without the new word: as it was, and as varied."),
        (bundled.unrelated_prompts[0], "Any other prompt without the new word: as it was."),
    ):
        rows.append(Row(prompt, before.of(prompt)[:SMALL_SHOWN], after.of(prompt)[:SMALL_SHOWN], sentence, SMALL_SIDE))
    return rows


def _references(bundled: BundledConcept) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in find_pictures(bundled.folder)]


class DemoPictures:
    """The demo's pictures of one moment: every prompt with every seed, and the class prompt with more of them."""

    def __init__(self, prompts: Sequence[str], pictures: Sequence[Image.Image]) -> None:
        self.prompts, self.pictures = prompts, pictures

    @classmethod
    def draw(
        cls,
        backend: DiffusersBackend,
        bundled: BundledConcept,
        vectors: Mapping[str, Tensor],
        label: str,
        seeds: Sequence[int] = SEEDS,
        class_seeds: Sequence[int] = CLASS_SEEDS,
    ) -> DemoPictures:
        asked = [(prompt, seed) for prompt in (*bundled.prompts, *bundled.unrelated_prompts) for seed in seeds]
        of_class = [(bundled.class_prompt, seed) for seed in class_seeds]
        known = vectors or {bundled.modifier_token: backend.token_vectors(bundled.initializer_token)}
        pictures: list[Image.Image] = []
        with torch.no_grad(), tqdm(total=len(asked) + len(of_class), desc=label, unit="picture") as bar:
            for pairs, sampling in ((asked, SAMPLING), (of_class, CLASS_SAMPLING)):
                for start in range(0, len(pairs), sampling.batch_size):
                    prompts, seeds = zip(*pairs[start : start + sampling.batch_size])
                    pictures += backend.generate(list(prompts), list(seeds), sampling, known)
                    bar.update(len(prompts))
        return cls([prompt for prompt, _ in (*asked, *of_class)], pictures)

    def of(self, prompt: str) -> list[Image.Image]:
        return [picture for name, picture in zip(self.prompts, self.pictures) if name == prompt]

    def some(self, prompts: Sequence[str]) -> list[Image.Image]:
        return [picture for prompt in prompts for picture in self.of(prompt)]


def judged(judge: Judge, bundled: BundledConcept, before: DemoPictures, after: DemoPictures) -> dict[str, float]:
    """What is recognised, likeness, agreement with the prompts, and what moved that should have stayed."""
    references = _references(bundled)
    captions_before, captions = (
        [caption for prompt, caption in zip(bundled.prompts, bundled.judge_captions) for _ in drawn.of(prompt)]
        for drawn in (before, after)
    )
    return {
        "asked": len(captions),
        "recognised_before": sum(_recognised(judge, bundled, before)),
        "likeness_before": judge.likeness(before.some(bundled.prompts), references),
        "likeness_after": judge.likeness(after.some(bundled.prompts), references),
        "likeness_ceiling": judge.likeness(references[::2], references[1::2]),
        "text_alignment_before": judge.text_alignment(before.some(bundled.prompts), captions_before),
        "text_alignment_after": judge.text_alignment(after.some(bundled.prompts), captions),
        "drift": judge.drift(before.of(bundled.class_prompt), after.of(bundled.class_prompt)),
        "unrelated_change": judge.change(before.some(bundled.unrelated_prompts), after.some(bundled.unrelated_prompts)),
        **_right_after(judge, bundled, after, captions),
    }


def _recognised(judge: Judge, bundled: BundledConcept, drawn: DemoPictures) -> list[bool]:
    """Of each picture of each prompt, whether it shows the concept; of two things, whether the first one does."""
    pictures = [
        half_alone(picture, 0) if " and " in prompt else picture
        for prompt in bundled.prompts
        for picture in drawn.of(prompt)
    ]
    if bundled.is_style:
        return judge.in_style(pictures, _references(bundled))
    return judge.recognised(pictures, _references(bundled), bundled.known_as)


def _right_after(
    judge: Judge, bundled: BundledConcept, after: DemoPictures, captions: Sequence[str]
) -> dict[str, float]:
    """How many pictures show the concept, how many are on the ground that was asked for, and how many are both."""
    recognised = _recognised(judge, bundled, after)
    seen = judge.colours(after.some(bundled.prompts))
    coloured = [f"{colour} background" in caption for colour, caption in zip(seen, captions)]
    return {
        "recognised_after": sum(recognised),
        "colour_right_after": sum(coloured),
        "both_right_after": sum(map(all, zip(recognised, coloured))),
    }


def peak_memory_mb() -> float:
    """The most memory this process has held, in MB (10^6 bytes): of the GPU if it used one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    if sys.platform == "win32":
        import psutil  # comes with accelerate

        return psutil.Process().memory_info().peak_wset / 1e6
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _summary(result: DemoResult) -> str:
    m = result.metrics
    return (
        f"{result.name}: recognised in {m['recognised_before']} -> {m['recognised_after']} of {m['asked']} pictures;"
        f" likeness {m['likeness_before']:.2f} -> {m['likeness_after']:.2f},"
        f" text alignment {m['text_alignment_before']:.2f} -> {m['text_alignment_after']:.2f}, drift {m['drift']:.3f};"
        f" {m['steps']} steps, {m['seconds']:.0f} s, {m['peak_memory_mb']:.0f} MB\n"
        f"look at {result.loss_csv.parent / 'report.html'}"
    )
