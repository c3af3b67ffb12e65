"""Checkpoints of one file without a network: everything in them is found, and nothing is asked of anybody."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

import tiny_checkpoints as tiny
from lib_custom_diffusion.attention import projections
from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.standalone import toy
from lib_custom_diffusion.standalone.cli import main
from lib_custom_diffusion.standalone.models import load_model
from lib_custom_diffusion.standalone.other_names import under_ldm_names
from lib_custom_diffusion.standalone.single_file import load_checkpoint, measured_prediction_type
from offline import offline  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("offline")
KINDS = {"sd1": (tiny.sd1, tiny.stable_diffusion_1), "sd2": (tiny.sd2, tiny.stable_diffusion_2)}


def saved(path: Path, tensors: tiny.Tensors, **metadata: str) -> Path:
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, metadata or None)
    return path


def parted(tensors: tiny.Tensors, *prefixes: str) -> tiny.Tensors:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(prefixes)}


def assert_same_tensors(loaded: StableDiffusionPipeline, original: StableDiffusionPipeline) -> None:
    second = ["text_encoder_2"] if hasattr(original, "text_encoder_2") else []
    for part in ("unet", "vae", "text_encoder", *second):
        ours, theirs = getattr(loaded, part).state_dict(), getattr(original, part).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key].to(ours[key].dtype)) for key in ours)


def answers(pipeline: StableDiffusionPipeline) -> list[torch.Tensor]:
    """What each part makes of the same inputs: told by its tensors, and by heads, activations and padding."""
    generator = torch.Generator().manual_seed(0)
    latents, pixels = torch.randn(1, 4, 4, 4, generator=generator), torch.randn(1, 3, 32, 32, generator=generator)
    text = pipeline.encode_prompt(["a cat", "two dogs"], "cpu", 1, False)[0]
    noise = pipeline.unet(latents, torch.tensor([500]), encoder_hidden_states=text[:1]).sample
    return [text, noise, pipeline.vae.encode(pixels).latent_dist.mean, pipeline.vae.decode(latents).sample]


def same_answers(loaded: StableDiffusionPipeline, original: StableDiffusionPipeline) -> bool:
    with torch.no_grad():
        return all(torch.allclose(ours, theirs, atol=1e-5) for ours, theirs in zip(answers(loaded), answers(original)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_is_the_model_it_was_made_of(kind: str, tmp_path: Path) -> None:
    tensors, original = KINDS[kind]
    loaded = load_checkpoint(saved(tmp_path / "a.safetensors", tensors()))
    assert_same_tensors(loaded, original())
    assert (
        loaded.tokenizer(["a photo of a cat"], padding="max_length").input_ids
        == original().tokenizer(["a photo of a cat"], padding="max_length").input_ids
    )
    assert loaded.scheduler.config.prediction_type == "epsilon"
    assert loaded.scheduler.alphas_cumprod[[0, -1]].tolist() == pytest.approx([0.99915, 0.0047], rel=1e-2)
    assert loaded.vae.config.scaling_factor == 0.18215


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_files(kind: str, tmp_path: Path) -> None:
    tensors, original = KINDS[kind]
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors().items()}
    loaded = load_checkpoint(saved(tmp_path / "a.safetensors", halves))
    assert loaded.vae.dtype == loaded.text_encoder.dtype == torch.float16
    assert_same_tensors(loaded.to(torch.float16), original())


def test_averaged_weights_beside_are_left_aside_as_in_the_webui(tmp_path: Path) -> None:
    tensors = tiny.sd1()
    averaged = {
        f"model_ema.{name.removeprefix('model.').replace('.', '')}": tensor + 1
        for name, tensor in tensors.items() if name.startswith("model.")
    }  # fmt: skip
    assert_same_tensors(
        load_checkpoint(saved(tmp_path / "a.safetensors", tensors | averaged)), tiny.stable_diffusion_1()
    )


@pytest.mark.parametrize("nested", [True, False])
def test_ckpt_files_nested_and_flat(nested: bool, tmp_path: Path) -> None:
    content = {"state_dict": tiny.sd1(), "global_step": 470000} if nested else tiny.sd1()
    torch.save(content, tmp_path / "a.ckpt")
    assert_same_tensors(load_checkpoint(tmp_path / "a.ckpt"), tiny.stable_diffusion_1())


@pytest.mark.parametrize(
    ("plain", "wrapped"),
    [
        (r"^", "module."), (r"^", "state_dict."), (r"^", "_orig_mod."), (r"^", "module._orig_mod."),
        (r"^model\.", "model._orig_mod."), (r"(?=weight$)", "_orig_mod."),
    ],
)  # fmt: skip
def test_names_of_a_model_that_was_wrapped_while_it_was_saved(plain: str, wrapped: str, tmp_path: Path) -> None:
    """By PyTorch's DistributedDataParallel and torch.compile."""
    tensors = {re.sub(plain, wrapped, name): value for name, value in tiny.sd1().items()}
    assert_same_tensors(load_checkpoint(saved(tmp_path / "a.safetensors", tensors)), tiny.stable_diffusion_1())


