"""The tab of training asks for what it needs, says what each field is for, and hands over what was entered."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
import pytest
import torch
from host import _vector
from modules import progress, sd_hijack, sd_models, shared
from modules.script_callbacks import UiTrainTabParams
from modules.textual_inversion import textual_inversion
from modules.ui_components import FormRow
from PIL import Image

from lib_custom_diffusion.data.pictures import find_pictures
from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.training.plan import TrainingPlan
from lib_custom_diffusion.training.recipes import RECIPES, TOY_RECIPES
from lib_custom_diffusion.ui.training_fields import Face, FormFields, advanced_fields, essential_fields
from lib_custom_diffusion.ui.training_form import LABELS, entered_plan
from lib_custom_diffusion.webui import train_tab
from lib_custom_diffusion.webui.delta_library import library
from lib_custom_diffusion.webui.host_backend import HostBackend
from lib_custom_diffusion.webui.new_embedding import create_embedding
from page import Part, fields, parts


@pytest.fixture
def page(host, tmp_path, monkeypatch) -> gr.Blocks:
    """The tab, as the host makes it."""
    monkeypatch.setattr(library, "folder", tmp_path / "deltas")
    monkeypatch.setattr(textual_inversion, "textual_inversion_templates", {"subject_filewords.txt": None})
    with gr.Blocks() as blocks:
        train_tab.build(UiTrainTabParams([gr.Textbox("", elem_id=name) for name in train_tab._PREVIEW_FIELDS]))
    return blocks


@pytest.fixture
def made(page) -> dict[str, Part]:
    """Its parts by their ids."""
    return parts(page)


def test_labels_are_unique_because_the_host_remembers_values_by_them(page):
    labels = [field.label for field in fields(page) if (field.elem_id or "").startswith("cd_")]
    assert labels and len(set(labels)) == len(labels)


def test_every_field_says_what_it_is_for(page):
    ours = [field for field in fields(page) if (field.elem_id or "").startswith("cd_")]
    silent = [field for field in ours if not field.info and not getattr(field.component, "placeholder", None)]
    assert {field.elem_id for field in silent} <= {
        "cd_new_vectors", "cd_new_overwrite", "cd_embedding_1", "cd_embedding_2", "cd_embedding_3",
        "cd_embedding_4", "cd_preset", "cd_try_prompt",
    }  # fmt: skip


def shown() -> FormFields:
    """The form's fields, made anew."""
    with gr.Blocks():
        face = Face(FormRow, train_tab._word, lambda _number: {}, train_tab._template, RECIPES, lambda *_: "")
        return advanced_fields(face, essential_fields(face), gr.HTML(), dict)


def test_a_page_on_which_nothing_is_changed_asks_for_the_defaults_of_the_api():
    settings = {name: field.value for name, field in shown().settings.items()}
    page = entered_plan([{"modifier_token": "<new1>", "instance_data_dir": "x"}], settings, lambda name: None)
    differing = {
        name for name in TrainingPlan.__dataclass_fields__ if getattr(page, name) != getattr(TrainingPlan, name)
    }
    assert differing == {
        "concepts", "modifier_token", "num_class_images", "checkpointing_steps", "checkpoints_total_limit",
        "validation_prompt", "num_validation_images",
    }  # fmt: skip


def test_fields_have_the_labels_that_mistakes_are_told_by():
    form = shown()
    for number, concept in enumerate(form.concepts, start=1):
        assert {name: field.label.removesuffix(" (embedding)") for name, field in concept.items()} == {
            name: LABELS[name] if number == 1 else f"{LABELS[name]} of concept {number}" for name in concept
        }
    page = {name: field.label for name, field in form.settings.items() if name in LABELS}
    assert len(page) > 20 and page == {name: LABELS[name] for name in page}


def test_a_word_starts_from_the_vocabulary_entry_of_that_name_or_from_the_texts_words(made, host, tmp_path):
    create_embedding("entry", "rare+entry", 2, overwrite=False)
    create_embedding("text", "red cat", 2, overwrite=False)
    embeddings = sd_hijack.model_hijack.embedding_db.word_embeddings
    assert torch.equal(embeddings["entry"].vec, _vector(3).expand(2, -1))
    create_embedding("upper", "RARE+entry", 1, overwrite=False)
    create_embedding("both", "red Rare+Entry cat", 3, overwrite=False)
    red, cat = host.cond_stage_model.encode_embedding_init_text("red cat", 2)
    assert torch.equal(embeddings["upper"].vec, _vector(3)[None])
    assert torch.equal(embeddings["both"].vec, torch.stack([red, _vector(3), cat]))
    assert torch.equal(embeddings["text"].vec, host.cond_stage_model.encode_embedding_init_text("red cat", 2))
    assert torch.equal(HostBackend().entry_vector("rare+entry"), _vector(3)[None])
    assert HostBackend().entry_vector("red") is None


