"""The X/Y/Z plot's axes change the prompt's first delta to the saves and weights that are asked for, in any order."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from modules import scripts

from lib_custom_diffusion.delta import Delta, Provenance
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.webui.compare import DELTA, STEPS, WEIGHT, add_axes, grid_infotext
from lib_custom_diffusion.webui.delta_library import DeltaLibrary

KEY = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"


class AxisOption:
    """The host's class, as its X/Y/Z plot has it in v1.10.1."""

    def __init__(
        self, label, type, apply, format_value=None, confirm=None, cost=0.0, choices=None, prepare=None
    ) -> None:  # fmt: skip
        self.label, self.apply, self.format_value, self.confirm, self.choices = (
            label, apply, format_value, confirm, choices,
        )  # fmt: skip


def of_steps(steps: int) -> Delta:
    return Delta({KEY: torch.ones(8, 6)}, provenance=Provenance(steps=steps))


@pytest.fixture
def library(tmp_path: Path) -> DeltaLibrary:
    """`cat`, of 250 steps with copies after 100 and 200; one of the day before after 50; and `dog` of 200 steps."""
    for name, steps in (("cat", 250), ("dog", 200)):
        of_steps(steps).save(tmp_path / "deltas" / f"{name}.delta.safetensors")
    for day, name, steps in (("02", "cat", 100), ("02", "cat", 200), ("01", "cat", 50), ("01", "dog", 100)):
        folder = tmp_path / "logs" / f"2026-01-{day}" / name / "embeddings"
        of_steps(steps).save(folder / f"{name}-{steps}.delta.safetensors")
    return DeltaLibrary(tmp_path / "deltas", tmp_path / "logs")


@pytest.fixture
def axes(library: DeltaLibrary, monkeypatch: pytest.MonkeyPatch) -> dict[str, AxisOption]:
    plot = SimpleNamespace(axis_options=[AxisOption("Seed", int, None)], AxisOption=AxisOption)
    found = [SimpleNamespace(path=f"/scripts/{name}", module=plot) for name in ("xyz_grid.py", "xyz_grid.py")]
    monkeypatch.setattr(scripts, "scripts_data", [SimpleNamespace(path="/scripts/loopback.py", module=None), *found])
    add_axes(library)
    add_axes(library)  # the page is loaded anew
    assert [option.label for option in plot.axis_options] == ["Seed", DELTA, STEPS, WEIGHT]
    return {option.label: option for option in plot.axis_options}


def picture(prompt: str) -> Any:
    return SimpleNamespace(prompt=prompt, hr_prompt="")


def test_saves_are_listed_after_the_deltas_by_training_and_steps(axes):
    assert axes[DELTA].choices() == ["cat", "dog", "cat-100", "cat-200", "2026-01-01/cat-50", "dog-100"]


@pytest.mark.parametrize("order", [(DELTA, STEPS, WEIGHT), (WEIGHT, STEPS, DELTA), (STEPS, DELTA, WEIGHT)])
def test_axes_add_up_in_any_order_and_leave_the_other_deltas_alone(axes, order):
    p, asked = picture("a <delta:cat:unet=1> <delta:style:0.3>"), {DELTA: "dog", STEPS: 100, WEIGHT: 0.5}
    p.hr_prompt = "fine <delta:cat:1>"
    for label in order:
        axes[label].apply(p, asked[label], [])
    assert (p.prompt, p.hr_prompt) == ("a <delta:dog-100:0.5> <delta:style:0.3>", "fine <delta:dog-100:0.5>")


def test_the_last_step_is_the_delta_itself_and_a_save_may_be_started_from(axes):
    for written in ("cat", "cat-100"):
        for steps, name in ((200, "cat-200"), (250, "cat")):
            p = picture(f"a <delta:{written}>")
            axes[STEPS].apply(p, steps, [])
            assert p.prompt == f"a <delta:{name}>"


def test_legends_say_what_is_drawn(axes):
    told = [axes[label].format_value(None, None, value) for label, value in ((DELTA, "cat"), (STEPS, 9), (WEIGHT, 0.5))]
    assert told == ["cat", "9 steps", "weight 0.5"]


def test_what_cannot_be_drawn_is_refused_before_the_first_picture(axes):
    for label, values in ((DELTA, ["cat"]), (STEPS, [100]), (WEIGHT, [1.0])):
        with pytest.raises(UserError, match="the prompt has no delta; write <delta:NAME:1>"):
            axes[label].confirm(picture("a cat"), values)
        axes[label].confirm(picture("<delta:cat:1>"), values)
    with pytest.raises(UserError, match="cat has no save after 150 steps; its saves: 100, 200, 250"):
        axes[STEPS].confirm(picture("<delta:cat:1>"), [100, 150])
    with pytest.raises(UserError, match="no delta 'bird'"):
        axes[DELTA].confirm(picture("<delta:cat:1>"), ["bird"])


def test_the_page_is_sent_a_plot_of_all_saves(axes, library):
    told = grid_infotext("a <new1> cat <delta:cat:1>", "cat", {"Steps": 25}, library)
    assert told == (
        'a <new1> cat <delta:cat:1>\nSteps: 25, Script: X/Y/Z plot, X Type: Delta steps, X Values: "100, 200, 250"'
    )