@pytest.mark.parametrize("part", ["model", "module"])
def test_other_names_of_what_is_nested_in_a_ckpt(part: str, tmp_path: Path) -> None:
    torch.save({part: tiny.sd1(), "epoch": 3}, tmp_path / "a.ckpt")
    assert_same_tensors(load_checkpoint(tmp_path / "a.ckpt"), tiny.stable_diffusion_1())


def test_older_names_of_the_text_encoder_and_those_of_sd_turbo(tmp_path: Path) -> None:
    older = {name.replace(".transformer.text_model.", ".transformer."): value for name, value in tiny.sd1().items()}
    assert_same_tensors(load_checkpoint(saved(tmp_path / "a.safetensors", older)), tiny.stable_diffusion_1())
    turbo = {
        name.replace("cond_stage_model.model.", "conditioner.embedders.0.model."): value
        for name, value in tiny.sd2().items()
    }
    assert_same_tensors(load_checkpoint(saved(tmp_path / "b.safetensors", turbo)), tiny.stable_diffusion_2())


def test_every_way_to_train_on_one_file_works_without_a_network(
    tmp_path: Path,
    pictures: Path,
    offline: list[str],  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = saved(tmp_path / "my model (v1).SAFETENSORS", tiny.sd1())
    output = tmp_path / "out"
    assert main([
        "train", "--model", str(path), "--instance_data_dir", str(pictures), "--instance_prompt", "a <new1> cat",
        "--output_dir", str(output), "--max_train_steps", "1", "--resolution", "64", "--prior", "none",
        "--train_batch_size", "1", "--vae", str(_ldm_vae(tmp_path)), "--prediction_type", "epsilon",
    ]) == 0  # fmt: skip
    assert offline == []
    # The command to try it with has what was said of the model.
    assert f"--vae {tmp_path / 'vae.safetensors'} --prediction_type epsilon --prompt" in capsys.readouterr().out
    assert Delta.load(output / "new1.delta.safetensors").embeddings["<new1>"].shape == (1, tiny.WIDTH)


@pytest.mark.parametrize(
    ("left_out", "said"),
    [
        ("first_stage_model.", "has no VAE; give one that belongs to the model by --vae FILE"),
        ("cond_stage_model.", "has no text encoder"),
        ("first_stage_model.decoder.mid.block_1.conv1.bias", r"VAE of .* is incomplete: it lacks decoder\.mid_block"),
        ("model.diffusion_model.out.2.bias", r"the UNet of .* is incomplete: it lacks conv_out\.bias"),
        ("cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc1.bias", "the text encoder of .* lacks"),
    ],
)
def test_a_file_that_lacks_a_part_is_refused_by_its_name(left_out: str, said: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "pruned.safetensors", parted(tiny.sd1(), left_out))
    with pytest.raises(UserError, match=said):
        load_checkpoint(path)


UNET_KEY = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({UNET_KEY: torch.ones(64, 64, dtype=torch.int8)}, r"UNet of .* is quantized \(torch\.int8\)"),
        ({UNET_KEY: torch.ones(2048, 1, dtype=torch.uint8)}, "is quantized"),
        ({UNET_KEY: torch.ones(64)}, "the UNet of .* is incomplete, or of another kind"),
        ({"model.diffusion_model.out.2.weight": torch.tensor(1.0)}, "the UNet of .* is incomplete, or of another kind"),
        ({UNET_KEY[:-6] + "scale_weight": torch.ones(())}, r"such as model.*scale_weight: .* or quantized"),
        ({"model.diffusion_model.position_net.linears.0.bias": torch.ones(4)}, "has parts that .* of another kind"),
        ({UNET_KEY: torch.zeros(64, 64)}, r"UNet of .* is torn: .*to_k\.weight .* is nothing but zeros"),
        ({"first_stage_model.encoder.conv_in.weight": torch.zeros(32, 3, 3, 3)}, "the VAE of .* is torn"),
    ],
)
def test_weights_that_would_be_read_as_something_else_are_refused(
    changed: dict[str, torch.Tensor], said: str, tmp_path: Path
) -> None:
    """Quantized, of a model with more parts, and zeros where a download had only put room aside."""
    with pytest.raises(UserError, match=said):
        load_checkpoint(saved(tmp_path / "a.safetensors", tiny.sd1() | changed))