def test_the_button_trains_what_was_entered_and_says_where_the_result_is(made, host, tmp_path, monkeypatch):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (16, 16), (90, 40, 200)).save(pictures / "one.png")
    create_embedding("mycat", "ktn", 1, overwrite=False)
    entered = {
        "cd_count": 1, "cd_embedding_1": "mycat", "cd_pictures_1": str(pictures), "cd_class_1": "cat", "cd_steps": 2,
        "cd_batch_size": 1, "cd_log_directory": str(tmp_path / "log"), "cd_preview_every": None,
        "cd_save_every": 1,
    }  # fmt: skip
    *_, event, then = made["cd_start"].events
    values = [entered.get(component.elem_id, component.value) for component in event.inputs]
    values[0] = "task(train-custom-diffusion-1)"
    monkeypatch.setattr(progress, "current_task", values[0])
    came = event.fn(*values)
    monkeypatch.setattr(progress, "current_task", None)
    assert [part.elem_id for part in then.outputs] == ["cd_note"]  # what it took is said beside the preset
    assert "on this machine" in then.fn(*[entered.get(part.elem_id, part.value) for part in then.inputs])
    prompt, button, card, compare, resume, name, outcome = made["cd_outcome_fetch"].events[0].fn(values[0])
    assert came == (prompt, button, card, compare, resume, name, outcome)  # also if gradio does not bring it
    assert event.js == "startCustomDiffusionTraining"
    assert prompt["value"] == "photo of a mycat cat <delta:mycat:1>" and button["visible"]
    assert card["visible"] and name == "mycat" and made["cd_card"].events[0].js == "customDiffusionShowCard"
    plot, then = made["cd_compare"].events
    assert compare["visible"] and then.js == "customDiffusionToPlot"
    assert 'X Type: Delta steps, X Values: "1, 2"' in plot.fn(prompt["value"], name)
    assert "Finished after 2 steps" in outcome and str(tmp_path / "deltas" / "mycat.delta.safetensors") in outcome
    assert Delta.load(tmp_path / "deltas" / "mycat.delta.safetensors").provenance.steps == 2


def test_a_page_opened_meanwhile_has_the_form_as_it_was_filled_in(made):
    start, reopened = made["cd_start"].job, made["cd_reopened"].events[0]
    values = {part.elem_id: part.value for part in start.inputs}
    values |= {"cd_preset": "face", "cd_name": "mine", "cd_pictures_1": "/nowhere"}
    start.fn("task(1)", *list(values.values())[1:])
    shown = dict(zip([part.elem_id for part in reopened.outputs], reopened.fn("task(1)"), strict=True))
    assert (shown["cd_preset"], shown["cd_name"], shown["cd_pictures_1"]) == ("face", "mine", "/nowhere")
    assert set(map(str, reopened.fn("task(of another page)"))) == {str(gr.update())}


