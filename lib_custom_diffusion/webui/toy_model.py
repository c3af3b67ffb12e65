"""The toy models among the WebUI's checkpoints, to try everything with, and the buttons that put them there."""

from __future__ import annotations

import html
import json
import re
import shutil
from functools import partial
from pathlib import Path

import gradio as gr
from modules import sd_models, shared
from modules.call_queue import wrap_queued_call

from ..errors import UserError
from ..storage import write_atomically
from ..ui.answers import clear_first
from ..ui.training_page import error_html

TOY = Path(__file__).resolve().parents[1] / "standalone" / "toy"
PREFIX = "custom-diffusion-"
CONFIGS = {"toy": "config", "toy-xl": "config-xl"}
"""Of each toy, the folder of its tokenizer."""
_TOKENIZER = re.compile(r"(?m)^(\s*version:\s*)\S*/tokenizer$")


def install_toy(name: str) -> Path:
    """Copy a toy to the checkpoints' folder, its configuration naming the tokenizer where it lies here.

    name: "toy", or "toy-xl" for that in SDXL's layout.
    Returns the checkpoint. Raises UserError if the toy is not there or the folder cannot be written.
    """
    checkpoint, config, captions = (TOY / f"{name}.{suffix}" for suffix in ("safetensors", "yaml", "captions.txt"))
    if not all(path.is_file() for path in (checkpoint, config, captions)):
        raise UserError(f"the toy model is not in {TOY}; install the extension anew")
    folder = Path(shared.cmd_opts.ckpt_dir or sd_models.model_path)
    path = json.dumps((TOY / CONFIGS[name] / "tokenizer").as_posix())
    text = _TOKENIZER.sub(lambda found: found[1] + path, config.read_text(encoding="utf-8"))
    target = folder / f"{PREFIX}{name}.safetensors"
    write_atomically(target.with_suffix(".yaml"), text.encode())
    write_atomically(target.with_suffix(".captions.txt"), captions.read_bytes())
    try:
        shutil.copyfile(checkpoint, target.with_suffix(".partial"))
        target.with_suffix(".partial").replace(target)
    except OSError as error:
        target.with_suffix(".partial").unlink(missing_ok=True)
        raise UserError(f"cannot write {target}: {error.strerror}") from error
    sd_models.list_models()
    return target


def no_checkpoint() -> bool:
    """Whether the host has none to draw or train with."""
    return not sd_models.checkpoints_list


def toy_chosen() -> bool:
    """Whether the checkpoint that the host draws and trains with is a toy."""
    chosen = shared.opts.data.get("sd_model_checkpoint") or next(iter(sd_models.checkpoints_list), "")
    return Path(chosen).name.startswith(f"{PREFIX}toy")


def example() -> tuple[str, str]:
    """What the toy can be taught first: the folder of pictures that it has never seen, and what they are to it."""
    concepts = json.loads((TOY / "concepts" / "concepts.json").read_text(encoding="utf-8"))
    name, first = next(iter(concepts.items()))
    return str(TOY / "concepts" / name), first["instance_prompt"].rpartition(first["modifier_token"])[2].strip()


def toy_buttons(part: str, next_step: str) -> gr.HTML:
    """Buttons that install a toy and choose it, as checkpoint and as preset of the training form, by the page.

    Returns where it is said what came of it and what to do next (HTML), yet to be rendered.
    """
    gr.HTML(
        "<p>No checkpoint yet, or just trying? The toy model is a very small model of drawings that trains in minutes"
        " on any computer. This copies it to your checkpoints, selects it, and fills in the training form with an"
        " example.</p>"
    )
    with gr.Row():
        button = gr.Button("Install the toy model and use it", variant="primary", elem_id=part)
        button_xl = gr.Button("Or in SDXL's layout", elem_id=f"{part}_xl")
    told = gr.HTML(elem_id=f"{part}_told").unrender()
    title = gr.Textbox(visible=False, elem_id=f"{part}_title")
    for each, name in ((button, "toy"), (button_xl, "toy-xl")):
        install = wrap_queued_call(partial(_install, name, next_step))
        each.click(fn=install, inputs=[], outputs=[title, told], queue=False).then(
            fn=None, _js="chooseCustomDiffusionToy", inputs=[title], outputs=[]
        )
        clear_first(each.click, told)
    return told


def _install(name: str, next_step: str) -> tuple[str, str]:
    """The checkpoint's title, as the host's list of checkpoints has it, and what to say."""
    try:
        path = install_toy(name)
    except UserError as error:
        return "", error_html(error)
    found = sd_models.get_closet_checkpoint_match(path.name)
    previews = _PREVIEWS_OF_XL if name == "toy-xl" else ""
    return found.title, f"<p>Installed <code>{html.escape(str(path))}</code> and selected it. {next_step}{previews}</p>"


_PREVIEWS_OF_XL = (
    " For live previews of SDXL the WebUI downloads a model; without a network, first choose <i>Approx cheap</i> in"
    " Settings → Live previews."
)
