"""reForge instead of A1111's WebUI: WEBUI_DIR=path/to/reForge pytest tests/webui_e2e/test_reforge.py

SCREENSHOTS also gets the pictures that are drawn here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageStat
from safetensors.torch import load_file

from conftest import PROMPT, TOY, Page, WebUI, difference, fingerprint, is_reforge
from lib_custom_diffusion import formats
from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.standalone import toy
from lib_custom_diffusion.standalone.diffusers_backend import DiffusersBackend
from lib_custom_diffusion.standalone.models import load_model
from lib_custom_diffusion.standalone.train import run_training
from lib_custom_diffusion.training.plan import TrainingPlan

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


def asked_of_a_training(pictures: Path) -> dict[str, object]:
    prompts = {"instance_prompt": "photo of a thing house", "class_prompt": "house"}
    return {
        "concepts": [{"instance_data_dir": str(pictures), **prompts}], "modifier_token": ["thing"], "seed": 3,
        "max_train_steps": 12, "train_batch_size": 1, "learning_rate": "1e-3", "gradient_checkpointing": True,
        "prior": "none",  # whose captions are the toy's own here, and there those of a model that brings none
    }  # fmt: skip


@pytest.fixture(scope="module")
def trained(webui: WebUI, pictures: Path, drawn: dict[str, Image.Image]) -> Delta:
    """What a training with previews learns, after pictures with LoRAs, one of them a preview."""
    word = {"name": "thing", "num_vectors_per_token": 1, "overwrite_old": True, "init_text": "house"}
    webui.post("/sdapi/v1/create/embedding", **word)
    webui.images(f"{PROMPT} <lora:random:0.8>")
    previews = {"validation_steps": 5, "validation_prompt": "a house <lora:random:1>"}
    done = webui.train("learned", pictures, **asked_of_a_training(pictures), **previews)
    assert (done["steps"], done["interrupted"]) == (12, False)
    steps = {path.stem.split("-")[1] for path in Path(done["log_directory"]).glob("images/*")}
    assert steps == {"5", "10", "12"}
    return Delta.load(webui.delta("learned"))


def test_a_training_learns_what_it_learns_in_diffusers(trained: Delta, pictures: Path, tmp_path: Path) -> None:
    backend = DiffusersBackend(toy.load(), "toy")
    plan = TrainingPlan.of({**asked_of_a_training(pictures), "initializer_token": ["house"]})
    learned = run_training(backend, plan, tmp_path).result.delta
    for key, entry in learned.entries.items():
        torch.testing.assert_close(trained.entries[key].float(), entry.float(), rtol=0.01, atol=1e-4)


def test_the_model_is_afterwards_as_it_was(webui: WebUI, trained: Delta, drawn: dict[str, Image.Image]) -> None:
    assert fingerprint(webui.images(PROMPT)[0][0]) == fingerprint(drawn["other words alone"])


def test_what_was_learned_acts(webui: WebUI, trained: Delta) -> None:
    with_it, without = (webui.images(f"photo of a thing house{end}")[0][0] for end in (" <delta:learned:1>", ""))
    assert difference(with_it, without)[1] > 1


def test_the_page_trains(webui: WebUI, trained: Delta, page: Page, pictures: Path) -> None:
    page.fill_form("thing", pictures, "pressed", 3)
    page.press("cd_start")
    page.wait_for("cd_outcome", "Finished after 3 steps")
    page.look("reforge-trained")
    assert Delta.load(webui.delta("pressed")).provenance.steps == 3


OF_XL = {"rank": 4, "resolution": 128}  # reForge takes every SDXL for one of 1024 pixels


@pytest.fixture(scope="module")
def toy_xl(webui: WebUI) -> Iterator[Image.Image]:
    """What the toy in SDXL's layout draws before anything was done with it; the other is chosen again afterwards."""
    before = fingerprint(webui.images(PROMPT)[0][0])
    webui.load_toy_xl()
    yield webui.images(PROMPT, steps=12)[0][0]
    webui.post("/sdapi/v1/options", sd_model_checkpoint="toy.safetensors")
    assert fingerprint(webui.images(PROMPT)[0][0]) == before


def test_sdxl_draws_what_the_command_line_draws(toy_xl: Image.Image) -> None:
    """The corner is red, as the prompt says, which a model that is read wrongly does not draw."""
    corner = ImageStat.Stat(toy_xl.crop((0, 0, 12, 12))).mean
    assert corner[0] > 2 * max(corner[1:])


@pytest.fixture(scope="module")
def trained_xl(webui: WebUI, toy_xl: Image.Image, pictures: Path) -> Delta:
    """What a training of the toy in SDXL's layout learns, its word first made of another's vectors."""
    webui.make_word_of_toy_xl("thing", like="house")
    done = webui.train("learned-xl", pictures, **asked_of_a_training(pictures), **OF_XL)
    assert (done["steps"], done["interrupted"]) == (12, False)
    return Delta.load(webui.delta("learned-xl"))


def test_sdxl_learns_what_it_learns_in_diffusers(trained_xl: Delta, pictures: Path, tmp_path: Path) -> None:
    plan = TrainingPlan.of({**asked_of_a_training(pictures), "initializer_token": ["house"], **OF_XL})
    learned = run_training(load_model("toy-xl"), plan, tmp_path).result.delta
    for key, entry in learned.entries.items():
        torch.testing.assert_close(trained_xl.entries[key].dense(), entry.dense(), rtol=0.01, atol=1e-4)
    [ours], [theirs] = learned.embeddings.values(), trained_xl.embeddings.values()
    torch.testing.assert_close(theirs.float(), ours, rtol=0.01, atol=1e-3)


def test_sdxl_is_afterwards_as_it_was_and_draws_with_what_it_learned(
    webui: WebUI, toy_xl: Image.Image, trained_xl: Delta
) -> None:
    assert fingerprint(webui.images(PROMPT, steps=12)[0][0]) == fingerprint(toy_xl)
    prompt = "photo of a thing house"
    strong, weak, without = (
        webui.images(f"{prompt}{end}")[0][0] for end in (" <delta:learned-xl:1>", " <delta:learned-xl:0.3>", "")
    )
    assert difference(strong, without)[1] > difference(weak, without)[1] > 0.1
    assert fingerprint(webui.images(PROMPT, steps=12)[0][0]) == fingerprint(toy_xl)
