"""The page "Deltas" in the WebUI's extra networks: a card a delta."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from typing import Any

import gradio as gr
from modules import shared, ui_extra_networks, ui_extra_networks_user_metadata

from ..errors import UserError
from ..ui.inspection import Summary, summarize
from .card_notes import read_notes
from .delta_library import DeltaLibrary

_UNSHOWABLE = re.compile(r'[<>"\x00-\x1f\ud800-\udfff]')
"""The host puts names into its page as they are, and a name that is no text cannot be sent to it at all."""
_FOLDER = re.compile(r"<button\b[^>]*>(.*?)</button>\s*", re.DOTALL)
"""Of the host's row of buttons, each of which shows the cards of one folder."""


class DeltaCards(ui_extra_networks.ExtraNetworksPage):
    """Clicking a card writes the delta's tag and its tokens into the prompt."""

    pane_tpl: str  # the host's

    def __init__(self, library: DeltaLibrary) -> None:
        super().__init__("Deltas")
        # The host's own button reads all its pages anew, which fails while there is no checkpoint.
        self.pane_tpl = self.pane_tpl.replace("extraNetworksControlRefreshOnClick(", "refreshCustomDiffusionCards(")
        self.deltas = library
        self._tabs: list[ui_extra_networks.ExtraNetworksUi] = []
        library.when_changed = self._forget_pages

    def refresh(self) -> None:
        self.deltas.refresh()

    def _forget_pages(self) -> None:
        """Have the host make the cards anew for whoever opens the page next; it keeps them otherwise."""
        for tab in self._tabs:
            tab.pages_contents = []

    def create_item(self, name: str, index: int | None = None, enable_filter: bool = True) -> dict[str, Any] | None:
        """What the host shows of a delta; None for a file that cannot be read or shown."""
        try:
            delta = self.deltas.find(name)
            summary = summarize(delta.path)
        except UserError:
            return None
        if _UNSHOWABLE.search(f"{name}{delta.path}"):
            return None
        stem = str(delta.path.with_suffix(""))  # NAME.delta, where the host keeps its notes and previews
        item: dict[str, Any] = {
            "name": name,
            "filename": str(delta.path),
            "shorthash": delta.shorthash,
            "preview": self.find_preview(stem),
            "description": self.find_description(stem),
            # The host puts these into its page as they are: <new1> would be taken for a tag, or a file do harm.
            "search_terms": [
                html.escape(term)
                for term in (self.search_terms_from_path(str(delta.path)), delta.shorthash, *summary.tokens)
            ],
            "local_preview": f"{stem}.{shared.opts.samples_format}",
            "metadata": summary.table(),
            "sort_keys": {"default": index, **self.get_sort_keys(str(delta.path))},
        }
        self.read_user_metadata(item)
        notes = item["user_metadata"]
        texts = notes.get("activation text", ""), summary.activation_text()
        words = next((" ".join(text.split()) for text in texts if text.strip()), "")  # a prompt is one line
        weight = notes.get("preferred weight") or "(opts.extra_networks_default_multiplier ?? 1)"
        # The host's page runs this as JavaScript.
        item["prompt"] = f"{json.dumps(f'<delta:{name}:')} + {weight} + {json.dumps(f'> {words}' if words else '>')}"
        item["summary"] = summary
        return item

    def read_user_metadata(self, item: dict[str, Any], use_cache: bool = True) -> None:
        """A person's notes beside the file, or whoever's it came with: texts are texts, and numbers numbers."""
        item["user_metadata"] = notes = read_notes(item["filename"])
        item["description"] = notes.get("description") or item.get("description")

    def create_item_html(self, tabname: str, item: dict[str, Any], template: str | None = None) -> Any:
        """The card, which says what the delta is for, and its description; HTML in that is shown as text.

        A click on it is our page's: the host's takes a negative weight and the words after it for a regular expression.
        """
        description = " · ".join(filter(None, [_at_a_glance(item["summary"]), item["description"]]))
        if shared.opts.extra_networks_card_description_is_html:
            description = html.escape(description)
        click = html.escape(f"customDiffusionCardClicked('{tabname}', {item['prompt']});")
        return super().create_item_html(tabname, {**item, "description": description, "onclick": click}, template)

    def list_items(self) -> Iterator[dict[str, Any]]:
        self.deltas.refresh()
        for index, delta in enumerate(self.deltas.all()):
            item = self.create_item(delta.name, index)
            if item is not None:
                yield item

    def allowed_directories_for_previews(self) -> list[str]:
        return [str(self.deltas.folder)]

    def create_dirs_view_html(self, tabname: str) -> str:
        """The host's row of folders, without those that no delta is in, such as that of a LoRA's words."""
        paths = [delta.path.relative_to(self.deltas.folder) for delta in self.deltas.all()]
        there = {str(folder) for path in paths for folder in path.parents if folder.name}
        if not there:
            return ""

        def kept(button: re.Match[str]) -> str:
            name = html.unescape(button[1]).strip()
            return button[0] if name == "all" or name.strip("/\\") in there else ""

        return _FOLDER.sub(kept, super().create_dirs_view_html(tabname))

    def create_user_metadata_editor(self, ui: ui_extra_networks.ExtraNetworksUi, tabname: str) -> DeltaNotesEditor:
        self._tabs.append(ui)
        self._add_refresh(ui.pages[-1], tabname)
        return DeltaNotesEditor(ui, tabname, self)

    def _add_refresh(self, cards: gr.HTML, tabname: str) -> None:
        """What the page presses to have these cards made anew, see javascript/custom_diffusion.js."""

        def made_anew() -> str:
            self.refresh()
            return self.create_html(tabname)

        refresh = gr.Button(visible=False, elem_id=f"{tabname}_cd_refresh_cards")
        # Not in gradio's queue: a page that is busy for 5 seconds would be told "Connection errored out".
        refresh.click(fn=made_anew, inputs=[], outputs=[cards], queue=False).then(
            fn=None, _js=f"() => customDiffusionCardsCame('{tabname}')"
        )