def test_layers_that_are_zero_before_any_training_are_not_torn(tmp_path: Path) -> None:
    """As LDM's code makes them."""
    ends = (".out.2.weight", "proj_out.weight", "out_layers.3.weight")
    new = {
        name: torch.zeros_like(each) if name.endswith(ends) and name.startswith("model.") else each
        for name, each in tiny.sd1().items()
    }
    assert not load_checkpoint(saved(tmp_path / "a.safetensors", new)).unet.conv_out.weight.any()


def test_a_text_encoder_of_another_kind_is_not_called_left_out(tmp_path: Path) -> None:
    other = parted(tiny.sd1(), "cond_stage_model.") | {"cond_stage_model.transformer.token_emb.weight": torch.ones(4)}
    with pytest.raises(UserError, match="has a text encoder of another kind"):
        load_checkpoint(saved(tmp_path / "a.safetensors", other))


def _ldm_vae(folder: Path) -> Path:
    return saved(folder / "vae.safetensors", own_vae())


def _webui_vae(folder: Path) -> Path:
    """As vae-ft-mse-840000-ema-pruned.ckpt: nested, without a prefix, with the loss of its training."""
    own = {
        name.removeprefix("first_stage_model."): value
        for name, value in tiny.sd1().items() if name.startswith("first_stage_model.")
    }  # fmt: skip
    torch.save({"state_dict": own | {"loss.logvar": torch.zeros(())}}, folder / "vae.pt")
    return folder / "vae.pt"


def _diffusers_vae(folder: Path) -> Path:
    tiny.stable_diffusion_1().vae.save_pretrained(folder / "vae")
    return folder / "vae"


def _older_diffusers_vae(folder: Path) -> Path:
    """As sd-vae-ft-mse's diffusion_pytorch_model.safetensors names the attentions."""
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    named = {}
    for name, value in tiny.stable_diffusion_1().vae.state_dict().items():
        for new, older in old.items():
            name = name.replace(new, older)
        named[name] = value
    return saved(folder / "diffusion_pytorch_model.safetensors", named)


@pytest.mark.parametrize("made", [_ldm_vae, _webui_vae, _diffusers_vae, _older_diffusers_vae])
def test_a_vae_by_itself_takes_the_place_of_the_one_left_out(made: Callable[[Path], Path], tmp_path: Path) -> None:
    path = saved(tmp_path / "pruned.safetensors", parted(tiny.sd1(), "first_stage_model."))
    assert_same_tensors(load_checkpoint(path, made(tmp_path)), tiny.stable_diffusion_1())


