"""The Backend on the WebUI's parts: gradients reach the words, and the database is the same before and after."""

from __future__ import annotations

import pytest
import torch
from host import TinyHostModel
from modules import processing, sd_hijack, sd_models, shared
from modules.textual_inversion.textual_inversion import Embedding
from safetensors.torch import save_file
from torch.nn import functional as F

from lib_custom_diffusion.attention import projections
from lib_custom_diffusion.backend import Conditioning, Sampling
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.injection import TrainableDelta
from lib_custom_diffusion.tokens import initial_vectors
from lib_custom_diffusion.webui.host_backend import HostBackend
from lib_custom_diffusion.webui.new_embedding import create_embedding
from tiny import WIDTH


@pytest.fixture
def embedding(host: TinyHostModel) -> Embedding:
    """An embedding `mycat` of two vectors in the host's database."""
    made = Embedding(torch.ones(2, WIDTH), "mycat")
    made.vectors, made.shape = made.vec.shape
    return sd_hijack.model_hijack.embedding_db.register_embedding_by_name(made, host, "mycat")


def test_captions_have_the_vectors_of_the_call_and_gradients_reach_them(host, embedding):
    vectors = torch.full((2, WIDTH), 3.0, requires_grad=True)
    encoded = HostBackend(["mycat"]).encode_captions(["a mycat", "mycat red"], {"mycat": vectors}).crossattn
    assert encoded.shape == (2, 77, WIDTH)
    assert torch.equal(encoded[0, 2:4], vectors) and torch.equal(encoded[1, 1:3], vectors)
    encoded.sum().backward()
    assert torch.equal(vectors.grad, torch.full((2, WIDTH), 4.0))  # in two captions, in place and at the end of each


def test_captions_beyond_75_tokens_are_encoded_in_pieces_as_the_host_does(host):
    long, short = " ".join(["red"] * 75 + ["cat"]), "cat"
    both = HostBackend().encode_captions([long, short], {}).crossattn
    pieces = host.cond_stage_model(["red " * 75, "cat", ""])
    assert both.shape == (2, 2 * 77, WIDTH)
    assert torch.equal(both[0], torch.cat([pieces[0], pieces[1]]))
    assert torch.equal(both[1], torch.cat([pieces[1], pieces[2]]))  # as the host lengthens the shorter of two prompts


BRACKETS = ["a (red:1.3) cat", "a [red] BREAK cat", r"cat \(red\)", "((cat"]


@pytest.mark.parametrize("caption", BRACKETS)
def test_brackets_in_captions_are_text_and_count_as_such(host, caption):
    """As on the command line and in the app; prompts that the host draws have weights."""
    backend = HostBackend()
    encoded = backend.encode_captions([caption], {}).crossattn
    as_prompt = host.cond_stage_model([caption])
    assert shared.opts.emphasis == "Original"
    assert encoded.shape != as_prompt.shape or not torch.equal(encoded, as_prompt)
    tokens = host.cond_stage_model.tokenize([caption])[0]
    assert backend.count_tokens(caption, {}) == len(tokens)
    vectors = torch.stack([host.cond_stage_model.vector_of(each) for each in tokens])
    assert torch.equal(encoded[0, 1 : 1 + len(tokens)], vectors)
    assert torch.allclose(backend.pooled_text([caption]), F.normalize(vectors.sum(dim=0), dim=-1)[None])


def test_captions_count_with_the_hosts_embeddings_and_words_before_punctuation(host, embedding):
    new = {"<new1>": torch.full((3, WIDTH), 4.0)}
    backend = HostBackend()
    assert backend.count_tokens("a mycat, red", {}) == 1 + 2 + 1 + 1
    assert backend.count_tokens("a <new1>, red", new) == 1 + 3 + 1 + 1
    encoded = backend.encode_captions(["a <new1>, red"], new).crossattn
    assert torch.equal(encoded[0, 2:5], new["<new1>"])
    long = ", ".join(["red cat"] * 30)
    assert backend.count_tokens(long, {}) == 30 * 2 + 29


def test_emphasis_chosen_while_captions_are_encoded_stays(host, monkeypatch):
    def choosing(piece):
        shared.opts.data["emphasis"] = "No norm"
        return torch.zeros(77, WIDTH)

    monkeypatch.setattr(host.cond_stage_model, "_encode", choosing)
    HostBackend().encode_captions(["a cat"], {})
    assert shared.opts.data.pop("emphasis") == "No norm"


