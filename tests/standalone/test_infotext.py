"""A picture says how it was made as the WebUI's pictures do, and is understood whoever made it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from lib_custom_diffusion.backend import Sampling
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.standalone.infotext import Parameters, infotext, parse_infotext, read_parameters

OF_THE_WEBUI = """a thing house <delta:thing:0.8>,
on a red background
Negative prompt: dog, blurry: much
ugly
Steps: 4, Sampler: Euler a, Schedule type: Automatic, CFG scale: 4.5, Seed: 7, Size: 128x96, Model hash: 830fc17dec, \
Model: toy, Delta hashes: "thing: 0123456789ab, Seed: 99", Version: v1.10.1"""


def test_what_the_webui_writes_is_understood() -> None:
    prompt, negative = "a thing house <delta:thing:0.8>,\non a red background", "dog, blurry: much\nugly"
    assert parse_infotext(OF_THE_WEBUI) == Parameters(prompt, negative, 4, 4.5, 7, (128, 96))


def test_what_is_written_has_the_webuis_words_and_is_read_back() -> None:
    text = infotext("a cat <delta:cat:1>", Sampling(25, 6.0, "a dog"), 2**32, (64, 128), "my, model", "0123456789")
    assert text.splitlines() == [
        "a cat <delta:cat:1>",
        "Negative prompt: a dog",
        "Steps: 25, Sampler: DPM++ 2M, CFG scale: 6, Seed: 4294967296, Size: 64x128, Model hash: 0123456789,"
        ' Model: "my, model"',
    ]  # fmt: skip
    assert parse_infotext(text) == Parameters("a cat <delta:cat:1>", "a dog", 25, 6.0, 2**32, (64, 128))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("only a prompt", Parameters("only a prompt")),
        ("Steps: many, Seed: -1, CFG scale: nan, Size: x", Parameters("")),
        (f"a\nSteps: {'9' * 400}, Size: {'9' * 400}x8", Parameters("a")),
        ("", Parameters("")),
    ],
)
def test_what_is_not_said_is_left_out(text: str, said: Parameters) -> None:
    assert parse_infotext(text) == said


def test_a_picture_is_read_and_one_that_says_nothing_is_refused_in_a_sentence(tmp_path: Path) -> None:
    said = PngImagePlugin.PngInfo()
    said.add_text("parameters", OF_THE_WEBUI)
    Image.new("RGB", (8, 8)).save(tmp_path / "made.png", pnginfo=said)
    assert read_parameters(tmp_path / "made.png").seed == 7
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    (tmp_path / "none.png").write_bytes(b"nothing of the kind")
    for name, sentence in (("photo.png", "does not say how it was made"), ("none.png", "is not a picture")):
        with pytest.raises(UserError, match=f"{name} {sentence}"):
            read_parameters(tmp_path / name)
