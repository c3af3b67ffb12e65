"""What a page of gradio is made of: its parts by their ids, and what they trigger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr


@dataclass(frozen=True)
class Event:
    """What happens on a click or a change. fn takes the values of the inputs; js is the page's function before it."""

    fn: Any
    inputs: list[Part]
    outputs: list[Part]
    js: str | None


class Part:
    """A component, with what it triggers."""

    def __init__(self, blocks: gr.Blocks, component: Any) -> None:
        self._blocks, self.component = blocks, component
        self.elem_id, self.value = component.elem_id, getattr(component, "value", None)
        self.label, self.info = getattr(component, "label", None), getattr(component, "info", None)

    @property
    def events(self) -> list[Event]:
        """In the order in which they were bound."""
        return [
            Event(handler.fn, self._parts(event["inputs"]), self._parts(event["outputs"]), event["js"])
            for event, handler in zip(self._blocks.dependencies, self._blocks.fns, strict=True)
            if self.component._id in event["targets"]
        ]

    @property
    def job(self) -> Event:
        """What does the work: the first event; in the WebUI, the one behind that by which it is admitted."""
        return next((each for each in self.events if (each.js or "").startswith("startCustom")), self.events[0])

    def _parts(self, numbers: list[int]) -> list[Part]:
        return [Part(self._blocks, self._blocks.blocks[number]) for number in numbers]

    def press(self, **entered: Any) -> Any:
        """What `job` gives for what was entered, by the ids of the fields; others keep their values."""
        unknown = set(entered) - {part.elem_id for part in self.job.inputs}
        assert not unknown, f"no such fields: {unknown}"
        tasks = {"cd_utils_task": "task(1)", "cd_train_task": "task(1)"}
        return self.job.fn(*[{**tasks, **entered}.get(part.elem_id, part.value) for part in self.job.inputs])


def parts(blocks: gr.Blocks) -> dict[str, Part]:
    """The parts that have ids."""
    found = [Part(blocks, component) for component in blocks.blocks.values()]
    return {part.elem_id: part for part in found if part.elem_id}


def fields(blocks: gr.Blocks) -> list[Part]:
    """The parts that people fill in."""
    kinds = (gr.Textbox, gr.Number, gr.Slider, gr.Checkbox, gr.Dropdown, gr.Radio)
    found = [Part(blocks, component) for component in blocks.blocks.values() if isinstance(component, kinds)]
    return [part for part in found if part.label]
