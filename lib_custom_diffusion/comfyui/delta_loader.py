"""The node "Load Delta (Custom Diffusion)": MODEL and CLIP in, the same with a delta and its words out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import folder_paths

from ..delta import SUFFIX, Delta
from ..errors import UserError
from .acting import with_delta
from .words import with_words

FOLDER = "deltas"
"""ComfyUI's name for the folder of deltas; users may add folders of this name in extra_model_paths.yaml."""


def register_folder() -> None:
    """Have ComfyUI look for deltas in models/deltas, which is made if it is not there."""
    own = os.path.join(folder_paths.models_dir, FOLDER)
    os.makedirs(own, exist_ok=True)
    folder_paths.add_model_folder_path(FOLDER, own)
    paths, _ = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, {".safetensors"})


class DeltaLoader:
    """A node as ComfyUI wants it: what it takes and gives is told by class attributes."""

    DESCRIPTION = "Applies a delta that Custom Diffusion has learned, and makes its new words known to prompts."
    CATEGORY = "loaders"
    FUNCTION = "load"
    RETURN_TYPES = ("MODEL", "CLIP", "STRING")
    RETURN_NAMES = ("MODEL", "CLIP", "words")
    OUTPUT_TOOLTIPS = (
        "The model with the delta.",
        "The text encoder, which knows the delta's words.",
        "The words that the delta brings, to write into prompts.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        files = [name for name in folder_paths.get_filename_list(FOLDER) if name.endswith(SUFFIX)]
        return {
            "required": {
                "model": ("MODEL",),
                "clip": ("CLIP",),
                "delta_name": (files, {"tooltip": f"A NAME{SUFFIX} in models/{FOLDER}."}),
                "strength": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": -10.0,
                        "max": 10.0,
                        "step": 0.05,
                        "tooltip": "How strongly the delta acts. The words stay as they were learned.",
                    },
                ),
            }
        }

    @classmethod
    def IS_CHANGED(cls, delta_name: str, **_: Any) -> str:
        """What changes whenever the file does, so that a delta trained anew is read anew."""
        path = folder_paths.get_full_path(FOLDER, delta_name)
        if path is None:
            return ""
        about = os.stat(path)
        return f"{about.st_mtime_ns} {about.st_size}"

    def load(self, model: Any, clip: Any, delta_name: str, strength: float) -> tuple[Any, Any, str]:
        """Raises UserError if the file is missing, is no delta, or does not fit the model or the text encoder."""
        path = folder_paths.get_full_path(FOLDER, delta_name)
        if path is None:
            raise UserError(f"there is no delta {delta_name!r} in models/{FOLDER}")
        delta = Delta.load(Path(path))
        return with_delta(model, delta, strength), with_words(clip, delta.embeddings), " ".join(delta.embeddings)