def test_a_vae_of_other_latents_or_none_at_all_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.safetensors", tiny.sd1())
    flux = {
        "encoder.conv_in.weight": torch.zeros(32, 3, 3, 3), "decoder.conv_in.weight": torch.zeros(32, 16, 3, 3),
        "decoder.conv_out.weight": torch.zeros(3, 32, 3, 3),
        "decoder.up.0.block.0.conv1.weight": torch.zeros(32, 32, 3, 3),
    }  # fmt: skip
    with pytest.raises(UserError, match="latents have 16 channels, not 4"):
        load_checkpoint(path, saved(tmp_path / "flux.safetensors", flux))
    with pytest.raises(UserError, match=r"lora.safetensors has no VAE"):
        load_checkpoint(path, saved(tmp_path / "lora.safetensors", {"lora_unet_x": torch.zeros(1)}))
    with pytest.raises(UserError, match="there is no VAE"):
        load_checkpoint(path, tmp_path / "missing.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no VAE"):
        load_checkpoint(path, tmp_path / "empty")
    with pytest.raises(UserError, match=r"holds 4 files; give the one that is the VAE, such as a\.safetensors"):
        load_checkpoint(path, saved(tmp_path / "z.safetensors", flux).parent)


@pytest.mark.parametrize(
    ("keys", "metadata", "yaml", "option", "predicts"),
    [
        ({}, {}, "", None, "epsilon"),
        ({"v_pred": torch.tensor([])}, {}, "", None, "v_prediction"),
        ({}, {"modelspec.prediction_type": "v"}, "", None, "v_prediction"),
        ({}, {"modelspec.prediction_type": "epsilon"}, "", None, "epsilon"),
        ({}, {"modelspec.prediction_type": "V-Prediction"}, "", None, "v_prediction"),
        ({}, {"modelspec.prediction_type": "v_pred"}, "", None, "v_prediction"),
        ({}, {}, "    parameterization: v", None, "v_prediction"),
        ({"v_pred": torch.tensor([])}, {}, "    parameterization: eps", None, "epsilon"),
        ({}, {}, "", "v_prediction", "v_prediction"),
        ({"v_pred": torch.tensor([])}, {}, "", "epsilon", "epsilon"),
    ],
)
def test_what_the_unet_predicts_is_told_by_the_option_the_yaml_the_metadata_or_a_key(
    keys: dict, metadata: dict, yaml: str, option: str | None, predicts: str, tmp_path: Path
) -> None:
    path = saved(tmp_path / "a.safetensors", tiny.sd1() | keys, **metadata)
    if yaml:
        path.with_suffix(".yaml").write_text(f"model:\n  params:\n{yaml}\n    unet_config:\n      params: {{}}\n")
    assert load_checkpoint(path, prediction_type=option).scheduler.config.prediction_type == predicts


def test_where_a_person_and_the_file_disagree_it_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = saved(tmp_path / "a.safetensors", tiny.sd1() | {"v_pred": torch.tensor([])})
    load_checkpoint(path, prediction_type="v_prediction")
    assert not caplog.messages
    load_checkpoint(path, prediction_type="epsilon")
    assert "says that it predicts v_prediction; it is used as one that predicts epsilon" in caplog.text


def test_zero_terminal_snr_is_told_by_its_key(tmp_path: Path) -> None:
    keys = {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}
    scheduler = load_checkpoint(saved(tmp_path / "a.safetensors", tiny.sd1() | keys)).scheduler
    assert scheduler.alphas_cumprod[-1] == 0 and scheduler.config.timestep_spacing == "trailing"


