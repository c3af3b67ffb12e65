"""reForge instead of A1111's WebUI: WEBUI_DIR=path/to/reForge pytest tests/webui_e2e/test_reforge.py

SCREENSHOTS also gets the pictures that are drawn here.
"""

from __future__ import annotations

import json
import os
import urllib.error
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from conftest import PROMPT, TOY, Page, WebUI, difference, fingerprint, is_reforge
from lib_custom_diffusion import formats
from lib_custom_diffusion.delta import Delta

pytestmark = pytest.mark.skipif(not is_reforge(), reason="WEBUI_DIR is not reForge")

WORD = "<new1>"
ASKED = f"photo of a {WORD} cat"


@pytest.fixture(scope="module")
def delta() -> Delta:
    """A delta of random numbers for all layers that read text, and a word."""
    torch.manual_seed(0)
    weights = {name: value for name, value in load_file(TOY / "toy.safetensors").items() if ".attn2.to_" in name}
    entries = {
        name: torch.randn(value.shape) * value.float().std() / 3
        for name, value in weights.items()
        if name.endswith(("to_k.weight", "to_v.weight"))
    }
    made = Delta(entries, {WORD: torch.randn(1, 128) / 10})
    made.provenance.architecture = "toy"
    made.provenance.tokens = {WORD: "cat"}
    return made


@pytest.fixture(scope="module")
def converted(webui: WebUI, delta: Delta) -> dict[str, bytes]:
    """What `convert` makes. It and the delta lie where the program looks for them, its word not."""
    from lib_custom_diffusion.standalone import toy
    from lib_custom_diffusion.standalone.diffusers_backend import DiffusersBackend

    webui.delta("random").parent.mkdir(parents=True, exist_ok=True)
    delta.save(webui.delta("random"))
    base = formats.Base.of(DiffusersBackend(toy.load(), "toy").unet)
    written = formats.write(Delta.load(webui.delta("random")), "lora", base)
    (webui.data / "models/Lora/random.safetensors").write_bytes(written["lora.safetensors"])
    webui.post("/sdapi/v1/refresh-deltas")
    webui.post("/sdapi/v1/refresh-loras")
    return written


@pytest.fixture(scope="module")
def drawn(webui: WebUI, converted: dict[str, bytes]) -> dict[str, Image.Image]:
    """A picture by the end of each prompt, the one without anything drawn first and last."""
    ends = ["", "<delta:random:0.8>", "<delta:random:0.4>", "<delta:random:0>"]
    pictures = {end: webui.images(f"{ASKED} {end}".strip())[0][0] for end in ends}
    pictures["again"] = webui.images(ASKED)[0][0]
    pictures["other words"] = webui.images(f"{PROMPT} <delta:random:0.8>")[0][0]
    pictures["other words alone"] = webui.images(PROMPT)[0][0]
    folder = os.environ.get("SCREENSHOTS")
    for name, picture in pictures.items() if folder else ():
        picture.save(Path(folder or "") / f"reforge {name.strip('<>').replace(':', ' ') or 'plain'}.png")
    return pictures


def test_a_delta_acts_by_its_weight_and_leaves_no_trace(drawn: dict[str, Image.Image]) -> None:
    assert fingerprint(drawn["again"]) == fingerprint(drawn[""])
    assert difference(drawn["<delta:random:0.8>"], drawn[""])[1] > 3
    assert difference(drawn["<delta:random:0.8>"], drawn["<delta:random:0.4>"])[1] > 1


def test_its_word_is_known_only_with_it(drawn: dict[str, Image.Image]) -> None:
    """A weight of 0 takes the change of the layers away, not the word."""
    assert difference(drawn["<delta:random:0>"], drawn[""])[1] > 1


def test_the_lora_that_convert_makes_acts_as_the_delta(webui: WebUI, drawn: dict[str, Image.Image]) -> None:
    """Without a word: reForge reads words from their own file, so that it is written otherwise."""
    as_lora = webui.images(f"{PROMPT} <lora:random:0.8>")[0][0]
    assert difference(as_lora, drawn["other words"])[0] <= 2
    assert difference(as_lora, drawn["other words alone"])[1] > 3


def test_the_words_own_file_is_known_by_its_plain_name(
    webui: WebUI, drawn: dict[str, Image.Image], converted: dict[str, bytes]
) -> None:
    (webui.data / "embeddings" / "new1.pt").write_bytes(converted["new1.pt"])
    webui.post("/sdapi/v1/refresh-embeddings")
    plain = webui.images(ASKED.replace(WORD, "new1"))[0][0]
    assert difference(plain, drawn["<delta:random:0>"])[0] <= 2


def test_the_deltas_have_their_cards(page: Page, converted: dict[str, bytes]) -> None:
    page.tab("Deltas", "#txt2img_extra_tabs")
    card = page.page.locator("#txt2img_deltas_cards .card[data-name=random]")
    card.wait_for()
    page.look("reforge-cards")
    card.click()
    assert page.value("txt2img_prompt").split() == ["<delta:random:1>", WORD, "cat"]


def test_training_is_refused_in_one_sentence(webui: WebUI, pictures: Path) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        webui.ask_to_train("a", pictures, max_train_steps=1)
    assert refused.value.code == 422
    assert "Forge and reForge" in json.loads(refused.value.read())["detail"]
