"""The first extension's files and its ancestor's."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib_custom_diffusion import formats
from lib_custom_diffusion.algebra.factors import QuantizedFactors
from lib_custom_diffusion.algebra.quantization import quantize
from lib_custom_diffusion.delta import Delta, Factors
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.formats.base import Base

KEY = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
OTHER = KEY.replace("to_k", "to_v")


def test_dense_and_factors_of_0_2_0(tmp_path: Path) -> None:
    us, vh, dense = torch.randn(8, 2), torch.randn(2, 6), torch.randn(8, 6)
    entries = {"meta": {"version": "0.2.0"}, "entries": {KEY: "delta_factors", OTHER: "delta"}}
    path = tmp_path / "a.safetensors"
    save_file({f"{KEY}.US": us, f"{KEY}.Vh": vh, OTHER: dense}, path, {"json": json.dumps(entries)})
    found = formats.read(path).delta.entries
    assert torch.allclose(found[KEY].dense(), us @ vh) and torch.equal(found[OTHER], dense)


@pytest.mark.parametrize("prefix", ["diffusion_model.", "model.diffusion_model."])
def test_kv_files_with_full_weights(tmp_path: Path, prefix: str) -> None:
    base = Base({KEY: torch.full((8, 6), 3.0)}, {})
    path = tmp_path / "a.kv.safetensors"
    save_file({prefix + KEY.removeprefix("model.diffusion_model."): torch.full((8, 6), 3.5)}, path)
    assert torch.equal(formats.read(path, base).delta.entries[KEY], torch.full((8, 6), 0.5))
    with pytest.raises(UserError, match="--model"):
        formats.read(path)


def test_quantized_factors_are_written_so_that_the_first_extension_reads_them(tmp_path: Path) -> None:
    us_bits, vh_bits = torch.tensor([9, 2], dtype=torch.uint8), torch.tensor([3, 1], dtype=torch.uint8)
    (us, step), (vh, _) = quantize(torch.randn(2, 8), us_bits), quantize(torch.randn(2, 16), vh_bits)
    entry = QuantizedFactors.of_levels(us.T, vh, step.T, us_bits, vh_bits)
    files = formats.write(Delta({KEY: entry, OTHER: torch.ones(8, 16)}), "delta")
    path = tmp_path / "a.safetensors"
    path.write_bytes(next(iter(files.values())))
    tensors = load_file(path)
    assert tensors[f"{KEY}.US"].dtype == torch.float16
    assert torch.allclose(tensors[f"{KEY}.US"].float() @ tensors[f"{KEY}.Vh"].float(), entry.dense(), atol=5e-3)
    found = formats.read(path).delta.entries
    assert isinstance(found[KEY], Factors) and torch.equal(found[OTHER].float(), torch.ones(8, 16))


def test_what_a_kv_file_has_beyond_cross_attention_is_listed(tmp_path: Path) -> None:
    base = Base({KEY: torch.zeros(8, 6)}, {})
    other = KEY.replace("attn2", "attn1")
    save_file({KEY: torch.ones(8, 6), other: torch.ones(8, 8)}, tmp_path / "a.kv.safetensors")
    assert formats.read(tmp_path / "a.kv.safetensors", base).dropped == [other]
