"""What the parts of LoHa, LoKr, DoRA and older LoRA files change, worked out by hand and beside LyCORIS' own code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lib_custom_diffusion import formats
from lib_custom_diffusion.algebra.blending import dense
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.formats.base import Base

PATH = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
NAME = f"lora_unet_{PATH.replace('.', '_')}"
KEY = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
OUT, IN = 8, 12


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape) * 7 + len(shape)))


def read(path: Path, tensors: dict[str, Tensor], base: Base | None = None) -> Tensor:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    found = formats.read(path, base)
    assert list(found.delta.entries) == [KEY] and found.dropped == []
    return dense(found.delta.entries[KEY])


def test_loha_is_the_product_of_two_low_rank_matrices_number_by_number(tmp_path: Path) -> None:
    a1, b1, a2, b2 = random(OUT, 2), random(2, IN), random(OUT, 2) + 1, random(2, IN) - 1
    parts = {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2, "alpha": torch.tensor(3.0)}
    found = read(tmp_path / "a", {f"{NAME}.{part}": value for part, value in parts.items()})
    for i in range(OUT):
        for j in range(IN):
            wanted = 1.5 * sum(a1[i, r] * b1[r, j] for r in (0, 1)) * sum(a2[i, r] * b2[r, j] for r in (0, 1))
            assert found[i, j] == pytest.approx(wanted.item(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("factored", [(), (2,), (1, 2)])
def test_lokr_is_a_kronecker_product_scaled_by_the_rank_of_what_is_factored(
    tmp_path: Path, factored: tuple[int, ...]
) -> None:
    w1, w2 = random(2, 3), random(4, 4)
    parts = {"alpha": torch.tensor(1.0)}
    for number, w in ((1, w1), (2, w2)):
        if number in factored:
            parts |= {
                f"lokr_w{number}_a": w @ torch.ones(w.shape[1], 2) / 2,
                f"lokr_w{number}_b": random(2, w.shape[1]),
            }
            w.copy_(parts[f"lokr_w{number}_a"] @ parts[f"lokr_w{number}_b"])
        else:
            parts[f"lokr_w{number}"] = w
    found = read(tmp_path / "a", {f"{NAME}.{part}": value for part, value in parts.items()})
    scale = 0.5 if factored else 1.0
    for i in range(OUT):
        for j in range(IN):
            assert found[i, j] == pytest.approx(
                scale * (w1[i // 4, j // 4] * w2[i % 4, j % 4]).item(), rel=1e-4, abs=1e-6
            )


@pytest.mark.parametrize("side", ["rows", "columns"])
def test_dora_brings_rows_or_columns_of_the_changed_weight_to_a_length(tmp_path: Path, side: str) -> None:
    weight, up, down = random(OUT, IN) * 2, random(OUT, 2) - 1, random(2, IN)
    lengths = random(OUT, 1).abs() + 1 if side == "rows" else random(1, IN).abs() + 1
    tensors = {f"{NAME}.lora_up.weight": up, f"{NAME}.lora_down.weight": down, f"{NAME}.dora_scale": lengths}
    with pytest.raises(UserError, match="a DoRA depends on the weights of its model; give"):
        read(tmp_path / "a", tensors)
    changed = weight + read(tmp_path / "a", tensors, Base({KEY: weight}, {}))
    assert torch.allclose(changed.norm(dim=1 if side == "rows" else 0), lengths.flatten(), rtol=1e-5)
    merged = weight + up @ down
    one = merged[3] if side == "rows" else merged[:, 3]
    other = changed[3] if side == "rows" else changed[:, 3]
    assert torch.nn.functional.cosine_similarity(one, other, dim=0) > 0.9999


OLD = PATH.replace(".to_k", ".processor.to_k_lora")


@pytest.mark.parametrize(
    "names",
    [
        (f"{OLD}.up.weight", f"{OLD}.down.weight"),
        (f"unet.{OLD}.up.weight", f"unet.{OLD}.down.weight"),
        (f"unet.{PATH}.lora.up.weight", f"unet.{PATH}.lora.down.weight"),
        (f"unet.{PATH}.lora_linear_layer.up.weight", f"unet.{PATH}.lora_linear_layer.down.weight"),
        (f"{PATH}.lora_B.default.weight", f"{PATH}.lora_A.default.weight"),
        (f"lora_unet.{PATH}.lora_up.weight", f"lora_unet.{PATH}.lora_down.weight"),
        (f"base_model.model.unet.{PATH}.lora_B.weight", f"base_model.model.unet.{PATH}.lora_A.weight"),
        (KEY[6:].replace("weight", "lora_up.weight"), KEY[6:].replace("weight", "lora_down.weight")),
        (f"lycoris_{PATH.replace('.', '_')}.lora_up.weight", f"lycoris_{PATH.replace('.', '_')}.lora_down.weight"),
    ],
)
def test_factors_go_by_many_names(tmp_path: Path, names: tuple[str, str]) -> None:
    up, down = random(OUT, 2), random(2, IN)
    assert torch.allclose(read(tmp_path / "a", {names[0]: up, names[1]: down}), up @ down)
    torch.save({names[0]: up, names[1]: down}, tmp_path / "b.bin")
    assert torch.allclose(dense(formats.read(tmp_path / "b.bin").delta.entries[KEY]), up @ down)


@pytest.mark.parametrize("name", [NAME, NAME.replace("lora_unet", "lycoris"), KEY[6:].removesuffix(".weight")])
def test_a_file_of_full_differences_alone_is_read_by_either_prefix(tmp_path: Path, name: str) -> None:
    """ComfyUI's is diffusion_model."""
    change = random(OUT, IN)
    assert torch.equal(read(tmp_path / "a", {f"{name}.diff": change}), change)


