"""`--mixed_precision auto` takes what is clearly faster, leaves the model as it was, and keeps to what a save has."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_checkpoints
from lib_custom_diffusion.attention import projections
from lib_custom_diffusion.standalone import precision
from lib_custom_diffusion.standalone.cli import main
from lib_custom_diffusion.standalone.diffusers_backend import DiffusersBackend
from lib_custom_diffusion.training.prior import TextPrior, text_prior
from tiny_pipeline import stable_diffusion_2


@pytest.mark.parametrize(("seconds", "chosen"), [(0.5, "bf16"), (0.95, "no"), (2.0, "no")])
def test_bfloat16_is_taken_where_it_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, seconds: float, chosen: str
) -> None:
    monkeypatch.setattr(precision, "_seconds", lambda backend, batch, autocast: seconds if autocast else 1.0)
    assert precision.cpu_precision(DiffusersBackend(stable_diffusion_2(), "tiny"), 2) == chosen


def test_a_trial_leaves_the_model_as_it_was() -> None:
    backend = DiffusersBackend(stable_diffusion_2(), "tiny")
    arguments = torch.ones(1, 4, 8, 8), torch.tensor([5]), backend.encode_captions(["a cat"], {})
    with torch.no_grad():
        before = backend.predict(*arguments)
    assert precision.cpu_precision(backend, 1) in ("no", "bf16")
    with torch.no_grad():
        assert torch.equal(backend.predict(*arguments), before)
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in backend.unet.parameters())


def test_the_precision_is_found_once_and_kept_when_the_training_goes_on(
    model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "train", "--model", str(model), "--instance_data_dir", str(pictures), "--instance_prompt",
        "photo of a <new1> cat", "--output_dir", str(tmp_path), "--mixed_precision", "auto", "--resume_from_checkpoint",
        "latest", "--prior", "none", "--max_train_steps",
    ]  # fmt: skip
    monkeypatch.setattr(precision, "_seconds", lambda backend, batch, autocast: 0.5 if autocast else 1.0)
    assert main([*arguments, "1"]) == 0
    assert json.loads((tmp_path / "config.json").read_text())["mixed_precision"] == "bf16"
    monkeypatch.setattr(precision, "_seconds", lambda backend, batch, autocast: 2.0 if autocast else 1.0)
    assert main([*arguments, "2"]) == 0
    assert json.loads((tmp_path / "config.json").read_text())["mixed_precision"] == "bf16"
    assert "mixed_precision: bf16" in capsys.readouterr().out


def prior_of(make: Callable[[], Any], dtype: torch.dtype, captions: Path) -> tuple[TextPrior, dict[str, torch.Tensor]]:
    """The text prior of a tiny model with weights of that precision, and its gradients for random deltas."""
    pipeline = copy.deepcopy(make())
    pipeline.unet.register_to_config(sample_size=8)
    for part in (pipeline.unet, pipeline.text_encoder, getattr(pipeline, "text_encoder_2", torch.nn.Identity())):
        part.to(dtype=dtype)
    backend = DiffusersBackend(pipeline, "tiny")
    layers = projections(backend.unet, "crossattn_kv")
    latents = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(0))
    prior = text_prior(backend, layers, ["cat"], [latents], 0.1, captions)
    torch.manual_seed(1)
    parameters = {key: torch.nn.Parameter(torch.randn(layer.shape)) for key, layer in layers.items()}
    prior.add_gradients(parameters)
    return prior, {key: each.grad for key, each in parameters.items() if each.grad is not None}


@pytest.mark.parametrize(("dtype", "off"), [(torch.bfloat16, 0.03), (torch.float16, 0.003)])
@pytest.mark.parametrize(
    ("make", "width"),
    [(tiny_checkpoints.stable_diffusion_2, 64), (tiny_checkpoints.sdxl_pipeline, 128)],
    ids=["sd2", "sdxl"],
)
def test_the_text_prior_of_weights_in_half_precision_is_that_of_float32(
    make: Callable[[], Any], width: int, dtype: torch.dtype, off: float, tmp_path: Path
) -> None:
    captions = tmp_path / "captions.txt"
    captions.write_text("a dog on a red table\nan old house\nthree trees and a boat")
    (ours, gradients), (_, exact_gradients) = (prior_of(make, each, captions) for each in (dtype, torch.float32))
    assert ours.moment.shape == (width, width) and ours.moment.dtype == torch.float32
    assert torch.equal(ours.moment, ours.moment.T) and torch.linalg.eigvalsh(ours.moment.double())[0] > -1e-5
    assert gradients.keys() == exact_gradients.keys() == ours.scales.keys()
    for key, gradient in gradients.items():
        assert (gradient - exact_gradients[key]).norm() < off * exact_gradients[key].norm()
