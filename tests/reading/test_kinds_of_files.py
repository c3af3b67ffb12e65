"""What a file is, is said in the refusal."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from lib_custom_diffusion import formats
from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.reading import read_document

LAYER = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
KEY = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3840\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html></html>", "a web page"),
        (b'{"error": "Access denied"}', "JSON document"),
        (b"PK\x03\x04 and no more of it", "interrupted download"),
        (b"\x1f\x8b\x08\x00 and more", "gzip"),
        (b"GGUF\x03\x00\x00\x00 and more", "GGUF"),
        (bytes(4000), "nothing but zeros"),
        (b"a letter of some length", "a text"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "JPEG"),
        (save({"a": torch.ones(100)})[:-7], "interrupted download"),
    ],
)
def test_what_is_no_tensor_file_is_told_by_its_bytes(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    for read in (read_document, formats.read, Delta.load):
        with pytest.raises(UserError, match=what):
            read(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("names", "what"),
    [
        ([f"{LAYER}.lora_up.weight", f"{LAYER}.lora_down.weight"], "is a LoRA, not a delta"),
        ([f"{LAYER}.hada_w1_a"], "is a LoHa"),
        ([f"{LAYER}.lokr_w1"], "is a LoKr"),
        ([f"{LAYER}.lora_up.weight", f"{LAYER}.dora_scale"], "is a DoRA"),
        (["<cat-toy>"], "is an embedding, not a delta"),
        (["first_stage_model.decoder.conv_in.weight"], "is a whole checkpoint"),
        (["control_model.time_embed.0.weight"], "is a ControlNet"),
        (["a", "b"], r"2 tensors \(a, b\)"),
    ],
)
def test_other_files_are_told_by_what_they_hold(tmp_path: Path, names: list[str], what: str) -> None:
    save_file({name: torch.ones(2, 2) for name in names}, tmp_path / "a.safetensors")
    torch.save({name: torch.ones(2, 2) for name in names}, tmp_path / "a.pt")
    for file in ("a.safetensors", "a.pt"):
        with pytest.raises(UserError, match=what):
            Delta.load(tmp_path / file)


def test_a_folder_and_a_name_that_no_file_can_have_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        read_document(tmp_path)
    for name in ("x" * 5000, "a\0b"):
        with pytest.raises(UserError):
            read_document(tmp_path / name)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E8M0", "F4", "C64", "F6_E2M3"])
def test_numbers_of_other_kinds_are_one_line(tmp_path: Path, dtype: str) -> None:
    size = {"C64": 8}.get(dtype, 1) * 16
    header = f'{{"a":{{"dtype":"{dtype}","shape":[4,4],"data_offsets":[0,{size}]}}}}'.encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))
    with pytest.raises(UserError) as refused:
        read_document(tmp_path / "a.safetensors")
    assert "\n" not in str(refused.value)


def test_a_tensor_of_dimensions_without_end_is_refused(tmp_path: Path) -> None:
    shape = ",".join(["1"] * 100_000)
    header = f'{{"a":{{"dtype":"F32","shape":[{shape}],"data_offsets":[0,4]}}}}'.encode()
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(UserError, match="more dimensions"):
        read_document(tmp_path / "a")


@pytest.mark.parametrize("rank", [1, 8])
def test_a_few_bytes_cannot_ask_for_gigabytes(tmp_path: Path, rank: int) -> None:
    ones = torch.ones(40_000, rank, dtype=torch.float16)
    metadata = {"json": f'{{"entries": {{"{KEY}": "delta_factors"}}}}'}
    save_file(
        {f"{KEY}.US": ones, f"{KEY}.Vh": ones.T.clone(memory_format=torch.contiguous_format)},
        tmp_path / "a.safetensors",
        metadata,
    )
    save_file(
        {
            f"{LAYER}.lora_up.weight": ones,
            f"{LAYER}.lora_down.weight": ones.T.clone(memory_format=torch.contiguous_format),
        },
        tmp_path / "b",
    )
    for file in ("a.safetensors", "b"):
        with pytest.raises(UserError, match="larger than a layer of any model"):
            formats.read(tmp_path / file)


def test_bit_planes_that_unpack_to_much_more_are_refused(tmp_path: Path) -> None:
    """Directions without bits cost nothing in the file: 8000 of them, 65,536 long, would be two gigabytes."""
    bits = torch.zeros(2, 8000, dtype=torch.uint8)
    bits[0, 0], bits[1] = 1, 1
    tensors = {
        f"{KEY}.bits": bits, f"{KEY}.step": torch.ones(1, 8000), f"{KEY}.US": torch.zeros(1, 8192, dtype=torch.uint8),
        f"{KEY}.Vh": torch.zeros(8000, 1, dtype=torch.uint8),
    }  # fmt: skip
    metadata = {"json": f'{{"entries": {{"{KEY}": "delta_factors_quantized"}}}}'}
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    with pytest.raises(UserError, match="unpack to much more"):
        Delta.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("value", [1e30, 3e38])
def test_values_whose_products_would_not_be_finite_are_refused(tmp_path: Path, value: float) -> None:
    pair = {f"{LAYER}.lora_up.weight": torch.ones(4, 2), f"{LAYER}.lora_down.weight": torch.ones(2, 8)}
    save_file({**pair, f"{LAYER}.alpha": torch.tensor(value)}, tmp_path / "alpha")
    save_file({f"{LAYER}.diff": torch.full((4, 8), value)}, tmp_path / "diff")
    large = {f"{LAYER}.hada_w{number}_{side}": torch.full((2, 2), 1e5) for number in (1, 2) for side in "ab"}
    save_file(large, tmp_path / "loha")
    for file in ("alpha", "diff", "loha"):
        with pytest.raises(UserError, match="as large as"):
            formats.read(tmp_path / file)


def test_half_a_surrogate_pair_in_a_key_makes_the_file_damaged(tmp_path: Path) -> None:
    save_file({KEY: torch.ones(2, 2)}, tmp_path / "a", {"json": '{"entries": {"\\ud800": "delta"}}'})
    with pytest.raises(UserError, match="lists no entries") as refused:
        Delta.load(tmp_path / "a")
    str(refused.value).encode()