class Answers(torch.nn.Module):
    """A UNet that says what one of that prediction says where all is noise."""

    def __init__(self, of_noise: float) -> None:
        super().__init__()
        self.of_noise, self.config = of_noise, type("Config", (), {"cross_attention_dim": 1024})

    def forward(self, noisy: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor) -> object:
        assert timestep.item() == 999 and encoder_hidden_states.shape[-1] == 1024
        return type("Output", (), {"sample": self.of_noise * noisy})


def test_which_head_of_stable_diffusion_2_it_is_is_measured() -> None:
    assert measured_prediction_type(Answers(1.0)) == "epsilon"  # the noise itself
    assert measured_prediction_type(Answers(-2.0)) == "v_prediction"


def test_stable_diffusion_2_has_768_pixels_where_it_predicts_velocity(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.safetensors", tiny.sd2())
    assert load_model(str(path)).resolution == 512
    backend = load_model(str(path), prediction_type="v_prediction")
    assert backend.resolution == 768 and backend.prediction_type == "v_prediction"


@pytest.mark.parametrize("yaml", ["{oops", "[]", "model: 3", "model:\n  params:\n    unet_config: nothing"])
def test_a_damaged_yaml_is_told(yaml: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.safetensors", tiny.sd1())
    path.with_suffix(".yaml").write_text(yaml)
    with pytest.raises(UserError, match=r"a\.yaml describes no checkpoint"):
        load_checkpoint(path)


def test_copies_of_the_toy_are_the_toy_with_its_yaml_and_without(tmp_path: Path) -> None:
    original = toy.load()
    shutil.copy(toy.TOY.checkpoint, tmp_path / "copy.safetensors")
    for _ in range(2):
        loaded = load_checkpoint(tmp_path / "copy.safetensors")
        assert_same_tensors(loaded, original)
        assert loaded.tokenizer.get_vocab() == original.tokenizer.get_vocab()
        assert loaded.vae.config.scaling_factor == original.vae.config.scaling_factor
        assert loaded.unet.config.attention_head_dim == original.unet.config.attention_head_dim
        shutil.copy(toy.TOY.description, tmp_path / "copy.yaml")


def test_a_vocabulary_of_its_own_is_found_by_the_yaml_or_asked_for(tmp_path: Path) -> None:
    tensors = tiny.sd1()
    words = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    tensors[words] = tensors[words][:1000]
    path = saved(tmp_path / "a.safetensors", tensors)
    with pytest.raises(UserError, match=r"vocabulary of its own, of 1,000 words: name the folder of its tokenizer"):
        load_checkpoint(path)
    tokenizer = CLIPTokenizer.from_pretrained(toy.TOY.config / "tokenizer")
    tokenizer.save_pretrained(tmp_path / "words")
    path.with_suffix(".yaml").write_text(
        "model:\n  params:\n    unet_config:\n      params: {}\n    cond_stage_config:\n"
        "      params: {version: words}\n"
    )
    assert load_checkpoint(path).tokenizer.get_vocab() == tokenizer.get_vocab()


def test_projections_are_those_of_the_files_own_names(tmp_path: Path) -> None:
    tensors = tiny.sd1()
    found = projections(load_checkpoint(saved(tmp_path / "a.safetensors", tensors)).unet)
    assert found.keys() == {name for name in tensors if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))}
    assert all(torch.equal(layer.module.weight, tensors[key]) for key, layer in found.items())


OPEN_CLIP, SECOND = "cond_stage_model.model.", "conditioner.embedders.1.model."


def second_of_sdxl(prefix: str, projection: str) -> tiny.Tensors:
    """SDXL whose second text encoder is under transformers' names behind that prefix."""
    state = tiny.sdxl_pipeline().text_encoder_2.state_dict()
    own = {prefix + name: tensor for name, tensor in state.items() if name.startswith("text_model.")}
    positions = {f"{prefix}text_model.embeddings.position_ids": torch.arange(77)[None]}
    return parted(tiny.sdxl(), SECOND) | own | positions | {projection: state["text_projection.weight"]}


