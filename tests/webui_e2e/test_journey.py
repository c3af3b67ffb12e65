"""From nothing to pictures of a new word, in a real WebUI and a real browser; in the order in which a person goes."""

from __future__ import annotations

import re
import urllib.error
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from conftest import PROMPT, Page, WebUI


def test_a_word_is_created_and_trained(webui: WebUI, page: Page, pictures: Path, untouched: str) -> None:
    page.open_training()
    page.unfold("cd_new")
    page.fill("cd_new_name", "mywedge")
    page.fill("cd_new_text", "house")
    page.press("cd_new_create")
    page.wait_for("cd_new_told", "Created mywedge", 60)
    page.page.wait_for_function("() => document.querySelector('#cd_embedding_1 input').value === 'mywedge'")
    page.fill_form("mywedge", pictures, "wedge", 40)
    page.look("train-form")
    webui.post("/sdapi/v1/options", training_write_csv_every=10)
    page.press("cd_start")
    page.wait_for("ti_progress", "Time left", 300)
    page.wait_for("ti_progress", "20 of 40", 300)
    page.look("train-running")
    page.wait_for("cd_outcome", "Finished after 40 steps")
    assert page.page.locator("#ti_progress").first.inner_text().strip() == ""  # the outcome is in its place
    page.page.locator("#cd_outcome img[alt='the last preview']").wait_for()
    page.look("train-finished")
    delta = webui.data / "models" / "deltas" / "wedge.delta.safetensors"
    with safe_open(str(delta), framework="pt") as file:
        assert "embedding.mywedge" in file.keys()  # noqa: SIM118 - not a dict
        assert any(file.get_tensor(name).abs().sum() > 0 for name in file.keys() if name.endswith("to_v.weight"))  # noqa: SIM118
    log = Path(page.page.locator("#cd_outcome code").last.inner_text())
    header, *losses = (log / "textual_inversion_loss.csv").read_text().splitlines()
    assert header == "step,epoch,epoch_step,loss,learn_rate" and [row.split(",")[0] for row in losses] == [
        "10", "20", "30", "40"
    ]  # fmt: skip
    assert len(list((log / "images").iterdir())) == 2
    assert webui.picture(PROMPT)[0] == untouched
    page.page.locator("#txt2img_deltas_cards .card[data-name=wedge]").wait_for(state="attached")  # by itself
    page.press("cd_card")
    page.page.locator("#txt2img_deltas_cards .card[data-name=wedge]").wait_for()
    page.open_training()
    page.press("cd_send")
    page.page.wait_for_function("() => document.querySelector('#txt2img_width input').value === '128'")
    page.page.locator("#txt2img_width").wait_for()  # not behind the cards that were open
    assert page.value("txt2img_prompt") == "photo of a mywedge house <delta:wedge:1>"


def test_the_card_writes_the_tag_and_the_word(webui: WebUI, page: Page) -> None:
    page.tab("Deltas", "#txt2img_extra_tabs")
    card = page.page.locator("#txt2img_deltas_cards .card[data-name=wedge]")
    card.wait_for()
    page.look("cards")
    card.click()
    assert re.search(r"<delta:wedge:1> mywedge house", page.value("txt2img_prompt"))


def test_the_delta_acts_only_where_it_is_asked_for(webui: WebUI, untouched: str) -> None:
    with_delta, infotext = webui.picture(f"{PROMPT} <delta:wedge:1>")
    assert with_delta != untouched
    assert re.search(r"Delta hashes: \"wedge: [0-9a-f]{12}\"", infotext)
    assert webui.picture(f"{PROMPT} <delta:wedge:0.5>")[0] not in (with_delta, untouched)
    again, infotext = webui.picture(PROMPT)
    assert again == untouched and "Delta hashes" not in infotext


def test_a_delta_works_beside_a_lora_in_any_order(webui: WebUI, untouched: str) -> None:
    rank, tensors = 2, {}
    with safe_open(str(webui.data / "models/deltas/wedge.delta.safetensors"), framework="pt") as file:
        keys = [name for name in file.keys() if name.endswith("attn2.to_k.weight")]  # noqa: SIM118 - not a dict
        shapes = {name: file.get_slice(name).get_shape() for name in keys}
    for key, (rows, columns) in shapes.items():
        name = "lora_unet_" + key.removeprefix("model.diffusion_model.").removesuffix(".weight").replace(".", "_")
        tensors[f"{name}.lora_up.weight"] = torch.full((rows, rank), 0.2)
        tensors[f"{name}.lora_down.weight"] = torch.randn(rank, columns, generator=torch.Generator().manual_seed(1))
        tensors[f"{name}.alpha"] = torch.tensor(float(rank))
    save_file(tensors, webui.data / "models/Lora/other.safetensors")
    webui.post("/sdapi/v1/refresh-loras")
    lora = webui.picture(f"{PROMPT} <lora:other:1>")[0]
    delta = webui.picture(f"{PROMPT} <delta:wedge:1>")[0]
    both = webui.picture(f"{PROMPT} <lora:other:1> <delta:wedge:1>")[0]
    assert len({untouched, lora, delta, both}) == 4
    assert webui.picture(f"{PROMPT} <delta:wedge:1> <lora:other:1>")[0] == both
    assert webui.picture(f"{PROMPT} <lora:other:1>")[0] == lora
    assert webui.picture(PROMPT)[0] == untouched


