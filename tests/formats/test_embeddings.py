"""Files with words alone: A1111, diffusers, SDXL."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib_custom_diffusion import formats
from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.errors import UserError


def test_a1111(tmp_path: Path) -> None:
    vectors = torch.randn(2, 6)
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "x"}, tmp_path / "pet.pt")
    assert torch.equal(formats.read(tmp_path / "pet.pt").delta.embeddings["<pet>"], vectors)


def test_diffusers_pickle_and_safetensors(tmp_path: Path) -> None:
    vector = torch.randn(6)
    torch.save({"<new1>": vector}, tmp_path / "a.bin")
    save_file({"<new1>": vector}, tmp_path / "b.bin")
    for name in ("a.bin", "b.bin"):
        assert torch.equal(formats.read(tmp_path / name).delta.embeddings["<new1>"], vector[None])


def test_sdxl(tmp_path: Path) -> None:
    left, right = torch.randn(2, 768), torch.randn(2, 1280)
    save_file({"clip_l": left, "clip_g": right}, tmp_path / "pet.safetensors")
    assert torch.equal(
        formats.read(tmp_path / "pet.safetensors").delta.embeddings["<pet>"], torch.cat([left, right], 1)
    )


@pytest.mark.parametrize(
    ("kind", "width"),
    [("embedding", 6), ("embedding-diffusers", 6), ("embedding-diffusers", 2048), ("embedding-sdxl", 2048)],
)
@pytest.mark.parametrize("count", [1, 3])
def test_what_is_written_is_read_again(tmp_path: Path, kind: str, width: int, count: int) -> None:
    delta = Delta({}, {"<new1>": torch.randn(count, width), "<new2>": torch.randn(1, width)})
    for name, content in formats.write(delta, kind).items():
        (tmp_path / name).write_bytes(content)
    found = [formats.read(path).delta.embeddings for path in sorted(tmp_path.iterdir())]
    assert [list(words) for words in found] == [["<new1>"], ["<new2>"]]
    assert torch.equal(found[0]["<new1>"], delta.embeddings["<new1>"])


def test_words_of_another_width_are_no_sdxl_words() -> None:
    with pytest.raises(UserError, match="SDXL's words are 2048"):
        formats.write(Delta({}, {"<new1>": torch.ones(1, 768)}), "embedding-sdxl")


def test_a_delta_without_words_has_none_to_write() -> None:
    with pytest.raises(UserError, match="no modifier token"):
        formats.write(Delta({}), "embedding")


def test_sdxl_words_are_split_where_its_two_text_encoders_meet(tmp_path: Path) -> None:
    vectors = torch.arange(2048.0)[None]
    (content,) = formats.write(Delta({}, {"<pet>": vectors}), "embedding-sdxl").values()
    (tmp_path / "a.safetensors").write_bytes(content)
    held = load_file(tmp_path / "a.safetensors")
    assert torch.equal(held["clip_l"], vectors[:, :768]) and torch.equal(held["clip_g"], vectors[:, 768:])


def test_words_whose_two_halves_differ_in_number_are_refused(tmp_path: Path) -> None:
    save_file({"clip_l": torch.ones(2, 768), "clip_g": torch.ones(1, 1280)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="clip_l has 2 vectors, clip_g 1"):
        formats.read(tmp_path / "a.safetensors")


@pytest.mark.parametrize("held", [{}, {"a": torch.ones(1, 6), "b": torch.ones(1, 6)}, torch.ones(1, 6)])
def test_a1111_files_of_no_or_several_tokens_are_refused(tmp_path: Path, held: object) -> None:
    torch.save({"string_to_param": held}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="vectors of one token"):
        formats.read(tmp_path / "a.pt")


def test_several_bare_vectors_are_no_word(tmp_path: Path) -> None:
    save_file({"a": torch.ones(6), "b": torch.ones(6)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"is 2 tensors \(a, b\)"):
        formats.read(tmp_path / "a.safetensors")


def test_files_are_named_by_the_token_without_what_no_file_system_takes() -> None:
    token = '<a/b\\c:"d"?>'
    assert list(formats.write(Delta({}, {token: torch.ones(1, 6)}), "embedding-diffusers")) == ["abcd.safetensors"]


def test_an_embedding_says_its_own_word_and_others_are_called_by_the_file(tmp_path: Path) -> None:
    torch.save({"<cat-toy>": torch.ones(8)}, tmp_path / "learned_embeds.bin")
    save_file({"emb_params": torch.ones(2, 8)}, tmp_path / "easy.safetensors")
    assert list(formats.read_words(tmp_path / "learned_embeds.bin")) == ["<cat-toy>"]
    assert list(formats.read_words(tmp_path / "easy.safetensors")) == ["<easy>"]


@pytest.mark.parametrize("name", ["clip_l", "text_encoders_0", "emp_params", "emb_params"])
def test_names_of_a_text_encoder_are_no_word(tmp_path: Path, name: str) -> None:
    """As diffusers' scripts for pivotal tuning and OneTrainer call a word's vectors."""
    save_file({name: torch.ones(2, 8), f"{name}_out": torch.ones(2, 8)}, tmp_path / "cat_emb.safetensors")
    found = formats.read(tmp_path / "cat_emb.safetensors")
    assert list(found.delta.embeddings) == ["<cat_emb>"] and found.dropped == [f"{name}_out"]


@pytest.mark.parametrize("names", [("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")])
def test_words_of_pivotal_tuning_for_sdxl(tmp_path: Path, names: tuple[str, str]) -> None:
    left, right = torch.randn(2, 768), torch.randn(2, 1280)
    save_file({names[0]: left, names[1]: right}, tmp_path / "cat_emb.safetensors")
    assert torch.equal(formats.read_words(tmp_path / "cat_emb.safetensors")["<cat_emb>"], torch.cat([left, right], 1))
    save_file({names[1]: right}, tmp_path / "half.safetensors")
    with pytest.raises(UserError, match="for the second of SDXL's text encoders alone; give the file with both"):
        formats.read(tmp_path / "half.safetensors")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("lora_unet_conv_norm_out.w_norm", r"changes of norms \(LyCORIS\)"),
        ("base_model.model.down_blocks.0.attentions.0.to_k.ia3_l", "an IA3, which .*"),
    ],
)
def test_the_only_tensor_of_a_layer_is_no_word(tmp_path: Path, name: str, what: str) -> None:
    save_file({name: torch.ones(2, 8)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=f"a.safetensors is {what}; read are"):
        formats.read(tmp_path / "a.safetensors")


def test_words_for_t5_are_called_what_they_are(tmp_path: Path) -> None:
    each = {"clip_l": torch.ones(1, 768), "clip_g": torch.ones(1, 1280), "t5": torch.ones(1, 4096)}
    save_file(each, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="is an embedding for Stable Diffusion 3, FLUX or another model with T5"):
        formats.read(tmp_path / "a.safetensors")


def test_words_of_the_original_textual_inversion_code_are_read(tmp_path: Path) -> None:
    vectors = torch.randn(2, 8)
    parameters = torch.nn.ParameterDict({"*": torch.nn.Parameter(vectors)})
    torch.save({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": parameters}, tmp_path / "cat.pt")
    assert torch.equal(formats.read_words(tmp_path / "cat.pt")["<cat>"], vectors)


def test_a_file_with_layers_is_no_file_of_words(tmp_path: Path) -> None:
    key = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    Delta({key: torch.ones(4, 8)}, {"<new1>": torch.ones(1, 8)}).save(tmp_path / "a.delta.safetensors")
    with pytest.raises(UserError, match="holds 1 layers, not only words"):
        formats.read_words(tmp_path / "a.delta.safetensors")
