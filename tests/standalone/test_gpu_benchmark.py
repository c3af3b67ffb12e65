"""The benchmark for GPUs goes through on any machine: nobody would find out otherwise that it no longer does."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


def test_a_dry_run_counts_the_arithmetic_and_times_the_steps(
    benchmark_script: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = benchmark_script("gpu")
    cases = [module.Case(1, "none"), module.Case(8), module.Case(8, "none", checkpointing=True)]
    monkeypatch.setattr(module, "CASES", [*cases, module.Case(1, model="sdxl")])
    monkeypatch.setattr("sys.argv", ["gpu.py", "--dry_run", "--output", str(tmp_path / "figures.json")])
    module.main()
    one, eight, recomputed, sdxl = json.loads((tmp_path / "figures.json").read_text())["cases"]
    assert one["seconds_to_first_step"] > 0
    assert min(one["steps_per_second"], eight["steps_per_second"]) > 0
    assert (
        6 < eight["tflop_per_step"] / one["tflop_per_step"] < 8.5
    )  # text encoder and prior do not grow with the batch
    assert recomputed["tflop_per_step"] > 1.2 * eight["tflop_per_step"]  # a second forward pass of the UNet
    assert sdxl["model"] == "sdxl" and sdxl["tflop_per_step"] > 0
    assert "The paper's recipe" in capsys.readouterr().out
