"""The Backend on diffusers: new words without touching the vocabulary, and the same numbers as diffusers'."""

import numpy as np
import pytest
import torch

from lib_custom_diffusion.attention import projections
from lib_custom_diffusion.backend import Sampling
from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.injection import Injection, TrainableDelta
from lib_custom_diffusion.standalone.diffusers_backend import DiffusersBackend
from tiny_pipeline import WIDTH, stable_diffusion_2


@pytest.fixture(scope="module")
def backend() -> DiffusersBackend:
    return DiffusersBackend(stable_diffusion_2(), "tiny")


def test_what_a_pipeline_says_of_itself(backend: DiffusersBackend) -> None:
    assert backend.architecture == f"crossattn-4x{WIDTH}"
    assert backend.prediction_type == "v_prediction"
    assert backend.resolution == 64
    assert backend.alphas_cumprod.shape == (1000,)
    assert len(projections(backend.unet)) == 8
    assert not any(parameter.requires_grad for parameter in backend.unet.parameters())


def test_captions_without_new_words_are_encoded_as_by_the_pipeline(backend: DiffusersBackend) -> None:
    captions = ["a cat on a red background", ""]
    expected, _ = backend.pipeline.encode_prompt(captions, "cpu", 1, False)
    assert torch.equal(backend.encode_captions(captions, {}).crossattn, expected)


def test_a_new_word_with_a_known_words_vector_reads_as_that_word(backend: DiffusersBackend) -> None:
    vectors = {"<new1>": backend.token_vectors("cat")}
    new = backend.encode_captions(["photo of a <new1> on a hill", "a <new1>, a dog"], vectors).crossattn
    known = backend.encode_captions(["photo of a cat on a hill", "a cat, a dog"], {}).crossattn
    assert torch.allclose(new, known, atol=1e-6)


def test_several_vectors_stand_for_as_many_words(backend: DiffusersBackend) -> None:
    vectors = {"<new1>": backend.token_vectors("red cat")}
    new = backend.encode_captions(["a <new1> here"], vectors).crossattn
    assert torch.allclose(new, backend.encode_captions(["a red cat here"], {}).crossattn, atol=1e-6)


def test_only_whole_words_are_new_words_and_the_longest_wins(backend: DiffusersBackend) -> None:
    vectors = {"new": backend.token_vectors("cat"), "new1": backend.token_vectors("dog")}
    encoded = backend.encode_captions(["a new new1 newer renew"], vectors).crossattn
    assert torch.allclose(encoded, backend.encode_captions(["a cat dog newer renew"], {}).crossattn, atol=1e-6)


def test_gradients_reach_the_vectors_and_nothing_else(backend: DiffusersBackend) -> None:
    vector = backend.token_vectors("cat").requires_grad_(True)
    backend.encode_captions(["a <new1>"], {"<new1>": vector}).crossattn.sum().backward()
    assert vector.grad is not None and vector.grad.any()
    assert all(parameter.grad is None for parameter in backend.pipeline.text_encoder.parameters())


def test_long_captions_are_encoded_in_pieces_of_75_and_short_ones_beside_them_get_empty_pieces(
    backend: DiffusersBackend,
) -> None:
    vectors = {"<new1>": backend.token_vectors("dog")}
    long, short = backend.encode_captions(["cat " * 80 + "<new1>", "a dog"], vectors).crossattn
    pieces = [backend.pipeline.encode_prompt([text], "cpu", 1, False)[0] for text in ("cat " * 75, "cat " * 5 + "dog")]
    alone = [backend.pipeline.encode_prompt([text], "cpu", 1, False)[0] for text in ("a dog", "")]
    assert torch.allclose(long, torch.cat(pieces, dim=1)[0], atol=1e-6)
    assert torch.allclose(short, torch.cat(alone, dim=1)[0], atol=1e-6)


def test_of_captions_in_pieces_the_first_counts_for_nearness(backend: DiffusersBackend) -> None:
    long, first, other = backend.pooled_text(["cat " * 75 + "two red dogs", "cat " * 75, "two red dogs"])
    assert torch.allclose(long, first, atol=1e-6) and not torch.allclose(long, other, atol=1e-2)


def test_pictures_show_what_stands_beyond_75_tokens(backend: DiffusersBackend) -> None:
    def draw(prompt: str, negative: str) -> np.ndarray:
        sampling = Sampling(steps=2, negative_prompt=negative)
        return np.asarray(backend.generate([prompt], [0], sampling, {})[0], dtype=int)

    plain = draw("cat " * 75, "dog")
    assert np.abs(draw("cat " * 75 + "red hill", "dog") - plain).max() > 1
    assert np.abs(draw("cat " * 75, "dog " * 75 + "red hill") - plain).max() > 1


def test_vocabulary_and_its_words(backend: DiffusersBackend) -> None:
    assert backend.has_token("cat")
    assert not backend.has_token("<new1>")
    assert backend.token_vectors("cat dog").shape == (2, WIDTH)
    assert backend.token_vectors("").shape == (0, WIDTH)


