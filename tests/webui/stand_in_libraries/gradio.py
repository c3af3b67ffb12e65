"""A stand-in of gradio where it is not installed: components that remember how they were made and what they trigger."""

from types import SimpleNamespace

made = []
"""All components since the test began, in the order of their making."""


class Component:
    def __init__(self, value=None, **settings):
        self.value, self.settings, self.events = value, settings, []
        self.label, self.elem_id = settings.get("label"), settings.get("elem_id")
        made.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def _on(self, fn=None, inputs=(), outputs=(), _js=None, show_progress=True):
        self.events.append(SimpleNamespace(fn=fn, inputs=inputs, outputs=outputs, js=_js))
        return self

    click = change = input = then = _on


class Blocks(Component): ...


class Row(Component): ...


class Column(Component): ...


class Tab(Component): ...


class Tabs(Component): ...


class Group(Component): ...


class Accordion(Component): ...


class HTML(Component): ...


class Gallery(Component): ...


class Button(Component): ...


class Textbox(Component):
    def __init__(self, value="", **settings):
        super().__init__(value, **settings)


class TextArea(Component): ...


class Number(Component): ...


class Slider(Component): ...


class Checkbox(Component): ...


class Dropdown(Component): ...


components = SimpleNamespace(IOComponent=Component)


def update(**changes):
    return {"__type__": "update", **changes}