def of_forge() -> tiny.Tensors:
    """As Forge saves the checkpoint that it has loaded."""
    renamed = {
        name.replace("first_stage_model.", "vae.").replace(
            "conditioner.embedders.0.", "text_encoders.clip_l."
        ): tensor
        for name, tensor in second_of_sdxl(
            "text_encoders.clip_g.transformer.", "text_encoders.clip_g.transformer.text_projection.weight"
        ).items()
    }  # fmt: skip
    unused = {
        "text_encoders.clip_l.logit_scale": torch.tensor(4.6),
        "text_encoders.clip_l.transformer.text_projection.weight": torch.ones(tiny.WIDTH, tiny.WIDTH),
    }
    return renamed | unused


@pytest.mark.parametrize(
    "make",
    [
        lambda: second_of_sdxl(
            "conditioner.embedders.1.model.transformer.", "conditioner.embedders.1.model.text_projection.weight"
        ),
        lambda: second_of_sdxl(
            "conditioner.embedders.1.model.", "conditioner.embedders.1.model.transformer.text_projection.weight"
        ),
        lambda: second_of_sdxl(
            "conditioner.embedders.1.transformer.", "conditioner.embedders.1.transformer.text_projection.weight"
        ),
        lambda: (
            parted(tiny.sdxl(), f"{SECOND}text_projection")
            | {f"{SECOND}text_projection.weight": tiny.sdxl_pipeline().text_encoder_2.text_projection.weight}
        ),
        of_forge,
    ],
    ids=["merged", "merged, short", "transformer", "playground 2", "forge"],
)
def test_sdxl_whose_text_encoders_have_other_programs_names(make: Callable[[], tiny.Tensors], tmp_path: Path) -> None:
    loaded, original = load_checkpoint(saved(tmp_path / "a.safetensors", make())), tiny.sdxl_pipeline()
    assert_same_tensors(loaded, original)
    with torch.no_grad():
        ours, theirs = (pipeline.encode_prompt("a cat", device="cpu") for pipeline in (loaded, original))
    assert torch.allclose(ours[0], theirs[0], atol=1e-5) and torch.allclose(ours[2], theirs[2], atol=1e-5)


def test_stable_diffusion_1_and_2_as_forge_saves_them(tmp_path: Path) -> None:
    for number, (tensors, word, original) in enumerate(
        ((tiny.sd1(), "clip_l", tiny.stable_diffusion_1()), (tiny.sd2(), "clip_h", tiny.stable_diffusion_2()))
    ):
        text = {
            f"text_encoders.{word}.transformer.{name}": value
            for name, value in original.text_encoder.state_dict().items()
        }
        rest = parted(tensors, "cond_stage_model.")
        renamed = {name.replace("first_stage_model.", "vae."): tensor for name, tensor in rest.items()}
        loaded = load_checkpoint(saved(tmp_path / f"{number}.safetensors", renamed | text))
        assert_same_tensors(loaded, original)
        assert same_answers(loaded, original)


@pytest.mark.parametrize("make", [tiny.stable_diffusion_1, tiny.sdxl_pipeline])
@pytest.mark.parametrize(
    ("unet", "text", "second"),
    [
        ("unet.", "te.", "te.1."),
        ("unet.", "text_encoder.", "text_encoder_2."),
        ("model.diffusion_model.", "text_encoders.clip_l.transformer.", "text_encoders.clip_g.transformer."),
    ],
    ids=["sd.cpp's folder", "folder", "sd.cpp's parts"],
)
def test_the_parts_of_a_diffusers_folder_in_one_file(
    make: Callable[[], StableDiffusionPipeline], unet: str, text: str, second: str, tmp_path: Path
) -> None:
    """As stable-diffusion.cpp writes them without --convert-name."""
    original = make()
    parts = {unet: original.unet, "vae.": original.vae, text: original.text_encoder}
    if hasattr(original, "text_encoder_2"):
        parts[second] = original.text_encoder_2
    file = {prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.state_dict().items()}
    loaded = load_checkpoint(saved(tmp_path / "a.safetensors", file))
    assert_same_tensors(loaded, original)
    assert hasattr(original, "text_encoder_2") or same_answers(loaded, original)


