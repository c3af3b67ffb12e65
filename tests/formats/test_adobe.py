"""Adobe's files, in the three shapes that its programs write them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lib_custom_diffusion import formats
from lib_custom_diffusion.delta import Delta, Factors, Provenance
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.formats.base import Base

KEY = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
OTHER = "model.diffusion_model.output_blocks.3.1.transformer_blocks.0.attn2.to_v.weight"
PATHS = {
    KEY: "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight",
    OTHER: "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v.weight",
}
BASE = Base({KEY: torch.full((8, 6), 2.0), OTHER: torch.full((4, 6), -1.0)}, {})


def changes() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {KEY: torch.randn(8, 6), OTHER: torch.randn(4, 6)}


def save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def test_ckpt_with_full_weights(tmp_path: Path) -> None:
    weights = {key: change + BASE.weights[key] for key, change in changes().items()}
    embed = torch.randn(2, 6)
    found = formats.read(save(tmp_path / "delta_epoch=1.ckpt", {"state_dict": {**weights, "embed": embed}}), BASE)
    for key, change in changes().items():
        assert torch.allclose(found.delta.entries[key], change, atol=1e-6)
    assert torch.equal(torch.cat(list(found.delta.embeddings.values())), embed)
    assert list(found.delta.embeddings) == ["<new1>", "<new2>"]


def test_diffusers_style_bin_whatever_its_name(tmp_path: Path) -> None:
    weights = {PATHS[key]: change + BASE.weights[key] for key, change in changes().items()}
    vector = torch.randn(6)
    found = formats.read(save(tmp_path / "x.safetensors", {"unet": weights, "modifier_token": {"<cat>": vector}}), BASE)
    for key, change in changes().items():
        assert torch.allclose(found.delta.entries[key], change, atol=1e-6)
    assert torch.equal(found.delta.embeddings["<cat>"], vector[None])


def test_words_of_sdxl_are_a_list_of_one_for_each_text_encoder(tmp_path: Path) -> None:
    weights = {PATHS[key]: change + BASE.weights[key] for key, change in changes().items()}
    word = [torch.randn(768), torch.randn(1280)]
    found = formats.read(save(tmp_path / "delta.bin", {"unet": weights, "modifier_token": {"<cat>": word}}), BASE)
    assert torch.equal(found.delta.embeddings["<cat>"], torch.cat(word)[None])


@pytest.mark.parametrize("diffusers", [False, True])
def test_compressed_files_need_no_model(tmp_path: Path, diffusers: bool) -> None:
    u, v = torch.randn(8, 2), torch.randn(2, 6)
    names = [PATHS[KEY], PATHS[KEY].replace("attentions.0", "attentions.1")] if diffusers else [KEY]
    content = {"unet" if diffusers else "state_dict": {name: {"u": u, "v": v} for name in names}}
    found = formats.read(save(tmp_path / "compressed_delta.bin", content)).delta.entries[KEY]
    assert isinstance(found, Factors) and torch.allclose(found.dense(), u @ v)


def test_what_a_delta_has_no_place_for_is_listed(tmp_path: Path) -> None:
    content = {"unet": {PATHS[KEY]: torch.ones(8, 6), "conv_in.weight": torch.ones(2, 2), "x": 5}}
    assert formats.read(save(tmp_path / "delta.bin", content), BASE).dropped == ["conv_in.weight", "x"]


def test_full_weights_without_a_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--model"):
        formats.read(save(tmp_path / "delta.ckpt", {"state_dict": changes()}))


def test_a_model_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "delta.ckpt", {"state_dict": {KEY: torch.ones(8, 7)}})
    with pytest.raises(UserError, match=r"\(8, 7\) in the file, \(8, 6\) in the model"):
        formats.read(path, BASE)


@pytest.mark.parametrize("kind", ["adobe", "adobe-diffusers"])
@pytest.mark.parametrize("compressed", [False, True])
def test_what_is_written_is_read_again(tmp_path: Path, kind: str, compressed: bool) -> None:
    entries = changes()
    if compressed:
        entries = {key: Factors(torch.randn(len(m), 2), torch.randn(2, 6)) for key, m in entries.items()}
    delta = Delta(entries, {"<new1>": torch.randn(1, 6)}, Provenance("sd1"))
    ((name, content),) = formats.write(delta, kind, None if compressed else BASE).items()
    (tmp_path / name).write_bytes(content)
    read = formats.read(tmp_path / name, None if compressed and kind == "adobe" else BASE)
    assert read.dropped == []
    for key, entry in entries.items():
        found = read.delta.entries[key]
        assert isinstance(found, Factors) == compressed
        wanted, got = (entry.dense(), found.dense()) if compressed else (entry, found)
        assert torch.allclose(got, wanted, atol=1e-6)
    assert torch.equal(read.delta.embeddings["<new1>"], delta.embeddings["<new1>"])


@pytest.mark.parametrize(
    "paths",
    [
        ["down_blocks.0.attentions.0", "down_blocks.1.attentions.0"],  # one resnet a block
        ["down_blocks.0.attentions.0", "down_blocks.0.attentions.1", "up_blocks.1.attentions.1"],
        ["down_blocks.0.attentions.0", "down_blocks.0.attentions.1", "down_blocks.0.attentions.2"],  # three
    ],
)
def test_a_compressed_file_of_a_unet_of_another_layout_is_refused_without_a_model(
    tmp_path: Path, paths: list[str]
) -> None:
    factors = {"u": torch.randn(8, 2), "v": torch.randn(2, 6)}
    content = {"unet": {f"{path}.transformer_blocks.0.attn2.to_k.weight": factors for path in paths}}
    path = save(tmp_path / "compressed_delta.bin", content)
    with pytest.raises(UserError, match="give the model it was trained on by --model"):
        formats.read(path)
    assert formats.read(path, Base({}, {}, resnets=1)).delta.entries


@pytest.mark.parametrize("kind", ["adobe", "diffusers", "lora-diffusers"])
@pytest.mark.parametrize(
    ("architecture", "given"), [("crossattn-7x128", "--model toy$"), ("crossattn-7x1000", "--model$")]
)
def test_the_toy_is_named_where_it_is_the_model_that_is_missing(kind: str, architecture: str, given: str) -> None:
    delta = Delta(changes(), {}, Provenance(architecture))
    with pytest.raises(UserError, match=f"give the model it was trained on by {given}"):
        formats.write(delta, kind)


def test_the_written_file_is_laid_out_as_adobes_loader_expects(tmp_path: Path) -> None:
    """Its sample.py: st["state_dict"], names of LDM, "embed" reshaped to (-1, width); load_model: st["unet"]."""
    delta = Delta(changes(), {"<new1>": torch.randn(1, 6)}, Provenance("sd1"))
    (tmp_path / "a").write_bytes(formats.write(delta, "adobe", BASE)["delta.ckpt"])
    content = torch.load(tmp_path / "a", weights_only=True)
    assert set(content) == {"state_dict"} and set(content["state_dict"]) == {KEY, OTHER, "embed"}
    assert torch.allclose(content["state_dict"][KEY], changes()[KEY] + 2.0)
    (tmp_path / "b").write_bytes(formats.write(delta, "adobe-diffusers", BASE)["delta.bin"])
    content = torch.load(tmp_path / "b", weights_only=True)
    assert set(content["unet"]) == set(PATHS.values())
    assert content["modifier_token"]["<new1>"].shape == (6,)


def test_factors_are_written_as_they_are_though_a_model_is_at_hand(tmp_path: Path) -> None:
    factors = Factors(torch.randn(8, 2), torch.randn(2, 6))
    (tmp_path / "a").write_bytes(formats.write(Delta({KEY: factors}), "adobe", BASE)["delta.ckpt"])
    held = torch.load(tmp_path / "a", weights_only=True)["state_dict"][KEY]
    assert torch.equal(held["u"], factors.us) and torch.equal(held["v"], factors.vh)


def test_factors_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    content = {"state_dict": {KEY: {"u": torch.ones(8, 2), "v": torch.ones(3, 6)}}}
    with pytest.raises(UserError, match=r"do not fit: \(8, 2\) and \(3, 6\)"):
        formats.read(save(tmp_path / "delta.ckpt", content))


def test_diffusers_paths_are_counted_by_the_models_own_resnets(tmp_path: Path) -> None:
    """With one resnet a block there is a downsampler after each, so down block 1 is input block 3 and not 4."""
    key = KEY.replace("input_blocks.1.1", "input_blocks.3.1")
    base = Base({key: torch.zeros(8, 6)}, {}, resnets=1)
    content = {"unet": {PATHS[KEY].replace("down_blocks.0", "down_blocks.1"): torch.ones(8, 6)}}
    path = save(tmp_path / "delta.bin", content)
    assert torch.equal(formats.read(path, base).delta.entries[key], torch.ones(8, 6))
