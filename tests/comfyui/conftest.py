"""ComfyUI itself where COMFYUI_DIR names a folder with it (and its requirements are installed), else a stand-in.

COMFYUI_DIR=path/to/ComfyUI python -m pytest tests/comfyui
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
COMFYUI_DIR = os.environ.get("COMFYUI_DIR")
sys.path[:0] = [str(HERE.parent), str(HERE)]
sys.path.append(COMFYUI_DIR or str(HERE / "stand_in"))
if COMFYUI_DIR:
    import comfy.cli_args

    comfy.cli_args.args.cpu = True  # read when comfy.model_management is imported


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory):
    """MODEL and CLIP, as ComfyUI's loaders give them."""
    if COMFYUI_DIR is None:
        import stand_in_host

        return stand_in_host.load()
    import toy_in_comfyui

    return toy_in_comfyui.load(str(tmp_path_factory.mktemp("embeddings")))


@pytest.fixture
def model(loaded):
    return loaded[0]


@pytest.fixture
def clip(loaded):
    return loaded[1]


@pytest.fixture
def step():
    """A step of a MODEL's UNet, as ComfyUI takes it: the patches are put into the weights first."""
    if COMFYUI_DIR is None:
        return lambda model, latents, context: model.step(latents, context)
    import comfy.model_management

    def taken(model, latents, context):
        comfy.model_management.load_models_gpu([model])
        with torch.no_grad():
            return model.model.diffusion_model(latents, torch.tensor([50.0]), context=context)

    return taken
