"""`--mixed_precision auto` takes what is clearly faster, leaves the model as it was, and keeps to what a save has."""

import json
from pathlib import Path

import pytest
import torch

from lib_custom_diffusion.standalone import precision
from lib_custom_diffusion.standalone.cli import main
from lib_custom_diffusion.standalone.diffusers_backend import DiffusersBackend
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
