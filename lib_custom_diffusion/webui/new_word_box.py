"""The box in which a new word is made, and the words that there are."""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from modules import sd_hijack, shared
from modules.call_queue import wrap_queued_call
from modules.ui_components import FormRow

from ..errors import UserError
from ..ui.answers import clear_first
from ..ui.training_page import error_html
from .new_embedding import create_embedding, refuse_ordinary


def embedding_names() -> list[str]:
    """The words that there are; until the host has read them, those that its folder has files for."""
    files = Path(shared.cmd_opts.embeddings_dir).rglob("*")
    names = sd_hijack.model_hijack.embedding_db.word_embeddings or (
        path.stem for path in files if path.suffix.lower() in (".pt", ".bin", ".safetensors")
    )
    return sorted(names)


def new_word_box() -> tuple[gr.Accordion, Callable[[gr.Slider, list[gr.Dropdown]], None]]:
    """Where a new word is made, open where there is none yet, and what binds its button.

    The second is to be called with the number of concepts and the fields that their words are chosen in.
    """
    with gr.Accordion("New word", open=not embedding_names(), elem_id="cd_new") as box:
        with FormRow():
            name = gr.Textbox(label="Name", placeholder="such as mycat", max_lines=1, elem_id="cd_new_name")
            text = gr.Textbox(
                label="Initialization text", value="ktn", info="A rare word, or one close to your concept", max_lines=1,
                elem_id="cd_new_text",
            )  # fmt: skip
            vectors = gr.Number(label="Number of vectors per token", value=1, precision=0, elem_id="cd_new_vectors")
        with FormRow():
            overwrite = gr.Checkbox(label="Overwrite Old Embedding", value=False, elem_id="cd_new_overwrite")
            create = gr.Button("Create embedding", elem_id="cd_new_create")
    told = gr.HTML(elem_id="cd_new_told")

    def make(
        name: str, text: str, vectors: float | None, overwrite: bool, count: float | None, *chosen: str
    ) -> list[Any]:
        same = [gr.update() for _ in chosen]
        try:
            if not name.strip():
                raise UserError("Name is empty; give the new word, such as mycat")
            refuse_ordinary(name)
            created = create_embedding(name, text, int(vectors or 0), overwrite)
        except UserError as error:
            return [error_html(error), *same]
        words, place = embedding_names(), next((n for n in range(int(count or 1)) if not chosen[n]), 0)
        updates = [
            gr.update(choices=words, value=created) if number == place else gr.update(choices=words)
            for number in range(len(chosen))
        ]
        return [_told_of(created, name), *updates]

    def bind(count: gr.Slider, choices: list[gr.Dropdown]) -> None:
        inputs = [name, text, vectors, overwrite, count, *choices]
        for event in (create.click, name.submit):
            event(fn=wrap_queued_call(make), inputs=inputs, outputs=[told, *choices], queue=False).then(
                fn=None, _js="customDiffusionWordWasMade", inputs=[told], outputs=[]
            )
            clear_first(event, told)

    return box, bind


def _told_of(created: str, asked: str) -> str:
    """What is said of a new word, with what a person may not expect."""
    said = [f"Created <b>{html.escape(created)}</b> and selected it."]
    if created != asked.strip():
        said.append(
            f"The name <i>{html.escape(asked.strip())}</i> has characters that an embedding's name cannot have."
        )
    return f"<p>{' '.join(said)}</p>"
