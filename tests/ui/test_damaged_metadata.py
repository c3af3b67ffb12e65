"""Metadata that cannot be meant makes that file damaged, and costs no memory."""

from pathlib import Path

import pytest
import torch

from lib_custom_diffusion.algebra.factors import Factors
from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.storage import safetensors_bytes
from lib_custom_diffusion.ui.inspection import summarize


@pytest.mark.parametrize(
    "stated",
    [
        '{"steps": Infinity}',
        '{"steps": 1e999}',
        "[" * 100000,
        '{"architecture": "\\udcff"}',
        "null",
        "5",
        '"abc"',
        '{"tokens": {"<new1>": 3}}',
        '{"tokens": {"<new1>": null}}',
        '{"tokens": {"<new1>": ["cat"]}}',
        '{"tokens": {"<new1>": "\\u001b[2J"}}',
        '{"tokens": {"<new1>": "' + "cat " * 9999 + '"}}',
        '{"architecture": "\\u001b]0;title\\u0007"}',
        '{"checkpoint": "\\u009b31m"}',
    ],
)
def test_damaged_metadata_is_a_damaged_file(tmp_path: Path, stated: str) -> None:
    path = tmp_path / "a.delta.safetensors"
    path.write_bytes(safetensors_bytes({}, {"json": '{"entries": {}}', "custom_diffusion": stated}))
    for read in (summarize, Delta.load):
        with pytest.raises(UserError, match=r"damaged|no entries|without content"):
            read(path)


def test_a_norm_is_that_of_the_matrix() -> None:
    us, vh = torch.tensor([[3.0], [4.0]]), torch.tensor([[1.0, 2.0, 2.0]])
    assert Factors(us, vh).norm() == pytest.approx(5 * 3)


def test_settings_too_deep_to_be_written_again_make_a_damaged_file(tmp_path: Path) -> None:
    settings = '{"a":' * 400 + "1" + "}" * 400
    stated = {"json": '{"entries": {}}', "custom_diffusion": f'{{"settings": {settings}}}'}
    (tmp_path / "a").write_bytes(safetensors_bytes({}, stated))
    with pytest.raises(UserError, match="damaged"):
        Delta.load(tmp_path / "a")