def test_a_page_opened_later_has_the_form_of_a_training_that_can_go_on(made, host, tmp_path, monkeypatch):
    monkeypatch.setattr(shared.opts, "save_optimizer_state", True)
    Image.new("RGB", (16, 16), (90, 40, 200)).save(tmp_path / "one.png")
    create_embedding("mycat", "ktn", 1, overwrite=False)
    entered = {
        "cd_count": 1, "cd_embedding_1": "mycat", "cd_pictures_1": str(tmp_path), "cd_class_1": "cat", "cd_steps": 30,
        "cd_batch_size": 1, "cd_log_directory": str(tmp_path / "log"), "cd_preview_every": 0,
    }  # fmt: skip
    *_, tick, run, untick, noted = made["cd_resume_now"].events
    assert [part.elem_id for part in noted.outputs] == ["cd_note"]
    reopened = made["cd_reopened"].events[0]

    def train(task, event, **more):
        monkeypatch.setattr(progress, "current_task", task)
        values = [{**entered, **more}.get(part.elem_id, part.value) for part in event.inputs]
        came = event.fn(task, *values[1:])
        monkeypatch.setattr(progress, "current_task", None)
        return came

    first, second = "task(train-custom-diffusion-1)", "task(train-custom-diffusion-2)"
    screen = "lib_custom_diffusion.webui.training_job.HostScreen.interrupted"
    monkeypatch.setattr(screen, lambda _screen: shared.state.job_no > 0)
    came = train(first, made["cd_start"].job)
    assert "Interrupted and saved" in came[-1] and came[4]["visible"]
    monkeypatch.setattr(screen, lambda _screen: False)
    train("task(train-custom-diffusion-of-no-word)", made["cd_start"].job, cd_embedding_1="")
    shown = dict(zip([part.elem_id for part in reopened.outputs], reopened.fn(first), strict=True))
    assert (shown["cd_embedding_1"], shown["cd_pictures_1"], shown["cd_steps"]) == ("mycat", str(tmp_path), 30)
    assert tick.fn() is True and untick.fn() is False and run.js == "startCustomDiffusionTraining"
    assert [part.elem_id for event in (tick, untick) for part in event.outputs] == ["cd_resume"] * 2
    came = train(second, run, cd_resume=True)
    assert "Finished after 30 steps" in came[-1] and not came[4]["visible"]
    assert set(map(str, reopened.fn(second))) == {str(gr.update())}  # there is nothing to go on with


def test_whether_a_training_can_be_resumed_is_said_before(page, monkeypatch):
    [at_load] = [each for each in page.dependencies if each["trigger"] == "load"]
    asked = page.fns[page.dependencies.index(at_load)].fn
    assert "Saves Optimizer state" in asked()[1]
    monkeypatch.setattr(shared.opts, "save_optimizer_state", True)
    assert "can be resumed.</p>" in asked()[1]


def test_a_page_whose_settings_are_changed_knows_other_words_and_what_can_be_resumed(made, monkeypatch):
    create_embedding("mycat", "ktn", 1, overwrite=False)
    [event] = made["cd_settings_changed"].events
    entered = {"cd_embedding_1": "mycat", "cd_embedding_2": "of-another-model"}
    monkeypatch.setattr(shared.opts, "save_optimizer_state", True)
    shown = event.fn(*[entered.get(part.elem_id, part.value) for part in event.inputs])
    by_id = dict(zip([part.elem_id for part in event.outputs], shown, strict=True))
    assert "can be resumed.</p>" in by_id["cd_resumable"] and "thing" in by_id["cd_note"]
    assert (by_id["cd_embedding_1"]["value"], by_id["cd_embedding_2"]["value"]) == ("mycat", None)
    assert by_id["cd_embedding_1"]["choices"] == ["mycat"]


def test_the_host_remembers_our_fields_beside_its_own_of_the_same_labels(page):
    ours = [field for field in fields(page) if (field.elem_id or "").startswith("cd_")]
    assert len(ours) > 40 and all(field.component.custom_script_source == "custom_diffusion" for field in ours)


def test_a_mistake_is_shown_as_a_sentence(made):
    *_, outcome = made["cd_start"].press()
    assert outcome.startswith("<div class='error'>Word is empty; give the word to be learned</div>")
    entered = {"cd_embedding_1": "mycat", "cd_pictures_1": "/x", "cd_steps": None}  # not the 250 of another preset
    *_, outcome = made["cd_start"].press(**entered)
    assert outcome.startswith("<div class='error'>Max steps is empty; give a number</div>")


def test_a_preset_fills_the_form_with_the_published_settings(made):
    event = made["cd_preset"].events[0]
    filled = dict(zip([component.elem_id for component in event.outputs], event.fn("face"), strict=True))
    assert (filled["cd_steps"], filled["cd_learning_rate"], filled["cd_select"]) == (1000, "4e-5", "crossattn")


def test_as_many_concepts_are_shown_as_are_asked_for(made):
    event = made["cd_count"].events[0]
    assert [change["visible"] for change in event.fn(2)] == [True, True, False, False]
    assert len(event.outputs) == 4


def test_a_number_of_concepts_that_is_emptied_to_type_another_is_one(made):
    assert [change["visible"] for change in made["cd_count"].events[0].fn(None)] == [True, False, False, False]
    form = shown()
    concepts, _ = form.entered([None, *(part.value for part in form.inputs[1:])])
    assert len(concepts) == 1
    told, *_ = made["cd_new_create"].events[0].fn("my-dog", "cat", 1, False, None, "", "", "", "")
    assert "Created <b>my-dog</b>" in told


