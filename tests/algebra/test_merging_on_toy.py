"""Two concepts, learned apart on the toy and merged: each word still does what it did.

Judged by predicted noise, which takes seconds; benchmarks/merging.py draws pictures and has the judge look at them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("diffusers")

import torch
from torch import Tensor

from lib_custom_diffusion.algebra.blending import blend, bundle_words
from lib_custom_diffusion.algebra.files import merge_files
from lib_custom_diffusion.backend import Conditioning
from lib_custom_diffusion.data.concepts import Concept
from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.injection import Injection
from lib_custom_diffusion.standalone.diffusers_backend import DiffusersBackend
from lib_custom_diffusion.standalone.models import load_model
from lib_custom_diffusion.standalone.toy.concepts import bundled_concepts
from lib_custom_diffusion.standalone.train import run_training
from lib_custom_diffusion.training.plan import TrainingPlan
from lib_custom_diffusion.training.recipes import TOY, plan_settings

pytestmark = pytest.mark.slow
FOLDERS = (bundled_concepts()["raccoon"].folder, Path(__file__).parents[1] / "flamingo")
CLASSES = ("bear", "swan")
CALLED = ("<new1> bear", "<new2> swan")
STEPS = 60


@pytest.fixture(scope="module")
def backend() -> DiffusersBackend:
    return load_model("toy")


@pytest.fixture(scope="module")
def files(backend: DiffusersBackend, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    plan = TrainingPlan.of({"max_train_steps": STEPS}, plan_settings(TOY))
    made = []
    for folder, noun in zip(FOLDERS, CLASSES):
        output = tmp_path_factory.mktemp(folder.name)
        concept = Concept(f"photo of a <new1> {noun}", folder, noun)
        plan = replace(plan, concepts=(concept,), name=folder.name)
        made.append(run_training(backend, plan, output).delta)
    return made


def predicted_noise(backend: DiffusersBackend, called: str, delta: Delta, vectors: dict[str, Tensor]) -> Tensor:
    prompts = [f"a {called} on a yellow background", f"a small {called} on a green background"]
    conditioning = Conditioning(backend.encode_captions(prompts, vectors).crossattn)
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with Injection(backend.unet, [(delta, 1.0)]), torch.no_grad():
        return torch.stack([backend.predict(latents, torch.full((2,), t), conditioning) for t in (900, 700, 500)])


def test_each_concept_is_drawn_by_the_merged_delta_as_by_its_own(
    backend: DiffusersBackend, files: list[Path], tmp_path: Path
) -> None:
    done = merge_files(files, tmp_path / "both.delta.safetensors", lambda: backend)
    assert done.residual < 1e-5 and done.stored_residual < 0.05 and done.size < 2_000_000
    deltas = [Delta.load(path) for path in files]
    words = bundle_words(deltas)
    joined = {"merged": Delta.load(done.path), "sum": blend(deltas, [1.0, 1.0]).delta}
    for called, own in zip(CALLED, deltas):
        wanted, none = (predicted_noise(backend, called, delta, words.vectors) for delta in (own, Delta({})))
        off = {
            way: float(
                (predicted_noise(backend, called, delta, words.vectors) - wanted).norm() / (none - wanted).norm()
            )
            for way, delta in joined.items()
        }
        assert off["merged"] < 0.5 and off["merged"] < off["sum"]