def _at_a_glance(summary: Summary) -> str:
    """ "SD 1 · <new1> cat"."""
    return " · ".join(filter(None, (summary.made_for, summary.activation_text())))


class DeltaNotesEditor(ui_extra_networks_user_metadata.UserMetadataEditor):
    """The host's editor of a card, with activation text and preferred weight."""

    def get_metadata_table(self, name: str) -> list[tuple[str, str]]:
        table = super().get_metadata_table(name)
        metadata = self.page.items.get(name, {}).get("metadata") or {}
        return table + [(f"{key}: ", html.escape(str(value))) for key, value in metadata.items()]

    def put_values_into_components(self, name: str) -> list[Any]:
        notes = self.get_user_metadata(name)
        words, weight = notes.get("activation text", ""), notes.get("preferred weight", 0.0)
        return [*super().put_values_into_components(name), words, weight]

    def save(self, name: str, description: str, notes: str, activation_text: str, preferred_weight: float) -> None:
        metadata = self.get_user_metadata(name)
        metadata["activation text"] = activation_text
        metadata["preferred weight"] = preferred_weight
        self.save_user_metadata(name, description, notes)

    def create_editor(self) -> None:
        self.create_default_editor_elems()
        activation_text = gr.Textbox(
            label="Activation text",
            info="Will be added to the prompt along with the delta; leave empty for its own words",
        )
        weight = gr.Slider(
            label="Preferred weight",
            info="Set to 0 to use the weight from Settings",
            minimum=0.0,
            maximum=2.0,
            step=0.05,
        )
        self.edit_notes = gr.TextArea(label="Notes", lines=4)
        self.create_default_buttons()
        shown = [self.edit_name, self.edit_description, self.html_filedata, self.html_preview, self.edit_notes]
        self.button_edit.click(
            fn=self.put_values_into_components,
            inputs=[self.edit_name_input],
            outputs=[*shown, activation_text, weight],
        ).then(fn=lambda: gr.update(visible=True), inputs=[], outputs=[self.box])
        self.setup_save_handler(
            self.button_save, self.save, [self.edit_description, self.edit_notes, activation_text, weight]
        )