def test_the_database_is_the_same_after_a_call_that_failed(host, embedding, monkeypatch):
    before = dict(sd_hijack.model_hijack.embedding_db.ids_lookup)
    monkeypatch.setattr(host.cond_stage_model, "_encode", lambda tokens: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        HostBackend().encode_captions(["mycat"], {"mycat": torch.zeros(1, WIDTH), "other": torch.zeros(1, WIDTH)})
    database = sd_hijack.model_hijack.embedding_db
    assert database.word_embeddings == {"mycat": embedding}
    assert database.ids_lookup == before


def test_a_word_to_be_learned_starts_from_its_embedding_and_is_not_known_to_the_trainer(host, embedding):
    backend = HostBackend(["mycat"])
    assert torch.equal(backend.token_vectors("mycat"), embedding.vec)
    assert not backend.has_token("mycat")
    assert HostBackend().has_token("mycat")
    assert backend.has_token("cat")  # one token of the vocabulary
    assert backend.has_token("rare+entry")  # an entry, though text is never read as it
    assert not backend.has_token("<new1>")
    assert backend.token_vectors("").shape == (0, WIDTH)
    assert backend.token_vectors("red cat").shape == (2, WIDTH)


def test_an_embedding_whose_name_is_several_words_starts_from_its_own_vectors(host):
    made = Embedding(torch.ones(2, WIDTH), "red cat")
    made.vectors, made.shape = made.vec.shape
    sd_hijack.model_hijack.embedding_db.register_embedding_by_name(made, host, "red cat")
    backend = HostBackend(["red cat"])
    assert torch.equal(initial_vectors(backend, ["red cat"], ["red cat"], 2)["red cat"], made.vec)


def test_an_embedding_that_is_called_as_an_entry_of_the_vocabulary_starts_from_its_own_vectors(host):
    made = Embedding(torch.ones(2, WIDTH), "rare+entry")
    made.vectors, made.shape = made.vec.shape
    assert HostBackend().entry_vector("rare+entry") is not None and HostBackend().entry_vector("Rare+entry") is not None
    sd_hijack.model_hijack.embedding_db.register_embedding_by_name(made, host, "rare+entry")
    backend = HostBackend(["rare+entry"])
    assert torch.equal(initial_vectors(backend, ["rare+entry"], ["rare+entry"], 2)["rare+entry"], made.vec)


def test_latents_are_the_vaes_times_the_models_scale(host):
    posterior = HostBackend().encode_pictures(torch.full((1, 3, 16, 16), 0.5))
    assert torch.equal(posterior.mean, torch.full((1, 4, 2, 2), 0.25))
    assert torch.allclose(posterior.std, torch.full((1, 4, 2, 2), 0.1))


def test_the_unet_is_asked_through_the_host(host):
    backend = HostBackend()
    latents, context = torch.randn(2, 4, 2, 2), torch.randn(2, 77, WIDTH)
    timesteps = torch.tensor([3, 50])
    expected = host.model.diffusion_model(latents, timesteps, context)
    assert torch.equal(backend.predict(latents, timesteps, Conditioning(context)), expected)


def test_pooled_text_is_the_feature_at_the_end_of_the_caption(host):
    pooled = HostBackend().pooled_text(["a cat", "red"])
    features = host.cond_stage_model(["a cat", "red"])
    assert pooled.shape == (2, WIDTH)
    assert torch.allclose(pooled, F.normalize(features[[0, 1], [3, 2]], dim=-1))


def test_a_picture_shows_the_words_of_the_call_and_the_job_goes_on_where_it_was(host, embedding):
    backend, sampling = HostBackend(["mycat"]), Sampling(size=(16, 24))
    shared.state.job_count, shared.state.job_no = 100, 7
    [one] = backend.generate(["mycat"], [3], sampling, {"mycat": torch.full((2, WIDTH), 4.0)})
    [other] = backend.generate(["mycat"], [3], sampling, {})
    assert one.size == (16, 24)
    assert one.getpixel((0, 0)) != other.getpixel((0, 0))
    assert (shared.state.job_no, shared.state.job_count) == (7, 100)


def test_a_preview_is_drawn_with_the_settings_of_the_page(host):
    backend = HostBackend()
    backend.preview = Sampling(size=(40, 8))
    assert backend.generate(["a cat"], [1], Sampling(), {})[0].size == (40, 8)


def test_drawing_loads_no_other_checkpoint_and_a_choice_made_meanwhile_stays(host, monkeypatch):
    """A person may choose another checkpoint while a training draws its previews."""
    draw, named = processing.process_images, []

    def choosing(p):
        named.append(shared.opts.data["sd_model_checkpoint"])
        if p.seed == [2]:
            shared.opts.data["sd_model_checkpoint"] = "third"
        return draw(p)

    monkeypatch.setattr(processing, "process_images", choosing)
    monkeypatch.setitem(shared.opts.data, "sd_model_checkpoint", "other")
    backend = HostBackend()
    backend.generate(["a cat"], [1], Sampling(size=(8, 8)), {})
    assert shared.opts.data["sd_model_checkpoint"] == "other"
    backend.generate(["a cat"], [2], Sampling(size=(8, 8)), {})
    assert shared.opts.data["sd_model_checkpoint"] == "third"
    assert named == [host.sd_checkpoint_info.title] * 2


def test_the_checkpoint_is_the_chosen_one_whatever_the_picture_before_left_loaded(host, monkeypatch):
    chosen = TinyHostModel(seed=5)
    monkeypatch.setattr(sd_models, "reload_model_weights", lambda: monkeypatch.setattr(shared, "sd_model", chosen))
    assert HostBackend().model is chosen


def test_checkpointing_changes_no_gradients_and_recomputes_each_block(host, monkeypatch):
    """Of hooks beside the blocks' layers too, and of a batch without a new word."""
    backend = HostBackend()
    text = backend.encode_captions(["photo of a cat"], {})
    assert not text.crossattn.requires_grad
    backend.unet.requires_grad_(False)
    blocks = [each for each in backend.unet.modules() if hasattr(each, "transformer_blocks")]
    passes = []
    for block in blocks:  # as those of the host, which have what is computed under this name
        block._forward = lambda *inputs, own=block.forward: passes.append(1) or own(*inputs)

    def gradients():
        delta = TrainableDelta(projections(backend.unet), backend.device)
        backend.predict(torch.ones(1, 4, 2, 2), torch.tensor([10]), text).square().sum().backward()
        delta.remove()
        return {key: parameter.grad for key, parameter in delta.parameters.items()}

    plain = gradients()
    backend.gradient_checkpointing(True)
    found = gradients()
    assert len(passes) == 2 * len(blocks)
    assert all(torch.allclose(found[key], gradient) and gradient.any() for key, gradient in plain.items())
    backend.gradient_checkpointing(False)
    gradients()
    assert len(passes) == 2 * len(blocks) and not any("forward" in vars(block) for block in blocks)


def test_without_a_checkpoint_it_says_so(host, monkeypatch):
    monkeypatch.setattr(shared, "sd_model", None)
    with pytest.raises(UserError, match="no checkpoint is loaded"):
        HostBackend()
    monkeypatch.setattr(sd_models.model_data, "sd_model", None)  # the host would try to load one, and print a traceback
    monkeypatch.delattr(shared, "sd_model")
    for use in (HostBackend, lambda: create_embedding("dog", "cat", 1, overwrite=False)):
        with pytest.raises(UserError, match=r"no checkpoint yet; install the toy model, or put one into /.*models"):
            use()


TEXT_KEY, VAE_KEY = "cond_stage_model.transformer.text_model.x.bias", "first_stage_model.encoder.conv_in.bias"
PARTS = {TEXT_KEY: torch.zeros(1), VAE_KEY: torch.zeros(1)}


def test_a_checkpoint_without_a_text_encoder_is_refused_as_the_host_reads_text_with_another(host, tmp_path):
    save_file({VAE_KEY: torch.zeros(1)}, tmp_path / "pruned.safetensors")
    host.sd_checkpoint_info.filename = str(tmp_path / "pruned.safetensors")
    with pytest.raises(UserError, match=r"pruned\.safetensors has no text encoder, .*; choose the whole checkpoint"):
        HostBackend()


def test_a_checkpoint_without_a_vae_is_refused_unless_one_is_chosen(host, tmp_path):
    save_file({TEXT_KEY: torch.zeros(1)}, tmp_path / "pruned.safetensors")
    host.sd_checkpoint_info.filename = str(tmp_path / "pruned.safetensors")
    host.loaded_vae_file = None
    with pytest.raises(UserError, match=r"pruned\.safetensors has no VAE, and none is chosen; choose .* Settings, VAE"):
        HostBackend()
    host.loaded_vae_file = "vae-ft-mse.safetensors"
    HostBackend()


@pytest.mark.parametrize(("keys", "metadata"), [(("v_pred", "ztsnr"), None), ((), {"modelspec.prediction_type": "v"})])
def test_a_checkpoint_of_velocity_that_the_host_took_for_one_of_noise_is_refused(host, tmp_path, keys, metadata):
    path = tmp_path / "noob.safetensors"
    save_file({**PARTS, **{key: torch.zeros(0) for key in keys}}, path, metadata)
    host.sd_checkpoint_info.filename = str(path)
    with pytest.raises(UserError, match=r"noob.safetensors predicts velocity.* noob.yaml .*parameterization: v"):
        HostBackend()
    host.parameterization = "v"
    assert HostBackend().prediction_type == "v_prediction"


def test_a_checkpoint_that_does_not_speak_of_velocity_is_taken_as_the_host_took_it(host, tmp_path):
    save_file(PARTS, tmp_path / "plain.safetensors", {"modelspec.prediction_type": "epsilon"})
    host.sd_checkpoint_info.filename = str(tmp_path / "plain.safetensors")
    assert HostBackend().prediction_type == "epsilon"


@pytest.mark.parametrize("asked", [True, False])
def test_the_autoencoder_goes_to_ram_only_where_the_host_is_set_so(host, monkeypatch, asked):
    monkeypatch.setattr(shared.opts, "unload_models_when_training", asked)
    monkeypatch.setattr(shared, "parallel_processing_allowed", True)
    moved = []
    monkeypatch.setattr(host.first_stage_model, "to", moved.append)
    backend = HostBackend()
    backend.device = torch.device("meta")
    backend.autoencoder_aside(True)
    backend.autoencoder_aside(False)
    assert moved == ([torch.device("cpu"), torch.device("meta")] if asked else [torch.device("meta")])
    assert shared.parallel_processing_allowed is not asked