def test_stable_diffusion_1_of_a_folder_by_sd_cpps_own_names(tmp_path: Path) -> None:
    """As stable-diffusion.cpp writes it with --convert-name, which leaves the UNet's names."""
    original = tiny.stable_diffusion_1()
    unet = {f"model.diffusion_model.{name}": tensor for name, tensor in original.unet.state_dict().items()}
    file = parted(tiny.sd1(), "model.diffusion_model.") | unet
    assert_same_tensors(load_checkpoint(saved(tmp_path / "a.safetensors", file)), original)


def test_openclip_whose_queries_keys_and_values_are_in_one_tensor_under_transformers_names() -> None:
    """As stable-diffusion.cpp writes Stable Diffusion 2 with --convert-name."""
    before = "cond_stage_model.transformer.text_model."
    whole = torch.arange(6.0)
    text = {
        f"{before}embeddings.token_embedding.weight": torch.empty(3, 1024),
        f"{before}encoder.layers.0.self_attn.in_proj.bias": whole,
        f"{before}encoder.layers.1.self_attn.in_proj.bias": torch.tensor(1.0),  # damaged
    }
    found = under_ldm_names(text)
    attention = "cond_stage_model.model.text_model.encoder.layers.0.self_attn."
    parts = [found[f"{attention}{part}_proj.bias"].tolist() for part in "qkv"]
    assert parts == [[0, 1], [2, 3], [4, 5]] and len(found) == 5


def test_a_unet_alone_under_diffusers_names_lacks_its_text_encoder(tmp_path: Path) -> None:
    unet = {f"unet.{name}": tensor for name, tensor in tiny.stable_diffusion_1().unet.state_dict().items()}
    with pytest.raises(UserError, match="has no text encoder: it was left out to save room; give the whole checkpoint"):
        load_checkpoint(saved(tmp_path / "a.safetensors", unet))


def test_openclip_under_transformers_names_is_told_by_its_width_and_its_last_layer_is_not_read() -> None:
    """As older scripts wrote a Stable Diffusion 2 that was trained with diffusers."""
    text = {"cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": torch.empty(3, 1024)}
    assert under_ldm_names(text).keys() == {"cond_stage_model.model.text_model.embeddings.token_embedding.weight"}
    of_clip = {name: torch.empty(3, 768) for name in text}
    assert under_ldm_names(of_clip).keys() == of_clip.keys()


@pytest.mark.parametrize("layers", [23, 24])
def test_the_last_of_openclips_24_layers_is_not_read(layers: int, tmp_path: Path) -> None:
    """Transformers' names, with and without it."""
    original = tiny.make_stable_diffusion_2(tiny.WIDTH, layers, 1, 8)
    text = {f"{OPEN_CLIP}{name}": value for name, value in original.text_encoder.state_dict().items()}
    path = saved(tmp_path / "a.safetensors", parted(tiny.sd2(original), OPEN_CLIP) | text)
    assert load_checkpoint(path).text_encoder.config.num_hidden_layers == 23


def test_text_encoders_under_unknown_names_are_not_called_left_out(tmp_path: Path) -> None:
    """As stable-diffusion.cpp writes SDXL with --convert-name, which does not say how its projection lies."""
    other = {
        name.replace("conditioner.embedders.1.model.", "cond_stage_model.1.transformer."): tensor
        for name, tensor in tiny.sdxl().items()
    }
    with pytest.raises(UserError, match=r"in a way that is not known, such as cond_stage_model\.1\.transformer\."):
        load_checkpoint(saved(tmp_path / "a.safetensors", other))


def with_a_nan(tensors: tiny.Tensors, *names: str, value: float = float("nan")) -> tiny.Tensors:
    broken = {name: tensors[name].clone() for name in names}
    for tensor in broken.values():
        tensor.view(-1)[-1] = value
    return tensors | broken


