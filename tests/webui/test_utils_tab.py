"""The tab of utilities: each section does what its button says, and writes nowhere but into the folder of deltas."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
import torch
from modules import sd_models, shared
from modules.textual_inversion import textual_inversion
from PIL import Image
from safetensors.torch import load_file
from test_extra_network import save

from lib_custom_diffusion.data.captions import captioned_pictures
from lib_custom_diffusion.delta import Delta, Factors
from lib_custom_diffusion.text_features import captions_beside
from lib_custom_diffusion.webui import host_backend, utils_tab
from lib_custom_diffusion.webui.delta_library import library
from page import Part, fields, parts


@pytest.fixture
def page(host, tmp_path, monkeypatch) -> gr.Blocks:
    template = tmp_path / "kinds.txt"
    template.write_text("a [name] of [filewords]\n")
    found = {"kinds.txt": textual_inversion.TextualInversionTemplate("kinds.txt", str(template))}
    monkeypatch.setattr(textual_inversion, "textual_inversion_templates", found)
    monkeypatch.setattr(library, "folder", tmp_path / "deltas")
    monkeypatch.setattr(shared.cmd_opts, "lora_dir", str(tmp_path / "Lora"))
    for seed, name in enumerate(("cat", "dog")):
        save(tmp_path / "deltas", name, host, "<new1>", seed=seed)
    [(blocks, title, part)] = utils_tab.build()
    assert (title, part) == ("Custom Diffusion Utils", "custom_diffusion_utils")
    return blocks


@pytest.fixture
def made(page) -> dict[str, Part]:
    return parts(page)


def report(pressed: tuple) -> str:
    return pressed[-1]


def test_labels_are_unique_because_the_host_remembers_values_by_them(page):
    labels = [field.label for field in fields(page)]
    assert len(labels) > 30 and len(set(labels)) == len(labels)


def test_compress_writes_a_smaller_file_and_tells_the_error(made, tmp_path):
    entered = {"cd_compress_name": "cat", "cd_compress_to": "rank", "cd_compress_rank": 1}
    _, delta, opens, told = made["cd_compress"].press(**entered)
    small = Delta.load(tmp_path / "deltas" / "cat-small.delta.safetensors")
    assert all(isinstance(entry, Factors) and entry.us.shape[1] == 1 for entry in small.entries.values())
    assert delta == "cat-small" and opens["visible"]
    assert "Differs from the original by" in told and "on captions kept for measuring" in told
    [card] = made["cd_utils_open"].events
    assert card.js == "customDiffusionShowCard" and [part.elem_id for part in card.inputs] == ["cd_utils_delta"]


def test_compress_of_what_fits_says_so_and_copies_it_to_a_name_that_was_given(made, tmp_path):
    told = report(made["cd_compress"].press(cd_compress_name="cat"))  # to 5 MB
    assert "Not compressed" in told and "already small enough: 3.1 kB; give the result a name to copy it" in told
    assert not (tmp_path / "deltas" / "cat-small.delta.safetensors").exists()
    told = report(made["cd_compress"].press(cd_compress_name="cat", cd_compress_result="cat-small"))
    assert "Not compressed" in told and "already small enough" in told and "Differs from the original by" not in told
    original, copy = (tmp_path / "deltas" / f"{name}.delta.safetensors" for name in ("cat", "cat-small"))
    assert copy.read_bytes() == original.read_bytes()


def test_a_delta_that_is_chosen_fills_in_a_tenth_of_its_size_and_its_word(made, tmp_path):
    delta = tmp_path / "deltas" / "cat.delta.safetensors"
    Delta({}, {"<rac>": torch.ones(40, 1000)}).save(delta)
    assert delta.stat().st_size == pytest.approx(80_000, abs=1000)
    for field, value in (("cd_compress_name", 0.0081), ("cd_rename_name", "<rac>")):
        filled = next(each.fn for each in made[field].events if each.fn)
        assert filled("cat") == value
        assert filled("gone") == filled(None) == gr.update()
    delta.write_bytes(b"nothing")
    assert next(each.fn for each in made["cd_rename_name"].events if each.fn)("cat") == gr.update()


def test_a_result_takes_no_others_place_unless_told_to(made, tmp_path):
    entered = {"cd_compress_name": "cat", "cd_compress_to": "rank", "cd_compress_rank": 1, "cd_compress_result": "dog"}
    before = (tmp_path / "deltas" / "dog.delta.safetensors").read_bytes()
    assert "There is a file dog.delta.safetensors already" in report(made["cd_compress"].press(**entered))
    assert (tmp_path / "deltas" / "dog.delta.safetensors").read_bytes() == before
    assert "Compressed" in report(made["cd_compress"].press(**entered, cd_compress_overwrite=True))
    assert (tmp_path / "deltas" / "dog.delta.safetensors").read_bytes() != before


@pytest.mark.parametrize("name", ["../../out", "/tmp/out", "a/b"])
def test_results_stay_in_the_folder_of_deltas(made, tmp_path, name):
    made["cd_blend"].press(cd_blend_names=["cat"], cd_blend_result=name)
    kept = "".join(letter for letter in name if letter.isalnum())
    there = {path for path in tmp_path.rglob("*.delta.safetensors")}
    names = [path.name for path in there if path.parent == tmp_path / "deltas"]
    assert len(names) == len(there) == 3 and any(kept in found.replace(".", "") for found in names)


def test_blend_adds_up_and_tells_of_renamed_words(made, tmp_path):
    entered = {"cd_blend_names": ["cat", "dog"], "cd_blend_weights": "0.5, 2", "cd_blend_result": "both"}
    told = report(made["cd_blend"].press(**entered))
    a, b, both = (Delta.load(tmp_path / "deltas" / f"{name}.delta.safetensors") for name in ("cat", "dog", "both"))
    for key, entry in both.entries.items():
        expected = 0.5 * a.entries[key].float() + 2 * b.entries[key].float()
        assert (entry.float() - expected).abs().max() < 0.01
    assert "the sum is exact" in told and "&lt;new1&gt; of file 2 is now &lt;new2&gt;" in told


def test_merge_tells_the_residual(made, tmp_path):
    told = report(made["cd_merge"].press(cd_merge_names=["cat"], cd_merge_result="merged"))
    shown, folded = told.split("<details>")
    assert "the concept is kept" in shown and "as much as its own file changes them" in folded
    assert float(re.search(r"([0-9.]+)% off on the words", folded)[1]) < 1
    cat, merged = (Delta.load(tmp_path / "deltas" / f"{name}.delta.safetensors") for name in ("cat", "merged"))
    assert set(merged.entries) == set(cat.entries) and set(merged.embeddings) == set(cat.embeddings)


def test_convert_writes_a_lora_and_reads_it_back_from_an_upload(made, tmp_path):
    entered = {"cd_convert_names": ["cat.delta.safetensors"], "cd_convert_rank": 1}
    told = report(made["cd_convert"].press(**entered))
    lora = tmp_path / "Lora" / "cat.safetensors"  # where the host finds it by <lora:cat:1>
    assert str(lora) in told and "In a prompt</th><td>&lt;lora:cat:1&gt; &lt;new1&gt;</td>" in told
    assert f"Its word, for other programs</th><td>{tmp_path / 'deltas' / 'cat-words' / 'new1.pt'}" in told
    assert any(name.endswith("attn2_to_k.alpha") for name in load_file(lora))
    assert "cut to rank 1" in told and "write embedding:new1" in told
    assert (tmp_path / "deltas" / "cat-words" / "new1.pt").is_file()
    upload = SimpleNamespace(name=str(lora))
    entered = {"cd_convert_uploads": [upload], "cd_convert_kind": "delta", "cd_convert_result": "back"}
    _, delta, _, told = made["cd_convert"].press(**entered)
    assert delta == "back", told
    cat, back = (Delta.load(tmp_path / "deltas" / f"{name}.delta.safetensors") for name in ("cat", "back"))
    assert set(back.entries) == set(cat.entries) and "<new1>" in back.embeddings


def test_an_upload_that_is_refused_is_named_as_a_person_knows_it(made, tmp_path):
    uploaded = tmp_path / "gradio" / "0a1b2c" / "page.safetensors"
    uploaded.parent.mkdir(parents=True)
    uploaded.write_text("<html></html>")
    told = report(made["cd_convert"].press(cd_convert_uploads=[SimpleNamespace(name=str(uploaded))]))
    assert told.startswith("<div class='error'>page.safetensors: it is a web page")


def test_a_model_that_is_missing_is_asked_for_in_the_words_of_the_page(made):
    entered = {"cd_convert_names": ["cat.delta.safetensors"], "cd_convert_kind": "diffusers", "cd_convert_fits": False}
    told = report(made["cd_convert"].press(**entered))
    assert told.endswith("load the model it was trained on, and tick Made for the loaded model</div>")


def test_several_files_go_into_a_folder_of_the_name(made, tmp_path):
    entered = {"cd_convert_names": ["cat.delta.safetensors"], "cd_convert_kind": "embedding-diffusers"}
    made["cd_convert"].press(**entered, cd_convert_result="words")
    assert [path.name for path in (tmp_path / "deltas").glob("words*")] == ["words.safetensors"]


@pytest.mark.parametrize(
    ("button", "entered", "sentence"),
    [
        ("cd_compress", {}, "Choose a delta"),
        ("cd_compress", {"cd_compress_name": "cat", "cd_compress_size": 0}, "Give the size"),
        ("cd_rename", {"cd_rename_name": "cat", "cd_rename_new": "<a>"}, "Current word is empty"),
        ("cd_blend", {"cd_blend_result": "x"}, "Choose one delta or several"),
        ("cd_blend", {"cd_blend_names": ["cat"]}, "Name of the blend is empty; give one"),
        ("cd_blend", {"cd_blend_names": ["cat"], "cd_blend_result": "x", "cd_blend_weights": "1, 2"}, "one number"),
        ("cd_merge", {"cd_merge_names": ["cat"], "cd_merge_result": "x", "cd_merge_prompts": "a\nb"}, "2 times for 1"),
        ("cd_convert", {}, "Choose a file"),
        ("cd_reg_draw", {"cd_reg_prompt": "cat"}, "Give a folder"),
        ("cd_reg_draw", {"cd_reg_folder": "drawn", "cd_reg_prompt": " "}, "Prompt is empty; say what to draw"),
        ("cd_pick", {"cd_pick_prompt": "cat"}, "Give the folder of captioned pictures"),
        ("cd_pick", {"cd_pick_source": ".", "cd_pick_target": "picked"}, "Prompt to match is empty; give one"),
    ],
)
def test_a_mistake_is_shown_as_a_sentence(made, button, entered, sentence):
    told = report(made[button].press(**entered))
    assert told.startswith("<div class='error'>") and sentence in told


def captioned(folder: Path, *captions: str) -> Path:
    folder.mkdir()
    for index, caption in enumerate(captions):
        Image.new("RGB", (16, 16)).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(caption)
    return folder


def draw(made: dict[str, Part], folder: Path, **entered) -> tuple:
    settings = {"cd_reg_folder": str(folder), "cd_reg_size": 16, "cd_reg_batch": 2, "cd_reg_count": 3}
    return made["cd_reg_draw"].press(**{**settings, **entered})


def test_pictures_of_a_prompt_are_drawn_with_captions(made, tmp_path):
    pictures, _, _, told = draw(made, tmp_path / "drawn", cd_reg_prompt="photo of a cat")
    assert "3 pictures drawn" in told and len(pictures) == 3
    assert [caption for _, caption in captioned_pictures(tmp_path / "drawn")] == ["photo of a cat"] * 3
    assert (shared.state.job_no, shared.state.textinfo) == (3, "3 of 3 pictures\n")


@pytest.mark.parametrize(
    ("kind", "entered", "scale"), [("crossattn-16x64", 0, 4.0), ("sd1", 0, 6.0), ("crossattn-16x64", 7.5, 7.5)]
)
def test_the_cfg_scale_is_that_which_suits_the_model_unless_another_is_entered(
    made, tmp_path, monkeypatch, kind, entered, scale
):
    asked = []
    monkeypatch.setattr(host_backend, "architecture", lambda unet: kind)
    monkeypatch.setattr(
        host_backend.HostBackend, "generate",
        lambda self, prompts, seeds, sampling, vectors: asked.append(sampling) or [Image.new("RGB", (8, 8))],
    )  # fmt: skip
    assert made["cd_reg_cfg"].component.value == 0
    drawn = made["cd_reg_draw"].press(
        cd_reg_prompt="a cat", cd_reg_count=1, cd_reg_folder=str(tmp_path / "cats"), cd_reg_cfg=entered
    )
    assert "1 picture drawn" in report(drawn)
    assert [each.guidance_scale for each in asked] == [scale]


def test_captions_of_a_folder_are_drawn_as_often_as_asked(made, tmp_path):
    source = captioned(tmp_path / "source", "red cat", "a dog")
    entered = {"cd_reg_source": "the captions of a folder", "cd_reg_captions": str(source), "cd_reg_times": 2}
    draw(made, tmp_path / "drawn", **entered)
    captions = [caption for _, caption in captioned_pictures(tmp_path / "drawn")]
    assert captions == ["red cat", "a dog", "red cat", "a dog"]


def test_a_template_of_the_hosts_is_drawn(made, tmp_path):
    source = captioned(tmp_path / "source", "tin", "wood")
    entered = {"cd_reg_source": "a template", "cd_reg_prompt": "cat", "cd_reg_captions": str(source)}
    draw(made, tmp_path / "drawn", **entered)
    captions = [caption for _, caption in captioned_pictures(tmp_path / "drawn")]
    assert captions == ["a cat of tin", "a cat of wood", "a cat of tin"]


def test_only_the_fields_that_a_source_wants_are_seen(made):
    event = made["cd_reg_source"].events[0]
    ids = [part.elem_id for part in event.outputs]
    wanted = {
        source: {part for part, change in zip(ids, event.fn(source), strict=True) if change["visible"]}
        for source in ("a prompt", "the captions of a folder", "a template")
    }
    assert wanted == {
        "a prompt": {"cd_reg_prompt", "cd_reg_count"},
        "the captions of a folder": {"cd_reg_captions", "cd_reg_times"},
        "a template": {"cd_reg_prompt", "cd_reg_template", "cd_reg_captions", "cd_reg_count"},
    }


def test_interrupt_keeps_whole_batches_and_the_same_settings_go_on(made, tmp_path, monkeypatch):
    drawn = host_backend.HostBackend.generate

    def interrupted_in_the_second_batch(backend, prompts, seeds, sampling, vectors):
        if seeds[0] == 44:
            made["cd_reg_stop"].press()
        return drawn(backend, prompts, seeds, sampling, vectors)

    monkeypatch.setattr(host_backend.HostBackend, "generate", interrupted_in_the_second_batch)
    told = report(draw(made, tmp_path / "drawn", cd_reg_prompt="a cat", cd_reg_count=4))
    assert told.startswith("<p>Interrupted.")
    assert sorted(path.name for path in (tmp_path / "drawn").glob("*.png")) == ["0000.png", "0001.png"]
    monkeypatch.undo()
    shared.state.begin()


@pytest.mark.parametrize("button", ["stop_generating", "skip"])
def test_the_hosts_other_buttons_end_drawing_without_a_half_drawn_picture(made, tmp_path, monkeypatch, button):
    draw_all = host_backend.processing.process_images

    def pressed(p):
        drawn = draw_all(p)
        if p.seed[0] == 44:
            getattr(shared.state, button)()
        return drawn

    monkeypatch.setattr(host_backend.processing, "process_images", pressed)
    told = report(draw(made, tmp_path / "drawn", cd_reg_prompt="a cat", cd_reg_count=6))
    assert told.startswith("<p>Interrupted.")
    assert sorted(path.name for path in (tmp_path / "drawn").glob("*.png")) == ["0000.png", "0001.png"]
    shared.state.begin()


@pytest.mark.parametrize(("part", "label"), [("cd_reg_steps", "Sampling steps"), ("cd_reg_cfg", "CFG Scale")])
def test_an_emptied_slider_is_named(made, tmp_path, part, label):
    told = report(draw(made, tmp_path / "drawn", cd_reg_prompt="a cat", cd_reg_count=1, **{part: None}))
    assert f"{label} is empty; give a number" in told and not (tmp_path / "drawn").exists()


def test_captions_that_are_nearest_are_picked(made, tmp_path):
    source = captioned(tmp_path / "source", "a red dog", "far away", "cat")
    entered = {"cd_pick_source": str(source), "cd_pick_prompt": "cat", "cd_pick_count": 1}
    pictures, *_, told = made["cd_pick"].press(**entered, cd_pick_target=str(tmp_path / "picked"))
    assert (tmp_path / "picked" / "caption.txt").read_text() == "cat\n"
    assert "1 picture listed" in told and [Path(picture).name for picture in pictures] == ["2.png"]


def test_the_toy_is_installed_with_its_tokenizer_where_it_lies(page, made, tmp_path, monkeypatch):
    toy = tmp_path / "toy"
    toy.mkdir()
    (toy / "toy.safetensors").write_bytes(b"weights")
    (toy / "toy.yaml").write_text("cond_stage_config:\n  params:\n    version: config/tokenizer\n    device: cpu\n")
    (toy / "toy.captions.txt").write_text("a dog\n")
    monkeypatch.setattr("lib_custom_diffusion.webui.toy_model.TOY", toy)
    title, told = made["cd_toy"].press()
    assert title == "custom-diffusion-toy.safetensors" and "Installed" in told
    assert "chooseCustomDiffusionToy" in {event["js"] for event in page.dependencies}
    assert (tmp_path / "models" / "custom-diffusion-toy.safetensors").read_bytes() == b"weights"
    checkpoint = tmp_path / "models" / "custom-diffusion-toy.safetensors"
    assert captions_beside(checkpoint).read_text() == "a dog\n"
    config = checkpoint.with_suffix(".yaml").read_text()
    assert f'    version: "{(toy / "config" / "tokenizer").as_posix()}"\n    device: cpu' in config


def test_the_toy_in_sdxls_layout_is_installed_with_the_tokenizer_of_its_first_encoder(made, tmp_path, monkeypatch):
    toy = tmp_path / "toy"
    toy.mkdir()
    (toy / "toy-xl.safetensors").write_bytes(b"weights")
    (toy / "toy-xl.yaml").write_text("params:\n  version: config-xl/tokenizer\nparams:\n  version: none\n")
    (toy / "toy-xl.captions.txt").write_text("a dog\n")
    monkeypatch.setattr("lib_custom_diffusion.webui.toy_model.TOY", toy)
    title, told = made["cd_toy_xl"].press()
    assert title == "custom-diffusion-toy-xl.safetensors" and "Installed" in told
    config = (tmp_path / "models" / "custom-diffusion-toy-xl.yaml").read_text()
    first = (toy / "config-xl" / "tokenizer").as_posix()
    assert config == f'params:\n  version: "{first}"\nparams:\n  version: none\n'


def test_the_toy_is_offered_first_where_there_is_no_checkpoint(page, monkeypatch):
    def first(blocks: gr.Blocks) -> str:
        return next(part.elem_id for part in blocks.blocks.values() if isinstance(part, gr.Tab))

    assert first(page) == "cd_toy_section_tab"
    monkeypatch.setattr(sd_models, "checkpoints_list", {"one.safetensors": None})
    assert first(utils_tab.build()[0][0]) == "cd_draw_section_tab"


def test_a_page_that_is_opened_asks_once_for_all_lists(page, tmp_path):
    [asked] = [event for event in page.dependencies if event["trigger"] == "load"]
    (tmp_path / "deltas" / "dog.delta.safetensors").unlink()
    lists = page.fns[page.dependencies.index(asked)].fn()
    assert len(lists) == len(asked["outputs"]) == 6
    assert {tuple(each["choices"]) for each in lists} == {("cat",), ("cat.delta.safetensors",)}


def test_a_tab_that_is_opened_asks_for_what_was_made_since_the_page_was(page, tmp_path):
    asked = [event for event in page.dependencies if event["trigger"] == "select" and event["backend_fn"]]
    assert len(asked) == 9  # a tab each
    (tmp_path / "deltas" / "cat.delta.safetensors").rename(tmp_path / "deltas" / "dog.delta.safetensors")
    for event in asked:
        lists = page.fns[page.dependencies.index(event)].fn()
        assert {tuple(each["choices"]) for each in lists} == {("dog",), ("dog.delta.safetensors",)}


def test_inspect_shows_tokens_and_layers(made):
    shown = report(made["cd_inspect"].press(cd_inspect_name="cat"))
    assert "&lt;new1&gt;" in shown and "2 × 6" in shown and shown.count("cd-norm-bar") == 6
    assert "There is no delta" in report(made["cd_inspect"].press(cd_inspect_name="bird"))
