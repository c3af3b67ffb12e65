"""Axes for the WebUI's own X/Y/Z plot, which compare deltas, the saves of a training, and weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from modules import scripts

from ..errors import UserError
from .delta_library import DeltaLibrary

DELTA, STEPS, WEIGHT = "Delta", "Delta steps", "Delta weight"
_TAG = re.compile(r"<delta:(?P<name>[^:>]+)(?P<rest>:[^>]*)?>")
_PLOT = "xyz_grid.py"


def add_axes(library: DeltaLibrary) -> None:
    """Give the host's X/Y/Z plot our axes, once; nothing if the host has no such script."""
    for plot in {
        id(each.module): each.module for each in scripts.scripts_data if Path(each.path).name == _PLOT
    }.values():
        known = {option.label for option in plot.axis_options}
        plot.axis_options += [option for option in _axes(plot.AxisOption, library) if option.label not in known]


def _axes(option: Callable[..., Any], library: DeltaLibrary) -> list[Any]:
    def names() -> list[str]:
        library.refresh()
        return [each.name for each in [*library.all(), *library.saves()]]

    def check_names(p: Any, values: Sequence[str]) -> None:
        _first_name(p)
        for name in values:
            library.find(name)

    def check_steps(p: Any, values: Sequence[int]) -> None:
        for steps in values:
            _save(library, _first_name(p), steps)

    def choose_steps(p: Any, steps: int, _steps: Sequence[int]) -> None:
        _choose(p, library, steps=steps)

    def choose_name(p: Any, name: str, _names: Sequence[str]) -> None:
        _choose(p, library, name=name)

    def choose_weight(p: Any, weight: float, _weights: Sequence[float]) -> None:
        _replace(p, lambda tag: f"<delta:{tag['name']}:{weight:g}>")

    return [
        option(DELTA, str, choose_name, lambda _p, _option, name: name, check_names, choices=names),
        option(STEPS, int, choose_steps, lambda _p, _option, steps: f"{steps} steps", check_steps),
        option(WEIGHT, float, choose_weight, lambda _p, _option, weight: f"weight {weight:g}", _check_weights),
    ]


def grid_infotext(prompt: str, name: str, settings: Mapping[str, Any], library: DeltaLibrary) -> str:
    """What the host's page reads a plot of a delta's saves from, as if it was an old picture's."""
    steps = ", ".join(map(str, library.by_steps(name)))
    told = {**settings, "Script": "X/Y/Z plot", "X Type": STEPS, "X Values": f'"{steps}"'}
    return f"{prompt}\n{', '.join(f'{key}: {value}' for key, value in told.items())}"


def _check_weights(p: Any, _weights: Sequence[float]) -> None:
    _first_name(p)


def _choose(p: Any, library: DeltaLibrary, **chosen: Any) -> None:
    """Have the first tag call another delta. What another axis has chosen for this picture counts, too."""
    p.delta_axes = {"name": _first_name(p), **getattr(p, "delta_axes", {}), **chosen}
    name = p.delta_axes["name"]
    if "steps" in p.delta_axes:
        name = _save(library, name, p.delta_axes["steps"])
    _replace(p, lambda tag: f"<delta:{name}{tag['rest'] or ''}>")


def _save(library: DeltaLibrary, name: str, steps: int) -> str:
    """What the save of a delta's training after so many steps is called. Raises UserError if there is none."""
    there = library.by_steps(name)
    if steps not in there:
        known = ", ".join(map(str, there)) or "none"
        raise UserError(f"{name} has no save after {steps} steps; its saves: {known}")
    return there[steps].name


def _replace(p: Any, written: Callable[[re.Match[str]], str]) -> None:
    """Write the first tag of the prompt anew, and that of hires fix if it has a prompt of its own."""
    for field in ("prompt", "hr_prompt"):
        text = getattr(p, field, "")
        if isinstance(text, str):
            setattr(p, field, _TAG.sub(written, text, count=1))


def _first_name(p: Any) -> str:
    """The delta that the axes change. Raises UserError if the prompt has none."""
    tag = _TAG.search(p.prompt)
    if tag is None:
        raise UserError(f"the prompt has no delta; write <delta:NAME:1> into it, and {DELTA!r} and the like change it")
    return tag["name"].strip()