def test_interrupt_saves_and_says_so_and_the_model_is_untouched(
    webui: WebUI, page: Page, pictures: Path, untouched: str
) -> None:
    page.fill_form("mywedge", pictures, "stopped", 5000)
    page.press("cd_start")
    page.wait_for("ti_progress", "of 5000", 300)
    page.press("cd_stop")
    page.wait_for("cd_outcome", "Interrupted and saved", 300)
    assert (webui.data / "models/deltas/stopped.delta.safetensors").is_file()
    assert webui.picture(PROMPT)[0] == untouched


def test_regularization_pictures_are_drawn(webui: WebUI, page: Page, tmp_path: Path) -> None:
    page.tab("Custom Diffusion Utils")
    page.fill("cd_reg_prompt", "a house")
    page.fill("cd_reg_count", 3)
    page.fill("cd_reg_folder", tmp_path / "houses")
    page.fill("cd_reg_steps", 4)
    page.press("cd_reg_draw")
    page.wait_for("cd_utils_outcome", "3 pictures drawn")
    page.look("regularization")
    drawn = sorted((tmp_path / "houses").glob("*.png"))
    assert [path.with_suffix(".txt").read_text() for path in drawn] == ["a house\n"] * 3
    assert Image.open(drawn[0]).size == (128, 128)


def test_a_delta_is_inspected_and_the_toy_installed(webui: WebUI, page: Page) -> None:
    page.tab("Custom Diffusion Utils")
    page.tab("Toy model", "#cd_utils_tabs")
    page.press("cd_toy")
    page.wait_for("cd_toy_told", "Installed", 60)
    assert (webui.data / "models/Stable-diffusion/custom-diffusion-toy.safetensors").is_file()
    page.page.wait_for_function(
        "() => document.querySelector('#setting_sd_model_checkpoint input').value.includes('custom-diffusion-toy')"
    )
    webui.post("/sdapi/v1/options", sd_model_checkpoint="toy.safetensors")  # as it was
    page.tab("Inspect", "#cd_utils_tabs")
    page.choose("cd_inspect_name", "wedge")
    page.press("cd_inspect")
    page.wait_for("cd_utils_outcome", "mywedge", 60)
    page.look("inspect")


def test_the_delta_follows_to_another_checkpoint_and_back(webui: WebUI, untouched: str) -> None:
    other = {"override_settings": {"sd_model_checkpoint": "custom-diffusion-toy.safetensors"}}
    with_delta = webui.picture(f"{PROMPT} <delta:wedge:1>")[0]
    assert webui.picture(f"{PROMPT} <delta:wedge:1>", **other)[0] == with_delta  # the same weights in another file
    assert webui.picture(PROMPT, **other)[0] == untouched
    assert webui.picture(f"{PROMPT} <delta:wedge:1>")[0] == with_delta
    assert webui.picture(PROMPT)[0] == untouched


def test_the_delta_follows_to_the_refiner(webui: WebUI) -> None:
    """The refiner here has the same weights, so the picture is the same exactly if the delta acts on it too."""
    prompt = "a mywedge house <delta:wedge:1>"
    first = {"override_settings": {"sd_model_checkpoint": "toy.safetensors"}}  # the page may have chosen the other
    refiner = {"refiner_checkpoint": "custom-diffusion-toy", "refiner_switch_at": 0.5}
    refined, infotext = webui.picture(prompt, **first, **refiner)
    assert "Refiner: custom-diffusion-toy" in infotext
    assert refined == webui.picture(prompt)[0]


def test_the_api_trains_and_refuses_with_a_sentence(webui: WebUI, pictures: Path, untouched: str) -> None:
    asked = {"name": "by api", "overwrite": True, "max_train_steps": 3, "train_batch_size": 1}
    done = webui.ask_to_train("mywedge", pictures, **asked)
    assert Path(done["delta"]) == webui.data / "models" / "deltas" / "by api.delta.safetensors"
    assert {each["name"] for each in webui.get("/sdapi/v1/deltas")} >= {"wedge", "by api"}
    with pytest.raises(urllib.error.HTTPError) as refused:
        webui.ask_to_train("nobody", pictures)
    assert refused.value.code == 422 and b"there is no embedding 'nobody'" in refused.value.read()
    assert webui.picture(PROMPT)[0] == untouched
