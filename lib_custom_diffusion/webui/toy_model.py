"""The toy model among the WebUI's checkpoints, to try everything with."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from modules import sd_models, shared

from ..errors import UserError
from ..storage import write_atomically

TOY = Path(__file__).resolve().parents[1] / "standalone" / "toy"
NAME = "custom-diffusion-toy"
_TOKENIZER = re.compile(r"(?m)^(\s*version:\s*).*$")


def install_toy() -> Path:
    """Copy the toy to the checkpoints' folder, its configuration naming the tokenizer where it lies here.

    Returns the checkpoint. Raises UserError if the toy is not there or the folder cannot be written.
    """
    checkpoint, config, captions = (TOY / f"toy.{suffix}" for suffix in ("safetensors", "yaml", "captions.txt"))
    if not all(path.is_file() for path in (checkpoint, config, captions)):
        raise UserError(f"the toy model is not in {TOY}; install the extension anew")
    folder = Path(shared.cmd_opts.ckpt_dir or sd_models.model_path)
    path = json.dumps((TOY / "config" / "tokenizer").as_posix())
    text = _TOKENIZER.sub(lambda found: found[1] + path, config.read_text(encoding="utf-8"))
    write_atomically(folder / f"{NAME}.yaml", text.encode())
    write_atomically(folder / f"{NAME}.captions.txt", captions.read_bytes())
    target = folder / f"{NAME}.safetensors"
    try:
        shutil.copyfile(checkpoint, target.with_suffix(".partial"))
        target.with_suffix(".partial").replace(target)
    except OSError as error:
        target.with_suffix(".partial").unlink(missing_ok=True)
        raise UserError(f"cannot write {target}: {error.strerror}") from error
    sd_models.list_models()
    return target
