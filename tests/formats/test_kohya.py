"""LoRA files: what is read, what is dropped, and that what is written serves the programs it is for."""

import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, load_file, save_file
from torch import Tensor

from lib_custom_diffusion import formats
from lib_custom_diffusion.delta import Delta, Factors, Provenance
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.formats.base import Base

KEY = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
NAME = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
SGM_NAME = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
UP, DOWN = torch.arange(8.0).reshape(4, 2), torch.arange(6.0).reshape(2, 3)


def read(path: Path, tensors: dict[str, Tensor]) -> formats.Imported:
    save_file(tensors, path)
    return formats.read(path)


@pytest.mark.parametrize("name", [NAME, SGM_NAME])
def test_pairs_are_scaled_by_alpha_over_rank(tmp_path: Path, name: str) -> None:
    tensors = {f"{name}.lora_up.weight": UP, f"{name}.lora_down.weight": DOWN, f"{name}.alpha": torch.tensor(1.0)}
    found = read(tmp_path / "a.safetensors", tensors)
    assert torch.equal(found.delta.entries[KEY].dense(), UP @ DOWN / 2)


def test_without_alpha_the_scale_is_one_and_convolution_shapes_are_matrices(tmp_path: Path) -> None:
    tensors = {f"{NAME}.lora_up.weight": UP[:, :, None, None], f"{NAME}.lora_down.weight": DOWN[:, :, None, None]}
    assert torch.equal(read(tmp_path / "a.safetensors", tensors).delta.entries[KEY].dense(), UP @ DOWN)


def test_full_differences_and_bundled_words(tmp_path: Path) -> None:
    tensors = {f"{NAME}.diff": torch.ones(4, 3), "bundle_emb.pet.string_to_param.*": torch.ones(2, 3)}
    found = read(tmp_path / "a.safetensors", tensors).delta
    assert torch.equal(found.entries[KEY], torch.ones(4, 3))
    assert torch.equal(found.embeddings["pet"], torch.ones(2, 3))


def test_words_as_onetrainer_bundles_them(tmp_path: Path) -> None:
    """For the one text encoder of Stable Diffusion 1 by its name, and with what encoders give out, which is dropped."""
    layer = {f"{NAME}.lora_up.weight": UP, f"{NAME}.lora_down.weight": DOWN}
    word = {"bundle_emb.my.pet.clip_l": torch.ones(2, 3), "bundle_emb.my.pet.clip_l_out": torch.ones(2, 3)}
    found = read(tmp_path / "a.safetensors", layer | word)
    assert torch.equal(found.delta.embeddings["my.pet"], torch.ones(2, 3))
    assert found.dropped == ["bundle_emb.my.pet.clip_l_out"]


def test_what_is_not_cross_attention_is_listed(tmp_path: Path) -> None:
    other = NAME.replace("attn2", "attn1")
    tensors = {
        f"{NAME}.lora_up.weight": UP, f"{NAME}.lora_down.weight": DOWN, f"{other}.lora_up.weight": UP.clone(),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha": torch.tensor(1.0),
    }  # fmt: skip
    found = read(tmp_path / "a.safetensors", tensors)
    assert set(found.dropped) == {f"{other}.lora_up.weight", "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha"}
    assert list(found.delta.entries) == [KEY]


@pytest.mark.parametrize("part", ["oft_blocks", "lora_mid.weight", "diff_b"])
def test_half_a_layer_is_not_read(tmp_path: Path, part: str) -> None:
    tensors = {f"{NAME}.lora_up.weight": UP, f"{NAME}.lora_down.weight": DOWN, f"{NAME}.{part}": torch.ones(1, 3)}
    with pytest.raises(UserError, match=f"has a part {part}, which a delta cannot hold"):
        read(tmp_path / "a.safetensors", tensors)