def test_a_new_word_is_created_from_the_page(made, tmp_path):
    event = made["cd_new_create"].events[0]
    told, first, *others = event.fn("<my-dog>", "cat", 1, False, 1, "", "", "", "")
    assert "Created <b>my-dog</b> and selected it" in told
    assert "<i>&lt;my-dog&gt;</i> has characters" in told
    assert (tmp_path / "embeddings" / "my-dog.pt").is_file()
    assert first["value"] == "my-dog" and all("my-dog" in field["choices"] for field in (first, *others))
    told, first, *others = event.fn("my-cow", "cat", 1, False, 1, "my-dog", "", "", "")  # the second is chosen, too
    assert first["value"] == "my-cow" and "characters" not in told
    _, first, second, *_ = event.fn("my-hen", "cat", 1, False, 2, "my-dog", "", "", "")
    assert "value" not in first and second["value"] == "my-hen"
    told, *fields = event.fn("my-dog", "cat", 1, False, 1, "", "", "", "")
    assert "There is an embedding my-dog already" in told and not any("value" in field for field in fields)


@pytest.mark.parametrize(("name", "said"), [("dog", "dog is a word"), ("<dog>", "dog is"), (" my  cat ", "my cat are")])
def test_a_name_that_prompts_are_full_of_is_refused(made, tmp_path, name, said):
    told, *fields = made["cd_new_create"].events[0].fn(name, "cat", 1, True, 1, "", "", "", "")
    assert told.startswith(f"<div class='error'>{said}")
    assert "knows already" in told and "such as mycat" in told
    assert not any("value" in field for field in fields) and not list(tmp_path.glob("embeddings/*"))


def test_an_empty_name_is_asked_for(made):
    told, *_ = made["cd_new_create"].events[0].fn(" ", "cat", 1, False, 1, "", "", "", "")
    assert told == "<div class='error'>Name is empty; give the new word, such as mycat</div>"


def test_a_page_that_is_opened_shows_the_box_for_new_words_while_there_is_none(page, host):
    [at_load] = [each for each in page.dependencies if each["trigger"] == "load"]
    at = [page.blocks[part].elem_id for part in at_load["outputs"]].index("cd_new")
    asked = page.fns[page.dependencies.index(at_load)].fn
    assert asked()[at]["open"]
    create_embedding("dog", "cat", 1, overwrite=False)
    assert not asked()[at]["open"]


def test_a_page_knows_the_words_before_the_host_has_read_them_and_after(page, host, tmp_path, monkeypatch):
    create_embedding("dog", "cat", 1, overwrite=False)
    [at_load] = [each for each in page.dependencies if each["trigger"] == "load"]
    word = at_load["outputs"][2]
    choices = page.fns[page.dependencies.index(at_load)].fn()[2]["choices"]
    assert page.blocks[word].elem_id == "cd_embedding_1" and choices == ["dog"]
    monkeypatch.setattr(sd_hijack.model_hijack.embedding_db, "word_embeddings", {})
    (tmp_path / "embeddings" / "dog.txt").touch()
    assert shown().concepts[0]["modifier_token"].choices == ["dog"]


def test_a_prompt_is_sent_with_the_size_and_the_sampling_that_suit_the_model(made, monkeypatch):
    sent = made["cd_send"].events[0]
    assert [part.elem_id for part in sent.outputs] == [
        "prompt",
        "steps",
        "sampler_name",
        "cfg_scale",
        "width",
        "height",
    ]
    assert sent.fn("a mycat") == ["a mycat", 25, "Euler a", 4.0, 16, 16]  # as suits a toy, of 16 pixels
    monkeypatch.setattr(sd_models.model_data, "sd_model", None)
    assert sent.fn("a mycat")[-3:] == [6.0, 512, 512]