@pytest.mark.parametrize("said", ["{oops", "[]", '{"unet.lora_alpha": "much"}', '{"unet.alpha_pattern": 3}'])
def test_damaged_settings_of_peft_are_told(tmp_path: Path, said: str) -> None:
    tensors = {f"unet.{PATH}.lora_B.weight": random(OUT, 2), f"unet.{PATH}.lora_A.weight": random(2, IN)}
    save_file(tensors, tmp_path / "a.safetensors", {"lora_adapter_metadata": said})
    with pytest.raises(UserError, match=r"its settings of PEFT, '.*', are damaged"):
        formats.read(tmp_path / "a.safetensors")


def test_peft_magnitudes_are_a_dora(tmp_path: Path) -> None:
    weight, lengths = random(OUT, IN), random(OUT).abs() + 1
    tensors = {
        f"unet.{PATH}.lora_B.weight": random(OUT, 2), f"unet.{PATH}.lora_A.weight": random(2, IN),
        f"unet.{PATH}.lora_magnitude_vector": lengths,
    }  # fmt: skip
    changed = weight + read(tmp_path / "a", tensors, Base({KEY: weight}, {}))
    assert torch.allclose(changed.norm(dim=1), lengths, rtol=1e-5)


def test_what_lycoris_makes_is_read_as_it_acts(tmp_path: Path) -> None:
    """Its own modules, filled at random: what they merge into a Linear is what is read of their state."""
    pytest.importorskip("lycoris")
    from lycoris.modules.loha import LohaModule
    from lycoris.modules.lokr import LokrModule

    torch.manual_seed(0)
    linear = torch.nn.Linear(IN, OUT, bias=False)
    base = Base({KEY: linear.weight.detach()}, {})
    for make, decomposed in ((LohaModule, False), (LohaModule, True), (LokrModule, False), (LokrModule, True)):
        module = make("x", linear, lora_dim=2, alpha=2, weight_decompose=decomposed, use_scalar=False)
        for name, parameter in module.named_parameters():
            if "hada" in name or "lokr" in name:
                torch.nn.init.normal_(parameter)
        state = {f"{NAME}.{part}": value.detach().clone() for part, value in module.custom_state_dict().items()}
        merged = module.get_merged_weight()[0]
        found = read(tmp_path / "a", state, base)
        assert torch.allclose(found, (merged - linear.weight).detach(), atol=1e-4), (make.__name__, decomposed)


@pytest.mark.parametrize(
    "parts",
    [
        {"hada_w1_a": random(OUT, 2)},
        {
            "hada_w1_a": random(OUT, 2),
            "hada_w1_b": random(2, IN),
            "hada_w2_a": random(OUT, 2),
            "hada_w2_b": random(2, 5),
        },
        {"lokr_w1": random(2, 3)},
        {"lokr_w1": random(4000, 3), "lokr_w2": random(4000, 3)},
        {"lora_up.weight": random(OUT, 2), "lora_down.weight": random(2, IN), "dora_scale": random(3, 5)},
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path: Path, parts: dict[str, Tensor]) -> None:
    with pytest.raises(UserError, match=r"attn2\.to_k"):
        read(
            tmp_path / "a", {f"{NAME}.{part}": value for part, value in parts.items()}, Base({KEY: random(OUT, IN)}, {})
        )


def test_what_leaves_nothing_is_refused_in_groups(tmp_path: Path) -> None:
    tensors = {
        f"lora_te_text_model_encoder_layers_{number}_mlp_fc1.{part}": torch.ones(2, 2)
        for number in range(3)
        for part in ("lora_up.weight", "lora_down.weight")
    }
    tensors[f"{NAME.replace('attn2', 'attn1')}.alpha"] = torch.tensor(1.0)
    save_file(tensors, tmp_path / "a")
    with pytest.raises(UserError, match=r"nothing of it would be left \(6 of the text encoder, 1 of self-attention\)"):
        formats.read(tmp_path / "a")
