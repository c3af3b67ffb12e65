"""Metadata that cannot be meant makes that file damaged, and costs no memory."""

from pathlib import Path

import pytest
import torch

from lib_custom_diffusion.algebra.factors import Factors
from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.storage import safetensors_bytes
from lib_custom_diffusion.tokens import load_embedding
from lib_custom_diffusion.ui.inspection import summarize


@pytest.mark.parametrize(
    "stated", ['{"steps": Infinity}', '{"steps": 1e999}', "[" * 100000, '{"architecture": "\\udcff"}', "null", "5"]
)
def test_damaged_metadata_is_a_damaged_file(tmp_path: Path, stated: str) -> None:
    path = tmp_path / "a.delta.safetensors"
    path.write_bytes(safetensors_bytes({}, {"json": '{"entries": {}}', "custom_diffusion": stated}))
    for read in (summarize, Delta.load):
        with pytest.raises(UserError, match="damaged"):
            read(path)


def test_a_norm_is_that_of_the_matrix() -> None:
    us, vh = torch.tensor([[3.0], [4.0]]), torch.tensor([[1.0, 2.0, 2.0]])
    assert Factors(us, vh).norm() == pytest.approx(5 * 3)


def test_an_embedding_says_its_own_word(tmp_path: Path) -> None:
    torch.save({"<cat-toy>": torch.ones(8)}, tmp_path / "learned_embeds.bin")
    token, vectors = load_embedding(tmp_path / "learned_embeds.bin")
    assert token == "<cat-toy>" and vectors.shape == (1, 8)


def test_an_embedding_of_one_number_repeated_is_refused(tmp_path: Path) -> None:
    torch.save({"<a>": torch.ones(1).expand(1 << 20, 1 << 20)}, tmp_path / "a.bin")
    with pytest.raises(UserError, match="more than there are"):
        load_embedding(tmp_path / "a.bin")
