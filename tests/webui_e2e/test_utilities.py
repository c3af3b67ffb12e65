"""Every section of "Custom Diffusion Utils" once, in a real WebUI; what it says it wrote is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from conftest import TOY, Page, WebUI
from lib_custom_diffusion.delta import Delta, Provenance


@pytest.fixture(scope="module")
def deltas(webui: WebUI) -> Path:
    """The WebUI's folder of deltas, with `cup` and `pot`, each with a word of its own."""
    layers = {name: weight for name, weight in load_file(TOY / "toy.safetensors").items() if ".attn2.to_" in name}
    words = load_file(TOY / "toy.safetensors")[
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    ]
    for seed, (name, word) in enumerate((("cup", "<cup1>"), ("pot", "<pot1>"))):
        generator = torch.Generator().manual_seed(seed)
        entries = {
            key: 0.05 * torch.randn(weight.shape, generator=generator)
            for key, weight in layers.items()
            if key.endswith(("to_k.weight", "to_v.weight"))
        }
        vectors = words.std() * torch.randn(1, words.shape[1], generator=generator)
        Delta(entries, {word: vectors}, Provenance(tokens={word: "cup"})).save(webui.delta(name))
    return webui.delta("cup").parent


@pytest.fixture
def utilities(deltas: Path, page: Page) -> Page:
    page.tab("Custom Diffusion Utils")
    return page


def section(page: Page, name: str) -> None:
    page.tab(name, "#cd_utils_tabs")


def choose_deltas(page: Page, part: str, *names: str) -> None:
    page.press(f"{part.rpartition('_')[0]}_refresh")
    page.page.wait_for_timeout(1500)
    for name in names:
        page.choose(part, name)


def test_a_delta_is_compressed_and_its_card_shown(webui: WebUI, utilities: Page) -> None:
    page = utilities
    section(page, "Compress")
    choose_deltas(page, "cd_compress_name", "cup")
    page.fill("cd_compress_size", 0.1)
    page.press("cd_compress")
    told = page.wait_for("cd_utils_outcome", "Differs from the original by")
    page.look("utils-compress")
    assert "on captions kept for measuring" in told and "times" in told
    assert webui.delta("cup-small").stat().st_size <= 100_000
    assert "<cup1>" in Delta.load(webui.delta("cup-small")).embeddings
    page.press("cd_utils_open")
    page.page.wait_for_function(
        "() => { const seen = [...document.querySelectorAll('#txt2img_deltas_cards .card:not(.hidden)')];"
        " return seen.length === 1 && seen[0].dataset.name === 'cup-small' && seen[0].offsetParent !== null }"
    )
    page.look("utils-card")


def test_deltas_are_blended_and_merged(webui: WebUI, utilities: Page) -> None:
    page = utilities
    section(page, "Blend")
    choose_deltas(page, "cd_blend_names", "cup", "pot")
    page.fill("cd_blend_weights", "0.5, 2")
    page.fill("cd_blend_result", "../blended")
    page.press("cd_blend")
    page.wait_for("cd_utils_outcome", "the sum is exact")
    cup, pot, blended = (Delta.load(webui.delta(name)) for name in ("cup", "pot", "blended"))
    for key, entry in blended.entries.items():
        expected = 0.5 * cup.entries[key].float() + 2 * pot.entries[key].float()
        assert (entry.float() - expected).abs().max() < 1e-3
    page.press("cd_blend")
    page.wait_for("cd_utils_outcome", "There is a file blended.delta.safetensors already")
    section(page, "Merge")
    choose_deltas(page, "cd_merge_names", "cup", "pot")
    page.fill("cd_merge_result", "merged")
    page.press("cd_merge")
    page.wait_for("cd_utils_outcome", "kept well")  # these two are random and are not
    page.page.locator("#cd_utils_outcome summary").click()
    told = page.wait_for("cd_utils_outcome", "off on the words")
    page.look("utils-merge")
    assert "as much as a blend of the deltas changes them" in told
    merged = Delta.load(webui.delta("merged"))
    assert set(merged.embeddings) == {"<cup1>", "<pot1>"}
    assert set(merged.entries) == set(cup.entries)
    assert float(re.search(r"([0-9.]+)% off on the words", told).group(1)) < 1