@pytest.mark.parametrize(
    ("make", "name", "said"),
    [
        (tiny.sd1, UNET_KEY, r"the UNet of .*a\.safetensors is broken: down_blocks.* holds values that are NaN or"),
        (tiny.sd1, "cond_stage_model.transformer.text_model.final_layer_norm.bias", "the text encoder of .* is broken"),
        (tiny.sd1, "first_stage_model.decoder.conv_out.weight", r"the VAE of .* give another by --vae"),
        (tiny.sd2, f"{OPEN_CLIP}transformer.resblocks.1.mlp.c_fc.weight", "the text encoder of .* is broken"),
        (tiny.sdxl, f"{SECOND}transformer.resblocks.2.ln_1.bias", "the second text encoder of .* is broken"),
    ],
)
def test_weights_that_are_no_numbers_are_told_on_loading(
    make: Callable[[], tiny.Tensors], name: str, said: str, tmp_path: Path
) -> None:
    path = saved(tmp_path / "a.safetensors", with_a_nan(make(), name))
    with pytest.raises(UserError, match=said):
        load_model(str(path))


def test_it_is_said_how_many_tensors_are_broken(tmp_path: Path) -> None:
    broken = with_a_nan(tiny.sd1(), UNET_KEY, UNET_KEY.replace("to_k", "to_v"), value=float("inf"))
    with pytest.raises(UserError, match=r"2 of its tensors, such as down_blocks.*, hold values that are NaN or inf"):
        load_model(str(saved(tmp_path / "a.safetensors", broken)))


def test_weights_that_nothing_reads_may_be_anything(tmp_path: Path) -> None:
    """Of layers that Stable Diffusion 2 and SDXL leave out, averaged ones, buffers, and of a VAE that is replaced."""
    first = "conditioner.embedders.0.transformer.text_model."
    unread = with_a_nan(
        tiny.sd1() | {"model_ema.x": torch.ones(3), "cond_stage_model.transformer.text_model.embeddings.position_ids":
                      torch.arange(77.0)[None]},
        "first_stage_model.encoder.conv_in.weight", "model_ema.x",
        "cond_stage_model.transformer.text_model.embeddings.position_ids",
    )  # fmt: skip
    load_model(str(saved(tmp_path / "1.safetensors", unread)), vae=_ldm_vae(tmp_path))
    last = with_a_nan(tiny.sd2(), f"{OPEN_CLIP}transformer.resblocks.2.ln_1.bias", f"{OPEN_CLIP}text_projection")
    load_model(str(saved(tmp_path / "2.safetensors", last)))
    last = with_a_nan(tiny.sdxl(), f"{first}encoder.layers.1.mlp.fc1.weight", f"{first}final_layer_norm.weight")
    load_model(str(saved(tmp_path / "xl.safetensors", last)))


def test_a_broken_vae_that_was_given_is_named_and_a_folder_is_looked_at_too(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.safetensors", tiny.sd1())
    decoder = "first_stage_model.decoder.conv_out.weight"
    vae = saved(tmp_path / "vae.safetensors", with_a_nan(own_vae(), decoder))
    with pytest.raises(UserError, match=r"^\S*/vae\.safetensors is broken: decoder\.conv_out\.weight holds"):
        load_model(str(path), vae=vae)
    tiny.stable_diffusion_1().save_pretrained(tmp_path / "folder")
    weights = tmp_path / "folder" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(weights).items()}
    save_file(with_a_nan(tensors, "conv_in.bias"), weights, {"format": "pt"})
    with pytest.raises(UserError, match=r"the UNet of \S*/folder is broken: conv_in\.bias holds"):
        load_model(str(tmp_path / "folder"))


def own_vae() -> tiny.Tensors:
    return {name: value for name, value in tiny.sd1().items() if name.startswith("first_stage_model.")}
