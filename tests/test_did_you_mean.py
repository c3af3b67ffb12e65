"""Wherever a name is given that is not there, the error ends with the one that may be meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lib_custom_diffusion.algebra.blending import rename_word
from lib_custom_diffusion.algebra.files import merge_files
from lib_custom_diffusion.backend import Backend, Sampling
from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.standalone.cli import main
from lib_custom_diffusion.standalone.generate import without_meaning
from lib_custom_diffusion.training.checkpoints import resolve_checkpoint
from lib_custom_diffusion.training.plan import TrainingPlan

DELTA = Delta({}, {"<new1>": torch.zeros(1, 3)})


def never() -> Backend:
    raise AssertionError("no model is needed")


def merged(folder: Path) -> None:
    DELTA.save(folder / "a.delta.safetensors")
    merge_files([folder / "a.delta.safetensors"], folder / "b.delta.safetensors", never, [["a <new2> cat"]])


def resumed(folder: Path) -> None:
    save = folder / "checkpoint-100"
    save.mkdir()
    (save / "state.safetensors").touch()
    resolve_checkpoint(folder, "chekpoint-100")


@pytest.mark.parametrize(
    ("ask", "meant"),
    [
        (lambda _: rename_word(DELTA, "new2", "<cat>"), "<new1>"),
        (merged, "<new1>"),
        (resumed, "checkpoint-100"),
        (lambda _: TrainingPlan.of({"max_train_step": 5}), "max_train_steps"),
    ],
)
def test_the_name_that_may_be_meant_is_told(ask: Callable[[Path], None], meant: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        ask(tmp_path)
    assert str(error.value).endswith(f". Did you mean {meant}?")


def test_a_bundled_concept_that_may_be_meant_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--concept", "racoon", "--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith(". Did you mean raccoon?\n")


def test_a_word_of_a_prompt_that_may_be_meant_is_told() -> None:
    told = list(without_meaning("a <new2> cat", [(["<new1>"], 1.0)], Sampling(), str, besides=", and no --embedding"))
    assert told[0].endswith("no --embedding. Did you mean <new1>?")
