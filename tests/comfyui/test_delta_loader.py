"""The node: found by ComfyUI in a clone of this repository, it lists deltas and loads one."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import folder_paths
import pytest
import torch

from lib_custom_diffusion.attention import projections
from lib_custom_diffusion.comfyui import DeltaLoader
from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "deltas", ([str(tmp_path)], {".safetensors"}))
    return tmp_path


def saved(model, clip, path: Path) -> Delta:
    key, layer = next(iter(projections(model.model.diffusion_model).items()))
    width = clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight.shape[1]
    delta = Delta({key: torch.ones(layer.shape)}, {"<new1>": torch.ones(1, width), "<new2>": torch.ones(1, width)})
    delta.save(path)
    return delta


def test_comfyui_finds_the_node_at_the_root() -> None:
    name = str(ROOT).replace(".", "_x_")  # as ComfyUI calls what it finds in custom_nodes
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    (node,) = module.NODE_CLASS_MAPPINGS
    assert {node: "Load Delta (Custom Diffusion)"} == module.NODE_DISPLAY_NAME_MAPPINGS
    assert module.NODE_CLASS_MAPPINGS[node].RETURN_TYPES[:2] == ("MODEL", "CLIP")


def test_deltas_are_looked_for_in_a_folder_of_the_models() -> None:
    paths, _ = folder_paths.folder_names_and_paths["deltas"]
    assert paths == [os.path.join(folder_paths.models_dir, "deltas")] and os.path.isdir(paths[0])


def test_only_deltas_are_listed(model, clip, folder: Path) -> None:
    saved(model, clip, folder / "cat.delta.safetensors")
    (folder / "lora.safetensors").write_bytes(b"")
    (folder / "notes.txt").write_text("")
    assert DeltaLoader.INPUT_TYPES()["required"]["delta_name"][0] == ["cat.delta.safetensors"]


def test_the_node_gives_model_clip_and_words(model, clip, folder: Path) -> None:
    delta = saved(model, clip, folder / "cat.delta.safetensors")
    patched, known, words = DeltaLoader().load(model, clip, "cat.delta.safetensors", 0.5)
    assert list(patched.patches) == [next(iter(delta.entries)).removeprefix("model.")]
    assert patched.patches is not model.patches and not model.patches
    assert torch.is_tensor(known.tokenizer.clip_l.tokenize_with_weights("<new2>")[0][1][0])
    assert words == "<new1> <new2>"


def test_a_delta_trained_anew_is_read_anew(model, clip, folder: Path) -> None:
    path = folder / "cat.delta.safetensors"
    saved(model, clip, path)
    before = DeltaLoader.IS_CHANGED(delta_name=path.name, model=None, clip=None, strength=1.0)
    assert DeltaLoader.IS_CHANGED(delta_name=path.name) == before
    os.utime(path, ns=(1, 1))
    assert DeltaLoader.IS_CHANGED(delta_name=path.name) != before


def test_a_delta_that_is_gone_is_told_in_one_sentence(model, clip, folder: Path) -> None:
    with pytest.raises(UserError, match=r"there is no delta 'gone.delta.safetensors' in models/deltas"):
        DeltaLoader().load(model, clip, "gone.delta.safetensors", 1.0)
    assert DeltaLoader.IS_CHANGED(delta_name="gone.delta.safetensors") == ""
