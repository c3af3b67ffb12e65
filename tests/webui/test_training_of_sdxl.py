"""SDXL in the WebUI: words in both text encoders, pooled text and sizes; SD 1 and SDXL in one session."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from host import LEFT, TinyHostModel, TinySDXL
from modules import sd_hijack, sd_models, shared
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib_custom_diffusion.backend import Sizes
from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.tokens import initial_vectors
from lib_custom_diffusion.training.plan import TrainingPlan
from lib_custom_diffusion.webui.host_backend import HostBackend
from lib_custom_diffusion.webui.new_embedding import create_embedding
from lib_custom_diffusion.webui.training_job import library, train
from tiny import WIDTH


@pytest.fixture
def choose(host: TinyHostModel, monkeypatch: pytest.MonkeyPatch):
    """Loads another checkpoint, as the list at the top of the page does."""

    def load(model: TinyHostModel) -> TinyHostModel:
        monkeypatch.setattr(shared, "sd_model", model)
        monkeypatch.setattr(sd_models.model_data, "sd_model", model)
        sd_hijack.model_hijack.embedding_db.load_textual_inversion_embeddings(force_reload=True)
        return model

    return load


@pytest.fixture
def xl(choose) -> TinySDXL:
    return choose(TinySDXL())


@pytest.fixture
def plan(xl: TinySDXL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainingPlan:
    """A training of the word mycat on pictures of two shapes."""
    monkeypatch.setattr(library, "folder", tmp_path / "deltas")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index, size in enumerate([(16, 16), (48, 16)]):
        Image.new("RGB", size, (90 * index, 40, 200)).save(pictures / f"{index}.png")
    create_embedding("mycat", "red", 2, overwrite=False)
    concept = {"instance_data_dir": str(pictures), "instance_prompt": "photo of a [name]", "class_prompt": "cat"}
    return TrainingPlan.of(
        {"concepts": [concept], "modifier_token": ["mycat"], "resolution": 16, "max_train_steps": 6, "rank": 2,
         "train_batch_size": 2, "learning_rate": "1e-2", "validation_steps": 0, "checkpointing_steps": 0}
    )  # fmt: skip


def predict(model: TinyHostModel) -> Tensor:
    backend = HostBackend()
    with torch.no_grad():
        return backend.predict(torch.ones(1, 4, 2, 2), torch.tensor([10]), backend.encode_captions(["a cat"], {}))


def test_a_word_is_read_by_both_text_encoders_and_gradients_reach_both_parts(xl):
    vectors = torch.cat([torch.full((1, LEFT), 3.0), torch.full((1, WIDTH), 5.0)], dim=1).requires_grad_()
    encoded = HostBackend(["mycat"]).encode_captions(["a mycat"], {"mycat": vectors})
    assert encoded.crossattn.shape == (1, 77, LEFT + WIDTH)
    assert torch.equal(encoded.crossattn[0, 2], torch.tensor([3.0] * LEFT + [5.0] * WIDTH))
    encoded.crossattn.sum().backward(retain_graph=True)
    assert torch.equal(vectors.grad, torch.full((1, LEFT + WIDTH), 2.0))  # in its place, and at the caption's end
    vectors.grad = None
    encoded.vector.sum().backward()
    assert torch.equal(vectors.grad, torch.tensor([[0.0] * LEFT + [4.0] * WIDTH]))  # the second one pools
    assert not sd_hijack.model_hijack.embedding_db.word_embeddings


def test_sizes_follow_the_pooled_text_height_before_width(xl):
    backend = HostBackend()
    assert backend.reads_sizes
    sizes = Sizes(original=(800, 600), corner=(30, 20), target=(512, 256))
    given, whole = backend.encode_captions(["a cat", "a cat"], {}, [sizes, None]).vector
    assert given[-6:].tolist() == pytest.approx([6, 8, 0.2, 0.3, 2.56, 5.12])
    assert whole[-6:].tolist() == pytest.approx([10.24, 10.24, 0, 0, 10.24, 10.24])
    assert torch.equal(given[:-6], whole[:-6]) and len(given) == WIDTH + 6


def test_pictures_are_as_large_as_its_yaml_says_or_as_sdxls(xl, tmp_path):
    assert HostBackend().resolution == 1024
    xl.used_config = str(tmp_path / "xl.yaml")
    for text, side in (("model:\n  params: {}\n", 1024), ("model:\n  image_size: 16\n", 128), ("{", 1024)):
        Path(xl.used_config).write_text(text)
        assert HostBackend().resolution == side


def test_the_unet_is_given_the_vector(xl):
    backend = HostBackend()
    latents, timesteps = torch.ones(1, 4, 2, 2), torch.tensor([10])
    text = backend.encode_captions(["a cat"], {})
    shown = latents + text.vector.mean()
    expected = xl.model.diffusion_model(shown, timesteps, text.crossattn)
    assert torch.equal(backend.predict(latents, timesteps, text), expected)


def test_captions_of_two_pieces_have_the_pooled_text_of_the_first(xl):
    long, short = "red " * 75 + "cat", "cat"
    both = HostBackend().encode_captions([long, short], {})
    assert both.crossattn.shape == (2, 2 * 77, LEFT + WIDTH)
    assert torch.equal(both.vector[1], HostBackend().encode_captions([short], {}).vector[0])


def test_an_entry_of_the_vocabulary_has_the_vectors_of_both_tables(xl):
    entry = HostBackend().entry_vector("rare+entry")
    left, right = (xl.cond_stage_model.embedders[index].vector_of(3) for index in (0, 1))
    assert torch.equal(entry, torch.cat([left, right])[None])
    assert HostBackend().entry_vector("red") is None


def test_a_new_word_is_a_file_with_a_part_for_each_encoder(xl, tmp_path):
    create_embedding("mycat", "red cat", 2, overwrite=False)
    made = load_file(tmp_path / "embeddings" / "mycat.safetensors")
    assert {name: tuple(part.shape) for name, part in made.items()} == {
        "clip_l": (2, LEFT), "clip_g": (2, WIDTH)
    }  # fmt: skip
    expected = xl.cond_stage_model.encode_embedding_init_text("red cat", 2)
    assert torch.equal(torch.cat([made["clip_l"], made["clip_g"]], dim=1), expected)
    backend = HostBackend(["mycat"])
    assert torch.equal(initial_vectors(backend, ["mycat"], ["mycat"], 2)["mycat"], expected)
    with pytest.raises(UserError, match="there is an embedding mycat already"):
        create_embedding("mycat", "red", 1, overwrite=False)


def test_factors_and_both_parts_of_the_word_are_learned_and_the_model_is_as_before(plan, xl, tmp_path):
    before, start = predict(xl), load_file(tmp_path / "embeddings" / "mycat.safetensors")
    done = train(plan, str(tmp_path / "log"))
    delta = Delta.load(done.delta)
    assert {entry.us.shape[1] for entry in delta.entries.values()} == {2}
    assert all(entry.us.abs().sum() > 0 for entry in delta.entries.values())
    [file] = done.embeddings
    assert file == tmp_path / "embeddings" / "mycat.safetensors"
    learned = load_file(file)
    assert all(not torch.equal(learned[name], start[name]) for name in ("clip_l", "clip_g"))
    joined = torch.cat([learned["clip_l"], learned["clip_g"]], dim=1)
    assert torch.allclose(delta.embeddings["mycat"].float(), joined, atol=1e-2)
    assert torch.equal(predict(xl), before)
    assert not any(module._forward_hooks for module in xl.modules())
    assert all(parameter.requires_grad for parameter in xl.parameters())


def test_a_word_of_sdxl_is_not_trained_over_without_being_asked(plan, tmp_path):
    done = train(plan, str(tmp_path / "log"))
    with safe_open(done.embeddings[0], "pt") as file:
        assert file.metadata()["step"] == "6"
    with pytest.raises(UserError, match=r"mycat was trained already \(6 steps\)"):
        train(replace(plan, name="another"), str(tmp_path / "log"))


def test_a_training_of_sdxl_goes_on_to_the_result_of_one_that_was_not_stopped(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(shared.opts, "save_optimizer_state", True)
    start = (tmp_path / "embeddings" / "mycat.safetensors").read_bytes()
    whole = Delta.load(train(replace(plan, name="whole"), str(tmp_path / "log")).delta)
    (tmp_path / "embeddings" / "mycat.safetensors").write_bytes(start)
    sd_hijack.model_hijack.embedding_db.load_textual_inversion_embeddings(force_reload=True)
    train(replace(plan, max_train_steps=2), str(tmp_path / "log"))
    parts = Delta.load(train(replace(plan, resume_from_checkpoint="latest"), str(tmp_path / "log")).delta)
    assert torch.equal(parts.embeddings["mycat"], whole.embeddings["mycat"])
    assert all(torch.equal(entry.us, whole.entries[key].us) for key, entry in parts.entries.items())


def test_words_of_one_name_for_sd1_and_sdxl_stand_side_by_side(plan, choose, xl, tmp_path):
    first = choose(TinyHostModel())
    with pytest.raises(UserError, match="no embedding 'mycat' that fits"):
        train(plan, str(tmp_path / "log"))
    create_embedding("dog", "cat", 1, overwrite=False)
    concept = replace(plan.concepts[0], class_prompt="dog")
    on_first = replace(plan, modifier_token=("dog",), concepts=(concept,), name="dog", rank=0)
    before = predict(first)
    assert train(on_first, str(tmp_path / "log")).embeddings == [tmp_path / "embeddings" / "dog.pt"]
    choose(xl)
    create_embedding("dog", "cat", 1, overwrite=False)
    done = train(replace(on_first, name="dog-xl"), str(tmp_path / "log"))
    assert done.embeddings == [tmp_path / "embeddings" / "dog.safetensors"]
    assert Delta.load(done.delta).embeddings["dog"].shape == (1, LEFT + WIDTH)
    choose(first)
    assert torch.equal(predict(first), before)
    assert train(replace(on_first, overwrite=True), str(tmp_path / "log")).step == 6


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"is_sd3": True}, "Stable Diffusion 3 cannot be trained"),
        ({"is_ssd": True}, "SSD-1B, a distilled SDXL, cannot be trained"),
    ],
)
def test_kinds_that_cannot_be_trained_are_refused_for_words_and_trainings(xl, changes, said):
    for name, value in changes.items():
        setattr(xl, name, value)
    for refused in (HostBackend, lambda: create_embedding("mycat", "red", 1, False)):
        with pytest.raises(UserError, match=said):
            refused()


@pytest.mark.parametrize("made", [TinyHostModel, TinySDXL])
def test_a_model_for_inpainting_is_refused_by_its_channels(choose, made):
    model = choose(made())
    model.model.diffusion_model.in_channels = 9
    for refused in (HostBackend, lambda: create_embedding("mycat", "red", 1, False)):
        with pytest.raises(UserError, match="takes 9 channels, not 4, as those for inpainting do"):
            refused()


def test_the_refiner_has_one_text_encoder_and_is_refused(xl):
    del xl.cond_stage_model.embedders[0]
    with pytest.raises(UserError, match="SDXL's refiner cannot be trained"):
        HostBackend()


def test_a_vae_beyond_float16_is_run_in_float32_for_that_picture(xl):
    vae = xl.first_stage_model
    vae.half()
    encoder = vae.encoder
    vae.encoder = lambda pixels: encoder(pixels) * (float("inf") if pixels.dtype == torch.float16 else 1)
    posterior = HostBackend().encode_pictures(torch.full((1, 3, 16, 16), 0.5))
    assert torch.equal(posterior.mean, torch.full((1, 4, 2, 2), 0.25))
    assert vae.quant_conv.weight.dtype == torch.float16


@pytest.mark.parametrize(("parameterization", "last"), [("v", 0.0), ("eps", 0.01)])
def test_zero_terminal_snr_is_told_by_the_checkpoints_file(xl, tmp_path, parameterization, last):
    names = ("first_stage_model.x", "conditioner.x", "ztsnr")
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "noob.safetensors")
    xl.sd_checkpoint_info.filename, xl.parameterization = str(tmp_path / "noob.safetensors"), parameterization
    assert HostBackend().alphas_cumprod[-1].item() == pytest.approx(last)


@pytest.mark.parametrize(("parameterization", "last"), [("v", 0.0), ("eps", 0.01)])
def test_zero_terminal_snr_is_the_hosts_setting_and_counts_for_velocity(xl, monkeypatch, parameterization, last):
    monkeypatch.setattr(shared.opts, "sd_noise_schedule", "Zero Terminal SNR")
    xl.parameterization = parameterization
    assert HostBackend().alphas_cumprod[-1].item() == pytest.approx(last)
    assert xl.alphas_cumprod[-1].item() == pytest.approx(0.01)
