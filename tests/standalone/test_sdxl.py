"""Stable Diffusion XL: loaded, conditioned, trained and drawn, on a tiny model with CLIP's true vocabulary."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

import tiny_checkpoints as tiny
from lib_custom_diffusion.algebra.factors import Factors
from lib_custom_diffusion.attention import projections
from lib_custom_diffusion.backend import Sampling, Sizes
from lib_custom_diffusion.data.concepts import Concept, ConceptExamples, Example
from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.injection import Injection
from lib_custom_diffusion.standalone.cli import main
from lib_custom_diffusion.standalone.diffusers_backend import DiffusersBackend
from lib_custom_diffusion.standalone.models import load_model
from lib_custom_diffusion.standalone.single_file import load_checkpoint
from lib_custom_diffusion.training import checkpoints
from lib_custom_diffusion.training.config import TrainingConfig
from lib_custom_diffusion.training.loop import Trainer
from offline import offline  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("offline")
BOTH = 2 * tiny.WIDTH


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("xl") / "xl.safetensors"
    save_file({name: value.clone() for name, value in tiny.sdxl().items()}, path)
    # The sizes that tell a picture's side; of a checkpoint without a .yaml it is 1024.
    path.with_suffix(".yaml").write_text(
        "model:\n  params:\n    image_size: 8\n    network_config:\n      params: {}\n"
    )
    return path


@pytest.fixture(scope="module")
def backend(checkpoint: Path) -> DiffusersBackend:
    return load_model(str(checkpoint))


def test_a_checkpoint_is_the_model_it_was_made_of(checkpoint: Path) -> None:
    loaded, original = load_checkpoint(checkpoint), tiny.sdxl_pipeline()
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        ours, theirs = getattr(loaded, part).state_dict(), getattr(original, part).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert loaded.vae.config.scaling_factor == 0.13025
    assert loaded.tokenizer.pad_token_id == 49407 and loaded.tokenizer_2.pad_token_id == 0


def test_without_a_yaml_its_side_is_1024_and_its_keys_say_what_it_predicts(tmp_path: Path) -> None:
    keys = {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}
    save_file({name: value.clone() for name, value in (tiny.sdxl() | keys).items()}, tmp_path / "noob.safetensors")
    backend = load_model(str(tmp_path / "noob.safetensors"))
    assert backend.resolution == 1024 and backend.prediction_type == "v_prediction"
    assert backend.alphas_cumprod[-1] == 0
    backend = load_model(str(tmp_path / "noob.safetensors"), prediction_type="epsilon")
    assert backend.alphas_cumprod[-1] > 0.004


def test_a_yaml_of_sgms_says_velocity_by_its_denoiser(tmp_path: Path) -> None:
    save_file({name: value.clone() for name, value in tiny.sdxl().items()}, tmp_path / "a.safetensors")
    (tmp_path / "a.yaml").write_text(
        "model:\n  params:\n    network_config:\n      params: {}\n    denoiser_config:\n      params:\n"
        "        scaling_config: {target: sgm.modules.diffusionmodules.denoiser_scaling.VScaling}\n"
    )
    assert load_checkpoint(tmp_path / "a.safetensors").scheduler.config.prediction_type == "v_prediction"


@pytest.mark.parametrize(
    ("left_out", "width", "said"),
    [
        ("embedders.0.", BOTH, "lacks the first of its two text encoders"),
        ("embedders.1.", BOTH, "lacks the second of its two text encoders"),
        ("embedders.", BOTH, "has no text encoders, which would tell what kind it is"),
        ("embedders.", 2048, "has no text encoders: they were left out"),  # the width of the text tells SDXL
    ],
)
def test_a_file_without_its_text_encoders_is_refused(left_out: str, width: int, said: str, tmp_path: Path) -> None:
    left = {n: v for n, v in tiny.sdxl().items() if not n.startswith(f"conditioner.{left_out}")}
    wide = {n: F.pad(v, (0, width - BOTH)) for n, v in left.items() if n.endswith("attn2.to_k.weight")}
    save_file({name: value.clone() for name, value in (left | wide).items()}, tmp_path / "pruned.safetensors")
    with pytest.raises(UserError, match=f"pruned.safetensors {said}"):
        load_checkpoint(tmp_path / "pruned.safetensors")


def test_conditioning_is_that_of_diffusers_pipeline(backend: DiffusersBackend) -> None:
    captions = ["a cat on a red background", "two dogs"]
    crossattn, _, pooled, _ = tiny.sdxl_pipeline().encode_prompt(
        captions, device="cpu", do_classifier_free_guidance=False
    )
    ours = backend.encode_captions(captions, {})
    assert torch.allclose(ours.crossattn, crossattn, atol=1e-5)
    assert ours.vector is not None and torch.allclose(ours.vector[:, :-6], pooled, atol=1e-5)
    assert ours.vector[:, -6:].tolist() == [[64, 64, 0, 0, 64, 64]] * 2


def test_a_long_caption_is_read_in_pieces_by_both_encoders_and_the_first_is_pooled(backend: DiffusersBackend) -> None:
    pieces = [backend.encode_captions([text], {}) for text in ("cat " * 75, "two dogs")]
    long = backend.encode_captions(["cat " * 75 + "two dogs"], {})
    assert torch.allclose(long.crossattn, torch.cat([each.crossattn for each in pieces], dim=1), atol=1e-5)
    assert long.vector is not None and pieces[0].vector is not None
    assert torch.allclose(long.vector, pieces[0].vector, atol=1e-5)
    [picture] = backend.generate(["cat " * 75 + "two dogs"], [0], Sampling(steps=1, size=(64, 64)), {})
    assert picture.size == (64, 64)


def test_sizes_go_to_the_unet_in_its_order_height_before_width(backend: DiffusersBackend) -> None:
    sizes = Sizes(original=(1200, 900), corner=(30, 7), target=(64, 128))
    ours = backend.encode_captions(["a cat"], {}, [sizes])
    assert ours.vector is not None and ours.vector[0, -6:].tolist() == [900, 1200, 7, 30, 128, 64]
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    step = torch.tensor([500])
    added = {"text_embeds": ours.vector[:, :-6], "time_ids": torch.tensor([[900.0, 1200, 7, 30, 128, 64]])}
    expected = tiny.sdxl_pipeline().unet(latents, step, ours.crossattn, added_cond_kwargs=added).sample
    assert torch.allclose(backend.predict(latents, step, ours), expected, atol=1e-5)
    other = backend.predict(latents, step, backend.encode_captions(["a cat"], {}))
    assert not torch.allclose(other, expected, atol=1e-4)


def test_a_word_has_vectors_of_both_text_encoders(backend: DiffusersBackend) -> None:
    pipeline = tiny.sdxl_pipeline()
    tables = [encoder.get_input_embeddings().weight for encoder in (pipeline.text_encoder, pipeline.text_encoder_2)]
    assert torch.equal(backend.token_vectors("cat"), torch.cat([table[2368] for table in tables])[None])
    entry = backend.entry_vector("ktn")
    assert entry is not None and torch.equal(entry, torch.cat([table[42170] for table in tables])[None])
    vectors = {"<new1>": backend.token_vectors("cat")}
    new, known = backend.encode_captions(["a <new1>, red"], vectors), backend.encode_captions(["a cat, red"], {})
    assert torch.allclose(new.crossattn, known.crossattn, atol=1e-5)
    assert new.vector is not None and known.vector is not None
    assert torch.allclose(new.vector, known.vector, atol=1e-5)


def test_gradients_reach_both_vectors_every_projection_and_nothing_else(backend: DiffusersBackend) -> None:
    from lib_custom_diffusion.injection import TrainableDelta

    vector = backend.token_vectors("cat").requires_grad_(True)
    layers = projections(backend.unet)
    delta = TrainableDelta(layers, backend.device)
    try:
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        conditioning = backend.encode_captions(["a <new1>"], {"<new1>": vector})
        backend.predict(latents, torch.tensor([500]), conditioning).square().mean().backward()
    finally:
        delta.remove()
    assert vector.grad is not None
    assert vector.grad[0, : tiny.WIDTH].any() and vector.grad[0, tiny.WIDTH :].any()
    assert len(delta.parameters) == len(layers) == 2 * (2 + 2 + 4)  # two deep in one down block, mid, and two of one up
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in delta.parameters.values())
    pipeline = backend.pipeline
    for part in (pipeline.unet, pipeline.text_encoder, pipeline.text_encoder_2, pipeline.vae):
        assert all(parameter.grad is None for parameter in part.parameters())


def trainer(backend: DiffusersBackend, folder: Path, steps: int, resume: Path | None = None) -> Trainer:
    mean = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(5))
    sizes = Sizes((80, 64), (8, 0), (64, 64))
    example = Example(mean, torch.full_like(mean, 0.01), torch.ones(1, 8, 8), "photo of a <new1> cat", sizes)
    config = TrainingConfig(
        learning_rate="2e-2", embedding_learning_rate="2e-2", max_train_steps=steps, train_batch_size=4,
        checkpointing_steps=5, prior="none", snr_gamma=None,
    )  # fmt: skip
    concept = Concept("photo of a <new1> cat", Path("pictures"), "cat")
    return Trainer(backend, [concept], [ConceptExamples([example], [])], config, folder, "xl", resume)


def test_each_picture_of_a_batch_is_conditioned_on_its_own_sizes(backend: DiffusersBackend, tmp_path: Path) -> None:
    run = trainer(backend, tmp_path, 1)
    first = run.examples[0].instance[0]
    second = replace(first, sizes=Sizes((512, 256), (0, 9), (64, 64)))
    vector = run.conditionings.of([first, second, first]).vector
    assert vector is not None
    assert vector[:, -6:].tolist() == [
        [64, 80, 0, 8, 64, 64], [256, 512, 9, 0, 64, 64], [64, 80, 0, 8, 64, 64]
    ]  # fmt: skip


def test_deltas_of_sdxl_are_factors_of_rank_32_unless_asked_otherwise(
    backend: DiffusersBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ranks(folder: str, **settings: int) -> set[int | None]:
        run = trainer(backend, tmp_path / folder, 1)
        run.config = replace(run.config, **settings)
        return {entry.us.shape[1] if isinstance(entry, Factors) else None for entry in run.run().delta.entries.values()}

    assert ranks("another") == {None}
    monkeypatch.setattr(backend, "architecture", "sdxl")
    assert ranks("default") == {32}
    assert ranks("two", rank=2) == {2}
    assert ranks("full", rank=0) == {None}


@torch.no_grad()
def error(backend: DiffusersBackend, delta: Delta, example: Example) -> float:
    """Of the noise that is predicted, at the same 16 noises and timesteps each time."""
    generator = torch.Generator().manual_seed(9)
    noise, timesteps = torch.randn(16, 4, 8, 8, generator=generator), torch.arange(20, 1000, 62)
    signal = backend.alphas_cumprod[timesteps][:, None, None, None]
    noisy = signal.sqrt() * example.mean + (1 - signal).sqrt() * noise
    conditioning = backend.encode_captions([example.caption] * 16, delta.embeddings, [example.sizes] * 16)
    with Injection(backend.unet, [(delta, 1.0)]):
        return F.mse_loss(backend.predict(noisy, timesteps, conditioning), noise).item()


def test_loss_falls_on_one_picture_and_a_run_that_was_stopped_goes_on_to_the_same_bytes(
    backend: DiffusersBackend, tmp_path: Path
) -> None:
    whole = trainer(backend, tmp_path / "whole", 30)
    begun = error(backend, Delta({}, {"<new1>": backend.token_vectors("ktn")}), whole.examples[0].instance[0])
    learned = whole.run().delta
    assert error(backend, learned, whole.examples[0].instance[0]) < 0.95 * begun
    stopped = trainer(backend, tmp_path / "parts", 30)
    stopped.run(interrupted=lambda: stopped.step == 12)
    resume = checkpoints.resolve_checkpoint(tmp_path / "parts", "latest")
    trainer(backend, tmp_path / "parts", 30, resume).run()
    name = "xl.delta.safetensors"
    assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert Delta.load(tmp_path / "whole" / name).embeddings["<new1>"].shape == (1, BOTH)


def test_velocity_with_zero_terminal_snr_trains_with_every_weighting_and_draws(tmp_path: Path) -> None:
    keys = {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}
    save_file({name: value.clone() for name, value in (tiny.sdxl() | keys).items()}, tmp_path / "noob.safetensors")
    backend = load_model(str(tmp_path / "noob.safetensors"))
    run = trainer(backend, tmp_path / "out", 3)
    run.config = replace(run.config, snr_gamma=5.0)
    last = torch.full((), len(backend.alphas_cumprod) - 1)  # the step that is nothing but noise
    draw = run._draw
    run._draw = lambda: [  # type: ignore[method-assign]
        [replace(batch, timesteps=torch.where(torch.arange(len(batch.timesteps)) == 0, last, batch.timesteps))]
        for [batch] in draw()
    ]
    delta = run.run().delta
    assert all(torch.isfinite(vectors).all() for vectors in delta.embeddings.values())
    with Injection(backend.unet, [(delta, 1.0)]):
        sampling = Sampling(steps=3, size=(64, 64))
        picture = np.asarray(backend.generate(["a <new1> cat"], [0], sampling, delta.embeddings)[0])
    assert picture.std() > 1


def test_pictures_are_those_of_diffusers_pipeline_and_come_back_after_a_delta(backend: DiffusersBackend) -> None:
    def draw() -> np.ndarray:
        return np.asarray(backend.generate(["a cat"], [3], Sampling(steps=3), {})[0], dtype=int)

    before = draw()
    reference = load_like(backend)(
        "a cat", num_inference_steps=3, guidance_scale=6.0, generator=torch.Generator().manual_seed(3),
        height=64, width=64, output_type="np",
    ).images[0]  # fmt: skip
    assert np.abs(before - reference * 255).max() <= 2
    layers = projections(backend.unet)
    delta = Delta({key: torch.full(layer.shape, 0.3) for key, layer in layers.items()})
    with Injection(backend.unet, [(delta, 1.0)]):
        assert np.abs(draw() - before).max() > 2
    assert np.array_equal(draw(), before)


def load_like(backend: DiffusersBackend):
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline(**tiny.sdxl_pipeline().components, add_watermarker=False)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(backend.pipeline.scheduler.config)
    pipeline.vae.register_to_config(scaling_factor=0.13025)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_a_folder_loads_as_the_file_does(tmp_path: Path, backend: DiffusersBackend) -> None:
    tiny.sdxl_pipeline().save_pretrained(tmp_path / "xl")
    folder = load_model(str(tmp_path / "xl"))
    assert folder.architecture == backend.architecture == f"crossattn-8x{BOTH}"
    captions = ["a cat", "a dog"]
    ours, theirs = (each.encode_captions(captions, {}) for each in (folder, backend))
    assert torch.equal(ours.crossattn, theirs.crossattn)


def test_the_commands_train_and_draw(checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert main([
        "train", "--model", str(checkpoint), "--instance_data_dir", str(pictures), "--instance_prompt", "a <new1> cat",
        "--class_prompt", "cat", "--output_dir", str(output), "--max_train_steps", "2", "--train_batch_size", "2",
        "--hflip", "--prior_captions", str(captions(tmp_path)),
    ]) == 0  # fmt: skip
    delta = Delta.load(output / "new1.delta.safetensors")
    assert all(entry.any() for entry in delta.entries.values())
    assert main([
        "generate", "--model", str(checkpoint), "--prompt", f"a <new1> cat <delta:{output / 'new1.delta.safetensors'}>",
        "--num_images", "1", "--num_inference_steps", "2", "--output", str(tmp_path / "drawn"),
    ]) == 0  # fmt: skip
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 1


def captions(folder: Path) -> Path:
    (folder / "captions.txt").write_text("a dog\na red house\n")
    return folder / "captions.txt"