def test_near_captions_are_near_and_features_have_unit_norm(backend: DiffusersBackend) -> None:
    a, same, other = backend.pooled_text(["a cat", "a cat", "two dogs on a red hill"])
    assert a.norm().item() == pytest.approx(1, abs=1e-5)
    assert (a @ same).item() == pytest.approx(1, abs=1e-5)
    assert (a @ other).item() < 0.999


def test_latents_are_the_vaes_times_its_scale(backend: DiffusersBackend) -> None:
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    posterior = backend.pipeline.vae.encode(pixels).latent_dist
    found = backend.encode_pictures(pixels)
    assert torch.allclose(found.mean, posterior.mean * 0.18215)
    assert torch.allclose(found.std, posterior.std * 0.18215)


def test_pictures_depend_on_their_own_seed_not_on_their_batch(backend: DiffusersBackend) -> None:
    def draw(seeds: list[int], batch_size: int) -> np.ndarray:
        pictures = backend.generate(["a cat"] * len(seeds), seeds, Sampling(steps=3, batch_size=batch_size), {})
        return np.stack([np.asarray(picture, dtype=int) for picture in pictures])

    together, alone = draw([1, 2, 1], 3), draw([2], 1)
    rounding = 2  # of 255: sums are taken in another order in another batch
    assert np.abs(together[0] - together[2]).max() <= rounding
    assert np.abs(together[1] - alone[0]).max() <= rounding
    assert np.abs(together[0] - together[1]).max() > 10 * rounding


def test_picture_size_must_be_a_multiple_of_eight(backend: DiffusersBackend) -> None:
    assert backend.generate(["a"], [0], Sampling(steps=1, size=(72, 64)), {})[0].size == (72, 64)
    with pytest.raises(UserError, match="size must be a multiple of 8 pixels, up to 16,384, not 70"):
        backend.generate(["a"], [0], Sampling(steps=1, size=(70, 64)), {})


def test_gradient_checkpointing_changes_no_gradient(backend: DiffusersBackend) -> None:
    def gradients(on: bool) -> list[torch.Tensor]:
        backend.gradient_checkpointing(on)
        delta = TrainableDelta(projections(backend.unet), backend.device)
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        output = backend.predict(latents, torch.tensor([500]), backend.encode_captions(["a cat"], {}))
        output.square().mean().backward()
        delta.remove()
        backend.gradient_checkpointing(False)
        return [parameter.grad for parameter in delta.parameters.values() if parameter.grad is not None]

    for kept, recomputed in zip(gradients(False), gradients(True), strict=True):
        assert torch.allclose(kept, recomputed, atol=1e-6)


def test_the_autoencoder_aside_frees_the_accelerators_memory_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, moved = DiffusersBackend(stable_diffusion_2(), "tiny"), []
    monkeypatch.setattr(backend.pipeline.vae, "to", moved.append)
    backend._weight = torch.empty(0, device="meta")  # stands in for a GPU
    backend.autoencoder_aside(True)
    backend.autoencoder_aside(False)
    assert moved == ["cpu", torch.device("meta")]


def test_only_passes_with_gradients_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = DiffusersBackend(stable_diffusion_2(), "tiny")
    passes = []

    def compiled(unet: torch.nn.Module) -> object:
        return lambda *inputs, **named: passes.append(torch.is_grad_enabled()) or unet(*inputs, **named)

    monkeypatch.setattr(torch, "compile", compiled)

    def predict() -> torch.Tensor:
        conditioning = backend.encode_captions(["a cat"], {})
        return backend.predict(torch.zeros(1, 4, 8, 8), torch.tensor([5]), conditioning)

    expected = predict()
    backend.compile(True)
    assert torch.equal(predict(), expected) and passes == [True]
    with torch.no_grad():
        predict()
        backend.generate(["a cat"], [1], Sampling(steps=1), {})
    backend.compile(False)
    predict()
    assert passes == [True]


def test_large_pictures_are_decoded_one_by_one_to_the_same_pictures(
    backend: DiffusersBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw() -> list[np.ndarray]:
        return [np.asarray(each, int) for each in backend.generate(["a cat", "a dog"], [1, 2], Sampling(steps=2), {})]

    together, vae, decoded = draw(), backend.pipeline.vae, []
    decode = vae.decode
    monkeypatch.setattr(vae, "decode", lambda latents: decoded.append(len(latents)) or decode(latents))
    monkeypatch.setattr("lib_custom_diffusion.standalone.diffusers_backend._DECODED_CELLS", 1)
    alone = draw()
    assert decoded == [1, 1]
    assert all(np.abs(one - other).max() <= 1 for one, other in zip(together, alone, strict=True))


def test_numbers_that_run_away_are_no_picture(backend: DiffusersBackend) -> None:
    layers = projections(backend.unet, "crossattn_kv")
    entries = {key: torch.full_like(layer.module.weight, 1e38) for key, layer in layers.items()}
    with Injection(backend.unet, [(Delta(entries), 1e5)]), pytest.raises(UserError, match="lower the weights of delta"):
        backend.generate(["a cat"], [0], Sampling(steps=1), {})