def test_a_delta_is_converted_to_a_lora_and_back_from_an_upload(webui: WebUI, deltas: Path, utilities: Page) -> None:
    page = utilities
    section(page, "Convert")
    choose_deltas(page, "cd_convert_names", "cup.delta.safetensors")
    page.press("cd_convert")
    page.wait_for("cd_utils_outcome", "cup.safetensors")
    lora = webui.data / "models" / "Lora" / "cup.safetensors"
    assert any(name.endswith(".alpha") for name in load_file(lora))
    page.page.reload()
    page.page.wait_for_selector("#txt2img_prompt textarea")
    page.tab("Custom Diffusion Utils")
    section(page, "Convert")
    page.page.locator("#cd_convert_uploads input[type=file]").set_input_files(str(lora))
    page.page.locator("#cd_convert_uploads", has_text="cup.safetensors").wait_for()
    page.choose("cd_convert_kind", "delta")
    page.fill("cd_convert_result", "back")
    page.press("cd_convert")
    page.wait_for("cd_utils_outcome", "back.delta.safetensors")
    page.look("utils-convert")
    cup, back = Delta.load(webui.delta("cup")), Delta.load(webui.delta("back"))
    assert set(back.entries) == set(cup.entries) and "<cup1>" in back.embeddings


def test_pictures_of_the_hosts_template_are_drawn_and_picked_from(utilities: Page, tmp_path: Path) -> None:
    page = utilities
    page.page.locator("#cd_reg_source label", has_text="a template").click()
    page.choose("cd_reg_template", "subject.txt")
    drawn, picked = tmp_path / "drawn", tmp_path / "picked"
    for part, value in {
        "cd_reg_prompt": "house", "cd_reg_count": 4, "cd_reg_steps": 2, "cd_reg_size": 64, "cd_reg_folder": drawn
    }.items():  # fmt: skip
        page.fill(part, value)
    page.press("cd_reg_draw")
    page.wait_for("cd_utils_outcome", "4 pictures drawn")
    page.look("utils-template")
    captions = [path.with_suffix(".txt").read_text() for path in sorted(drawn.glob("*.png"))]
    assert len(captions) == 4 and all("house" in caption and "[" not in caption for caption in captions)
    assert {Image.open(path).size for path in drawn.glob("*.png")} == {(64, 64)}
    section(page, "Pick")
    for part, value in {
        "cd_pick_source": drawn, "cd_pick_prompt": captions[2].strip(), "cd_pick_count": 1, "cd_pick_target": picked
    }.items():  # fmt: skip
        page.fill(part, value)
    page.press("cd_pick")
    page.wait_for("cd_utils_outcome", "1 picture listed")
    assert (picked / "caption.txt").read_text() == captions[2]


def test_drawing_is_interrupted_and_gone_on_with(utilities: Page, tmp_path: Path) -> None:
    page, folder = utilities, tmp_path / "cats"
    for part, value in {
        "cd_reg_prompt": "a cat", "cd_reg_count": 400, "cd_reg_steps": 2, "cd_reg_size": 64, "cd_reg_batch": 1,
        "cd_reg_folder": folder,
    }.items():  # fmt: skip
        page.fill(part, value)
    page.press("cd_reg_draw")
    while not list(folder.glob("*.png")):
        page.page.wait_for_timeout(200)
    page.press("cd_reg_draw")
    page.wait_for("cd_utils_outcome", "has not ended yet", 60)
    page.look("utils-pressed-twice")
    now = page.page.locator("#cd_utils_progress").first.inner_text()
    page.page.wait_for_function("now => document.getElementById('cd_utils_progress').innerText != now", arg=now)
    page.press("cd_reg_stop")
    page.wait_for("cd_utils_outcome", "Interrupted")
    assert page.page.locator("#cd_utils_progress").first.inner_text() == ""
    before = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    assert 0 < len(before) < 400
    page.fill("cd_reg_count", len(before) + 1)
    page.press("cd_reg_draw")
    page.wait_for("cd_utils_outcome", "1 picture drawn")
    assert {name: (folder / name).read_bytes() for name in before} == before