def test_the_toy_is_offered_while_there_is_no_checkpoint_and_brings_its_preset(page, made, monkeypatch):
    [at_load] = [each for each in page.dependencies if each["trigger"] == "load"]
    asked = page.fns[page.dependencies.index(at_load)].fn
    assert page.blocks[at_load["outputs"][0]].elem_id == "cd_no_checkpoint" and asked()[0]["visible"]
    monkeypatch.setattr(sd_models, "checkpoints_list", {"one.safetensors": None})
    assert not asked()[0]["visible"]
    event = made["cd_toy_preset"].events[0]
    filled = dict(zip([part.elem_id for part in event.outputs], event.fn("", ""), strict=True))
    assert filled["cd_preset"] == "toy model: thing" and filled["cd_embedding_learning_rate"] == "5e-3"
    assert not filled["cd_no_checkpoint"]["visible"]
    assert filled["cd_class_1"] == "cat" and len(find_pictures(Path(filled["cd_pictures_1"]))) == 6
    assert event.fn("/my/pictures", "")[1:3] == ["/my/pictures", ""]  # nothing that was entered is replaced


def test_a_page_that_is_opened_while_the_toy_is_chosen_has_its_preset(page, monkeypatch):
    [at_load] = [each for each in page.dependencies if each["trigger"] == "load"]
    at = [page.blocks[part].elem_id for part in at_load["outputs"]]

    def filled() -> dict[str, object]:
        return dict(zip(at, page.fns[page.dependencies.index(at_load)].fn(), strict=True))

    assert "value" not in filled()["cd_preset"]  # what the page begins with stays
    assert "A thing or a pet" in str(filled()["cd_note"])  # with the time that is known by now
    monkeypatch.setitem(shared.opts.data, "sd_model_checkpoint", "custom-diffusion-toy.safetensors [6eacad8eb8]")
    assert (filled()["cd_preset"], filled()["cd_embedding_learning_rate"]) == ("toy model: thing", "5e-3")
    assert "for the toy model" in str(filled()["cd_note"])
    monkeypatch.setitem(shared.opts.data, "sd_model_checkpoint", "custom-diffusion-toy-xl.safetensors [6eacad8eb8]")
    assert filled()["cd_preset"] == "toy model: thing"
    monkeypatch.setitem(shared.opts.data, "sd_model_checkpoint", None)
    monkeypatch.setattr(sd_models, "checkpoints_list", {"custom-diffusion-toy.safetensors": None})
    assert filled()["cd_preset"] == "toy model: thing"  # the first is drawn with until one is chosen
    monkeypatch.setitem(shared.opts.data, "sd_model_checkpoint", "photos.safetensors [0123456789]")
    assert "value" not in filled()["cd_preset"]


def test_saves_are_found_in_the_log_directory_that_the_host_keeps_as_the_default(page, made, tmp_path, monkeypatch):
    layer = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    save = tmp_path / "mine" / "2026-01-02" / "cat" / "embeddings" / "cat-100.delta.safetensors"
    Delta({layer: torch.ones(8, 6)}).save(save)
    made["cd_log_directory"].component.value = str(tmp_path / "mine")  # the host reads it after the tab is made
    [at_load] = [each for each in page.dependencies if each["trigger"] == "load"]
    page.fns[page.dependencies.index(at_load)].fn()
    assert library.find("cat-100").path == save


def test_only_jobs_wait_in_gradios_queue(page):
    """It gives a page 5 seconds to answer; one that is too busy would be told "Connection errored out"."""
    queued = [each for each in page.dependencies if each["backend_fn"] and each["queue"] is not False]
    pressed = {page.blocks[part].elem_id for each in queued for part in each["targets"]}
    assert pressed == {"cd_start", "cd_ask", "cd_resume_now"}


def test_fields_that_hold_one_line_do_not_grow(page):
    texts = {field.elem_id: field.component for field in fields(page) if isinstance(field.component, gr.Textbox)}
    prompts = {"cd_prompt", "cd_preview_prompt", "cd_try_prompt"}
    ours = {name: text for name, text in texts.items() if (name or "").startswith("cd_")}
    assert {name for name, text in ours.items() if text.max_lines != 1} == prompts


def test_concepts_have_a_field_for_each_part(made):
    parts = {"modifier_token", "class_prompt", "instance_data_dir", "class_data_dir"}
    assert [set(concept) for concept in shown().concepts] == [parts] * 4
    assert Path(made["cd_log_directory"].value) == Path("textual_inversion")


def test_a_preset_unticks_the_box_of_what_it_switches_off_and_ticks_it_again() -> None:
    boxes = {"augment": None, "max_train_steps": None, "snr_gamma": None}
    made = FormFields(None, [], boxes, None, {**RECIPES, **TOY_RECIPES})
    assert made.filled_by("toy model: thing") == [False, 300, 1.0]
    assert made.filled_by("thing or pet") == [True, 250, 0]
