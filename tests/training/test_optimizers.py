"""Optimizers are those of their libraries, get what was asked for, and go on as if they had not stopped."""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.training import checkpoints, optimizers
from lib_custom_diffusion.training.optimizers import OPTIMIZERS, make_optimizer
from train_tiny import trainer

LIBRARIES = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt", "lion": "lion_pytorch"}
RATES = {"prodigy": "1", "sgd": "1", "lion": "1e-3"}


def settings(name: str) -> dict[str, Any]:
    rate = RATES.get(name, "1e-2")
    return {"optimizer": name, "learning_rate": rate, "embedding_learning_rate": rate}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_training_learns_and_goes_on_to_the_same_bytes(tmp_path: Path, name: str) -> None:
    if name in LIBRARIES:
        pytest.importorskip(LIBRARIES[name])
    whole = trainer(tmp_path / "whole", **settings(name)).run().delta
    assert all(entry.abs().max() > 1e-7 for entry in whole.entries.values())
    steps: list[int] = []
    cut = tmp_path / "cut"
    trainer(cut, **settings(name)).run(lambda p: steps.append(p.step), interrupted=lambda: len(steps) >= 9)
    trainer(cut, checkpoints.resolve_checkpoint(cut, "latest"), **settings(name)).run()
    for file in ("tiny.delta.safetensors", "new1.pt", "loss.csv"):
        assert (cut / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_two_steps_of_sgd_are_worked_by_hand() -> None:
    """Momentum 0.5, rate 0.1, gradients 2 and 4: 1 − 0.2 − 0.1 (4 + 0.5 · 2) = 0.3."""
    parameter = nn.Parameter(torch.ones(1))
    optimizer = make_optimizer("sgd", [{"params": [parameter], "weight_decay": 0.0}], (0.5, 0.9), 1e-8)
    for gradient in (2.0, 4.0):
        parameter.grad = torch.tensor([gradient])
        optimizer.param_groups[0]["lr"] = 0.1
        optimizer.step()
    assert parameter.item() == pytest.approx(0.3)


class AdamW8bit(torch.optim.AdamW):
    """Stands for that of bitsandbytes."""


@pytest.fixture
def bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("bitsandbytes")
    module.__spec__ = ModuleSpec("bitsandbytes", None)
    module.optim = ModuleType("bitsandbytes.optim")  # type: ignore[attr-defined]
    module.optim.AdamW8bit = AdamW8bit
    monkeypatch.setitem(sys.modules, "bitsandbytes", module)
    return module


def test_adam_in_8_bits_is_that_of_bitsandbytes_with_the_settings_of_adam(
    tmp_path: Path, bitsandbytes: ModuleType
) -> None:
    run = trainer(tmp_path, optimizer="adamw8bit", adam_beta1=0.5, adam_epsilon=1e-3, adam_weight_decay=0.3)
    run.run()
    assert isinstance(run.optimizer, AdamW8bit)
    deltas, words = run.optimizer.param_groups
    assert (deltas["betas"], deltas["eps"]) == ((0.5, 0.999), 1e-3)
    assert (deltas["weight_decay"], words["weight_decay"]) == (0.3, 0.0)


def test_a_library_that_does_not_work_is_told_in_one_sentence(
    bitsandbytes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA Setup failed")

    monkeypatch.setattr(bitsandbytes.optim, "AdamW8bit", broken)
    with pytest.raises(UserError, match=r"bitsandbytes does not work here \(CUDA Setup failed\); choose adamw"):
        make_optimizer("adamw8bit", [], (0.9, 0.999), 1e-8)


@pytest.mark.parametrize(("name", "package"), [("adamw8bit", "bitsandbytes"), ("lion", "lion-pytorch")])
def test_a_library_that_is_missing_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    found = optimizers.find_spec
    monkeypatch.setattr(optimizers, "find_spec", lambda module: None if module != "torch" else found(module))
    with pytest.raises(UserError, match=f"optimizer {name} needs {package}; pip install {package}, or choose adamw"):
        trainer(tmp_path, **settings(name))
    trainer(tmp_path)


def test_no_library_is_imported_that_was_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "import_module", lambda name: pytest.fail(f"{name} is imported"))
    trainer(tmp_path, max_train_steps=1).run()


@pytest.mark.parametrize(
    ("deltas", "words", "told"),
    [("8e-5", "8e-5", "not 8e-05 and 8e-05"), ("1", "0.5", "not 1 and 0.5"), ("1", "1e-4", "not 1 and 0.0001")],
)
def test_prodigy_has_one_factor_of_the_rates_that_it_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deltas: str, words: str, told: str
) -> None:
    monkeypatch.setattr(optimizers, "find_spec", lambda module: module)
    with pytest.raises(UserError, match=f"prodigy finds the rates by itself: .*{told}"):
        trainer(tmp_path, optimizer="prodigy", learning_rate=deltas, embedding_learning_rate=words)


@pytest.mark.parametrize(("deltas", "words"), [("1", "1"), ("1:5, 0.5", "1:5, 0.5"), ("0", "1")])
def test_prodigy_may_be_turned_down_and_leave_one_of_them_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deltas: str, words: str
) -> None:
    monkeypatch.setattr(optimizers, "find_spec", lambda module: module)
    trainer(tmp_path, optimizer="prodigy", learning_rate=deltas, embedding_learning_rate=words)


def test_an_optimizer_that_there_is_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="optimizer is one of adamw, adamw8bit, prodigy, lion, sgd, not 'adam'"):
        trainer(tmp_path, optimizer="adam")