@pytest.mark.parametrize(
    "tensors",
    [
        {f"{NAME}.lora_up.weight": UP, f"{NAME}.lora_down.weight": torch.ones(3, 3)},
        {f"{NAME}.lora_up.weight": UP},
        {f"{NAME}.lora_up.weight": UP, f"{NAME}.lora_down.weight": torch.ones(2)},
        {f"{NAME}.lora_up.weight": UP, f"{NAME}.lora_down.weight": DOWN, f"{NAME}.alpha": torch.ones(2)},
    ],
)
def test_pairs_that_do_not_fit_are_refused(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    with pytest.raises(UserError, match=re.escape(KEY)):
        read(tmp_path / "a.safetensors", tensors)


def written(tmp_path: Path, architecture: str, words: bool) -> tuple[Delta, Path]:
    vectors = {"<new1>": torch.randn(2, 2048 if architecture == "sdxl" else 3)} if words else {}
    delta = Delta({KEY: Factors(UP, DOWN)}, vectors, Provenance(architecture))
    path = tmp_path / "a.safetensors"
    path.write_bytes(formats.write(delta, "lora")["lora.safetensors"])
    return delta, path


@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize("architecture", ["sd1", "sd2", "sdxl"])
def test_what_is_written_is_read_again(tmp_path: Path, architecture: str, words: bool) -> None:
    delta, path = written(tmp_path, architecture, words)
    found = formats.read(path)
    assert found.dropped == []
    assert torch.equal(found.delta.entries[KEY].dense(), UP @ DOWN)
    assert [v.tolist() for v in found.delta.embeddings.values()] == [v.tolist() for v in delta.embeddings.values()]


def test_the_webui_finds_all_it_needs(tmp_path: Path) -> None:
    """The rules of extensions-builtin/Lora/networks.py (v1.10.1): what is before the first dot is the layer;
    "bundle_emb" is followed by the word, and then by string_to_param."""
    _, path = written(tmp_path, "sd1", True)
    layers: dict[str, set[str]] = {}
    words = {}
    for name, tensor in load_file(path).items():
        layer, _, part = name.partition(".")
        if layer == "bundle_emb":
            word, rest = part.split(".", 1)
            assert rest.split(".")[0] == "string_to_param"
            words[word] = tensor
        layers.setdefault(layer, set()).add(part)
    assert layers[NAME] == {"lora_up.weight", "lora_down.weight", "alpha"}
    assert words["<new1>"].shape == (2, 3)


def test_sdxl_has_the_names_of_its_own_layout(tmp_path: Path) -> None:
    _, path = written(tmp_path, "sdxl", True)
    layer = {f"{SGM_NAME}.{part}" for part in ("lora_up.weight", "lora_down.weight", "alpha")}
    assert set(load_file(path)) == layer | {"bundle_emb.<new1>.clip_l", "bundle_emb.<new1>.clip_g"}


def test_the_toy_of_sdxls_layout_has_its_names_and_words_for_both_of_its_text_encoders() -> None:
    toy_xl = Provenance(architecture="crossattn-14x256")
    delta = Delta({KEY: Factors(UP, DOWN)}, {"<new1>": torch.arange(256.0)[None]}, toy_xl)
    base = formats.Base({KEY: UP @ DOWN}, {}, resnets=2)
    files = formats.write(delta, "lora", base)
    held, word = load(files["lora.safetensors"]), load(files["new1.safetensors"])
    assert f"{SGM_NAME}.alpha" in held and word["clip_g"].tolist() == [list(range(128, 256))]
    assert held["bundle_emb.<new1>.clip_l"].tolist() == [list(range(128))]
    with pytest.raises(UserError, match=r"--model toy-xl$"):
        formats.write(delta, "lora")


@pytest.mark.parametrize("name", [NAME, SGM_NAME])
def test_what_another_program_made_for_sdxl_is_written_for_sdxl(tmp_path: Path, name: str) -> None:
    """Nothing in it says so but that its layers read 2048 numbers."""
    made = {f"{name}.lora_up.weight": torch.ones(4, 2), f"{name}.lora_down.weight": torch.ones(2, 2048)}
    delta = read(tmp_path / "a.safetensors", made).delta
    delta.embeddings["<new1>"] = torch.ones(1, 2048)
    files = formats.write(delta, "lora")
    assert set(files) == {"lora.safetensors", "new1.safetensors"}
    assert f"{SGM_NAME}.lora_up.weight" in load(files["lora.safetensors"])
    assert {each: tensor.shape for each, tensor in load(files["new1.safetensors"]).items()} == {
        "clip_l": (1, 768), "clip_g": (1, 1280),
    }  # fmt: skip
    assert read(tmp_path / "b", {f"{NAME}.lora_up.weight": UP, f"{NAME}.lora_down.weight": DOWN}).delta.provenance == (
        Provenance()
    )


def test_diffusers_is_given_words_of_sdxl_for_each_text_encoder(tmp_path: Path) -> None:
    delta = Delta({KEY: Factors(UP, DOWN)}, {"<new1>": torch.ones(1, 2048)}, Provenance(architecture="sdxl"))
    assert set(load(formats.write(delta, "lora-diffusers")["new1.safetensors"])) == {"clip_l", "clip_g"}
    first, line = formats.how_to_use(delta, "lora-diffusers", "cat.safetensors")
    assert first == 'diffusers: pipeline.load_lora_weights(FOLDER, weight_name="cat.safetensors")'
    assert 'load_textual_inversion(words["clip_g"], token="<new1>", text_encoder=pipeline.text_encoder_2' in line
    for kind in ("embedding", "embedding-diffusers"):
        with pytest.raises(UserError, match="convert --to embedding-sdxl"):
            formats.write(delta, kind)


def test_dense_layers_are_full_differences_which_diffusers_does_not_read(tmp_path: Path) -> None:
    delta = Delta({KEY: UP @ DOWN})
    (tmp_path / "a").write_bytes(formats.write(delta, "lora")["lora.safetensors"])
    assert list(load_file(tmp_path / "a")) == [f"{NAME}.diff"]
    assert torch.equal(formats.read(tmp_path / "a").delta.entries[KEY], UP @ DOWN)
    with pytest.raises(UserError, match="cannot read full differences"):
        formats.write(delta, "lora-diffusers")


def test_an_unknown_architecture_needs_the_model() -> None:
    with pytest.raises(UserError, match="--model"):
        formats.write(Delta({KEY: Factors(UP, DOWN)}, {}, Provenance("crossattn-7x128")), "lora")


def test_layers_of_a_model_of_another_layout_go_by_the_names_of_ldm_and_of_diffusers(tmp_path: Path) -> None:
    """kohya's names of SD 1 count two resnets a block; where there is one, only LDM's own names are unmistakable."""
    base = Base({KEY: torch.ones(4, 3)}, {}, resnets=1)
    path = tmp_path / "a.safetensors"
    path.write_bytes(formats.write(Delta({KEY: Factors(UP, DOWN)}), "lora", base)["lora.safetensors"])
    layers = {name.removesuffix(".alpha") for name in load_file(path) if name.endswith(".alpha")}
    assert layers == {SGM_NAME}
    assert torch.equal(formats.read(path, base).delta.entries[KEY].dense(), UP @ DOWN)


def of_one_resnet(tmp_path: Path) -> tuple[Base, Path]:
    """A written LoRA with a word, of a model with one resnet a block, and that model."""
    places = ("input_blocks.1", "input_blocks.3", "middle_block", "output_blocks.2", "output_blocks.3")
    keys = [f"model.diffusion_model.{place}.1.transformer_blocks.0.attn2.to_k.weight" for place in places]
    base = Base({key: torch.ones(4, 3) for key in keys}, {}, resnets=1)
    delta = Delta({key: Factors(UP + n, DOWN) for n, key in enumerate(keys)}, {"pet": torch.ones(1, 3)})
    path = tmp_path / "one.safetensors"
    (tmp_path / "kohya").write_bytes(formats.write(delta, "lora", base)["lora.safetensors"])
    (tmp_path / "diffusers").write_bytes(
        formats.write(delta, "lora-diffusers", base)["pytorch_lora_weights.safetensors"]
    )
    save_file({**load_file(tmp_path / "kohya"), **load_file(tmp_path / "diffusers")}, path)  # as older files had it
    return base, path


def test_our_own_file_of_another_layout_has_each_layer_once_with_and_without_the_model(tmp_path: Path) -> None:
    base, path = of_one_resnet(tmp_path)
    for found in (formats.read(path), formats.read(path, base)):
        assert set(found.delta.entries) == set(base.weights) and found.dropped == []
        for number, key in enumerate(base.weights):
            assert torch.equal(found.delta.entries[key].dense(), (UP + number) @ DOWN)


@pytest.mark.parametrize("form", ["unet.{}.lora_B.weight", "lora_unet_{}.lora_up.weight"])
def test_a_lora_that_names_a_model_of_another_layout_is_refused_without_it(tmp_path: Path, form: str) -> None:
    base, path = of_one_resnet(tmp_path)
    tensors = {}
    for name, value in load_file(path).items():
        if name.startswith("unet."):
            place = name.removeprefix("unet.").rpartition(".lora_")[0]
            up = form.format(place if form.startswith("unet") else place.replace(".", "_"))
            down = up.replace("lora_up", "lora_down").replace("lora_B", "lora_A")
            tensors[up if "lora_B" in name else down] = value
    bare = tmp_path / "bare.safetensors"
    with pytest.raises(UserError, match="give the model it was trained on by --model"):
        read(bare, tensors)
    assert set(formats.read(bare, base).delta.entries) == set(base.weights)


@pytest.mark.parametrize(
    "places",
    [
        ["down_blocks_1_attentions_0"],
        ["mid_block_attentions_0"],
        ["down_blocks_1_attentions_0", "up_blocks_1_attentions_2"],
        ["down_blocks_1_attentions_0", "up_blocks_1_attentions_0"],
    ],
)
def test_a_lora_of_some_layers_of_stable_diffusion_needs_no_model(tmp_path: Path, places: list[str]) -> None:
    tensors = {f"lora_unet_{place}_transformer_blocks_0_attn2_to_k.diff": torch.ones(4, 3) for place in places}
    assert len(read(tmp_path / "a.safetensors", tensors).delta.entries) == len(places)


def test_values_too_large_for_float16_are_not_written() -> None:
    with pytest.raises(UserError, match="not finite as float16"):
        formats.write(Delta({KEY: Factors(UP * 1e5, DOWN)}), "lora")


def test_a_word_that_the_webui_would_cut_short_is_refused() -> None:
    with pytest.raises(UserError, match=r"rename v1\.5"):
        formats.write(Delta({KEY: Factors(UP, DOWN)}, {"v1.5": torch.ones(1, 3)}), "lora")


def test_the_metadata_says_the_greatest_rank(tmp_path: Path) -> None:
    other = KEY.replace("to_k", "to_v")
    delta = Delta({KEY: Factors(UP, DOWN), other: Factors(torch.ones(4, 1), torch.ones(1, 3))})
    path = tmp_path / "a.safetensors"
    path.write_bytes(formats.write(delta, "lora")["lora.safetensors"])
    with safe_open(str(path), "pt") as file:
        metadata = file.metadata()
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("2", "2")


def foreign(path: Path, kohya: set[str]) -> list[str]:
    """What a program that knows kohya's names, and parts of layers by the first dot, makes nothing of."""
    return [name for name in load_file(path) if name.partition(".")[0] not in kohya]


@pytest.mark.parametrize("architecture", ["sd1", "sdxl"])
def test_all_names_are_kohyas_but_those_of_a_few_words(tmp_path: Path, architecture: str) -> None:
    """Kohya's trainer calls a layer by its path in diffusers' UNet, or in LDM's for SDXL, with underscores; Forge
    drops a file with more than 12 names beyond those, and InvokeAI takes a name to its first dot for a layer."""
    _, path = written(tmp_path, architecture, True)
    kohya = NAME if architecture == "sd1" else SGM_NAME
    rest = foreign(path, {kohya})
    assert len(rest) <= 12 and all(name.startswith("bundle_emb.<new1>.") for name in rest)
    assert {name.partition(".")[2] for name in load_file(path)} - {name.partition(".")[2] for name in rest} == {
        "lora_up.weight", "lora_down.weight", "alpha"
    }  # fmt: skip


def test_more_words_than_forge_tolerates_are_refused() -> None:
    words = {f"<w{number}>": torch.ones(1, 3) for number in range(13)}
    formats.write(Delta({KEY: Factors(UP, DOWN)}, dict(list(words.items())[:12])), "lora")
    with pytest.raises(UserError, match="Forge would reject"):
        formats.write(Delta({KEY: Factors(UP, DOWN)}, words), "lora")


def test_words_lie_beside_the_lora_by_names_that_any_system_takes(tmp_path: Path) -> None:
    delta = Delta({KEY: Factors(UP, DOWN)}, {"<new1>": torch.ones(1, 3), "<con>": torch.ones(2, 3)})
    files = formats.write(delta, "lora")
    assert list(files) == ["lora.safetensors", "new1.pt", "_con.pt"]
    (tmp_path / "new1.pt").write_bytes(files["new1.pt"])
    assert torch.equal(formats.read_words(tmp_path / "new1.pt")["<new1>"], torch.ones(1, 3))
    told = formats.how_to_use(delta, "lora", "my cat.safetensors")
    assert told == [
        "AUTOMATIC1111, SD.Next: copy my cat.safetensors into models/Lora and write <lora:my cat:1> <new1> <con>;"
        " the LoRA includes its words",
        "ComfyUI: copy my cat.safetensors into models/loras and new1.pt, _con.pt into models/embeddings and write"
        " embedding:new1 embedding:_con",
        "reForge, Forge: copy my cat.safetensors into models/Lora and new1.pt, _con.pt into embeddings and write"
        " <lora:my cat:1> new1 _con",
        "stable-diffusion.cpp: copy my cat.safetensors into the folder of --lora-model-dir and new1.pt, _con.pt into"
        " the folder of --embd-dir and write <lora:my cat:1> new1 _con",
    ]
    told = formats.how_to_use(Delta({KEY: Factors(UP, DOWN)}), "lora", "cat.safetensors")
    assert told[:2] == [
        "AUTOMATIC1111, SD.Next: copy cat.safetensors into models/Lora and write <lora:cat:1>",
        "ComfyUI: copy cat.safetensors into models/loras",
    ]
    with pytest.raises(UserError, match="would be saved as the same file"):
        formats.write(Delta({KEY: Factors(UP, DOWN)}, {"<a>": torch.ones(1, 3), "<A>": torch.ones(1, 3)}), "lora")


def test_of_programs_only_those_that_read_words_of_sdxl_are_told_for_it() -> None:
    delta = Delta({KEY: Factors(UP, DOWN)}, {"<new1>": torch.ones(1, 2048)}, Provenance("sdxl"))
    told = "\n".join(formats.how_to_use(delta, "lora", "my cat.safetensors"))
    assert "and new1.safetensors into models/embeddings" in told and "stable-diffusion.cpp" not in told
