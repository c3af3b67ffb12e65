import html
import json
import os
from pathlib import Path


def quote_js(s):
    return json.dumps(s)


class ExtraNetworksPage:
    def __init__(self, title):
        self.title, self.name, self.items = title, title.lower(), {}
        self.pane_tpl = """<div onclick="extraNetworksControlRefreshOnClick(event, 'txt2img', 'deltas')"></div>"""

    def refresh(self):
        pass

    def create_html(self, tabname, *, empty=False):
        self.items = {item["name"]: item for item in ([] if empty else self.list_items())}
        return self.pane_tpl + "".join(self.create_item_html(tabname, item, "card") for item in self.items.values())

    def create_item_html(self, tabname, item, template=None):
        return f'<div onclick="{html.escape(item["prompt"])}">{item["name"]} {html.escape(item["description"])}</div>'

    def create_dirs_view_html(self, tabname):
        """A button a folder below each of those for previews, with the separator at its end, and one for all."""
        below = [
            os.path.relpath(os.path.join(root, name), folder)
            for folder in self.allowed_directories_for_previews()
            for root, names, _ in os.walk(folder)
            for name in sorted(names)
        ]
        names = ["all", *(html.escape(name + os.path.sep) for name in below)] if below else []
        return "".join(f"\n<button class='lg' onclick='search(event)'>\n{name}\n</button>\n" for name in names)

    def find_preview(self, path):
        return f"{path}.png" if os.path.exists(f"{path}.png") else None

    def find_description(self, path):
        return None

    def search_terms_from_path(self, filename, possible_directories=None):
        return os.path.basename(filename)

    def get_sort_keys(self, path):
        return {"name": os.path.basename(path)}

    def read_user_metadata(self, item, use_cache=True):
        notes = Path(os.path.splitext(item["filename"])[0] + ".json")
        item["user_metadata"] = json.loads(notes.read_text()) if notes.exists() else {}


class ExtraNetworksUi:
    def __init__(self):
        self.pages_contents, self.pages = None, []


def register_page(page):
    pass
