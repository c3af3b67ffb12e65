"""Files with words alone: A1111, diffusers, SDXL."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

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
