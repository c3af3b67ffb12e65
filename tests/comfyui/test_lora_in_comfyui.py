"""The LoRA that `convert` writes, by ComfyUI's own loader into layers of full size. Needs COMFYUI_DIR: see conftest."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lib_custom_diffusion import formats
from lib_custom_diffusion.algebra.blending import dense
from lib_custom_diffusion.algebra.compression import Limit, compress
from lib_custom_diffusion.attention import projections
from lib_custom_diffusion.delta import Delta, Factors

pytestmark = pytest.mark.skipif("COMFYUI_DIR" not in os.environ, reason="COMFYUI_DIR names no ComfyUI")

SD1 = {"context_dim": 768, "model_channels": 320, "num_heads": 8, "num_head_channels": -1, "channel_mult": (1, 2, 4, 4),
       "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_output": [1] * 9 + [0] * 3,
       "transformer_depth_middle": 1, "num_res_blocks": [2, 2, 2, 2], "use_linear_in_transformer": False}  # fmt: skip
SDXL = {"context_dim": 2048, "model_channels": 320, "num_heads": -1, "num_head_channels": 64, "channel_mult": (1, 2, 4),
        "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "transformer_depth_middle": 10, "num_res_blocks": [2, 2, 2], "use_linear_in_transformer": True,
        "num_classes": "sequential", "adm_in_channels": 2816}  # fmt: skip
COMMON = {"image_size": 32, "in_channels": 4, "out_channels": 4, "use_spatial_transformer": True, "legacy": False,
          "use_temporal_attention": False}  # fmt: skip


def full_size(architecture: str) -> Any:
    """ComfyUI's model of Stable Diffusion 1 or XL, of its own size and without any numbers."""
    import comfy.model_base
    import comfy.supported_models

    kind = comfy.supported_models.SD15 if architecture == "sd1" else comfy.supported_models.SDXL
    config = kind({**COMMON, **(SD1 if architecture == "sd1" else SDXL)})
    config.set_inference_dtype(torch.float32, None)
    make = comfy.model_base.BaseModel if architecture == "sd1" else comfy.model_base.SDXL
    return make(config, device="meta")


def of_rank_3(architecture: str, model: Any) -> Delta:
    torch.manual_seed(0)
    layers = {key: layer.shape for key, layer in projections(model.diffusion_model).items()}
    entries = {key: Factors(torch.randn(out, 3) / 30, torch.randn(3, width)) for key, (out, width) in layers.items()}
    delta = Delta(entries, {"<new1>": torch.randn(2, 768 if architecture == "sd1" else 2048)})
    delta.provenance.architecture = architecture
    return delta


KINDS: dict[str, Callable[[Delta], Delta]] = {
    "dense": lambda delta: replace(delta, entries={key: dense(entry) for key, entry in delta.entries.items()}),
    "factors": lambda delta: delta,
    "quantized": lambda delta: compress(delta, Limit(energy=0.9999)),
}


@pytest.mark.parametrize(("architecture", "layers"), [("sd1", 32), ("sdxl", 140)])
@pytest.mark.parametrize("exact", [False, True])
def test_every_layer_is_loaded_and_nothing_but_the_words_is_unknown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, architecture: str, layers: int, exact: bool
) -> None:
    import comfy.lora
    import comfy.lora_convert

    model = full_size(architecture)
    delta = of_rank_3(architecture, model)
    written = formats.write(KINDS["dense"](delta) if exact else delta, "lora")
    (tmp_path / "a.safetensors").write_bytes(written["lora.safetensors"])
    names = comfy.lora.model_lora_keys_unet(model, {})
    with caplog.at_level(logging.WARNING):
        content = comfy.lora_convert.convert_lora(load_file(tmp_path / "a.safetensors"))
        patches = comfy.lora.load_lora(content, names)
    assert len(patches) == layers
    assert all(said.startswith("lora key not loaded: bundle_emb.<new1>.") for said in caplog.messages)
    for key, entry in delta.entries.items():
        place = key.removeprefix("model.")
        nothing = torch.zeros(entry.shape)
        made = comfy.lora.calculate_weight([(0.5, patches[place], 1.0, None, None)], nothing, place)
        assert (made - 0.5 * dense(entry)).norm() < 2e-3 * dense(entry).norm()


@pytest.mark.parametrize(
    ("architecture", "kind"), [("sd1", "dense"), ("sd1", "factors"), ("sd1", "quantized"), ("sdxl", "factors")]
)
def test_a_delta_of_full_size_is_in_the_weights_by_its_strength(tmp_path: Path, architecture: str, kind: str) -> None:
    """With the file between, as the node reads it."""
    import comfy.lora
    import comfy.model_patcher

    from lib_custom_diffusion.comfyui.acting import with_delta

    model = full_size(architecture)
    whole = of_rank_3(architecture, model)
    KINDS[kind](whole).save(tmp_path / "a.delta.safetensors")
    cpu = torch.device("cpu")
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)
    patched = with_delta(patcher, Delta.load(tmp_path / "a.delta.safetensors"), 0.5)
    assert not patcher.patches and len(patched.patches) == len(whole.entries)
    for key, entry in whole.entries.items():
        place = f"diffusion_model.{key.removeprefix('model.diffusion_model.')}"
        made = comfy.lora.calculate_weight(patched.patches[place], torch.zeros(entry.shape), place)
        assert (made - 0.5 * dense(entry)).norm() < 0.03 * dense(entry).norm()
