"""What --model may name, and that all else is refused in one sentence, without a network."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.standalone.cli import main
from lib_custom_diffusion.standalone.models import load_model
from offline import offline  # noqa: F401 - a fixture
from tiny_pipeline import stable_diffusion_2

pytestmark = pytest.mark.usefixtures("offline")


@pytest.fixture
def folder(model: Path, tmp_path: Path) -> Path:
    """A copy of a diffusers folder, to be damaged."""
    return Path(shutil.copytree(model, tmp_path / "folder"))


def refusal(name: object) -> str:
    with pytest.raises(UserError) as error:
        load_model(str(name))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_in_half_precision_only(tmp_path: Path) -> None:
    pipeline = stable_diffusion_2().to(torch.float16)
    pipeline.save_pretrained(tmp_path / "model", variant="fp16")
    assert not list((tmp_path / "model").rglob("diffusion_pytorch_model.safetensors"))
    pipeline.save_pretrained(tmp_path / "shards", variant="fp16", max_shard_size="200KB")
    assert list((tmp_path / "shards" / "unet").glob("*-of-*.safetensors"))
    for name in ("model", "shards"):
        ours, theirs = load_model(str(tmp_path / name)).unet.state_dict(), pipeline.unet.state_dict()
        assert all(torch.equal(ours[key], theirs[key].float()) for key in theirs)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_each_part_of_a_folder_may_be_there_in_another_precision(part: str, suffix: str, tmp_path: Path) -> None:
    pipeline = stable_diffusion_2()
    safe = suffix == "safetensors"
    pipeline.save_pretrained(tmp_path / "model", safe_serialization=safe)
    getattr(pipeline, part).save_pretrained(tmp_path / "other", variant="bf16", safe_serialization=not safe)
    shutil.rmtree(tmp_path / "model" / part)
    (tmp_path / "other").rename(tmp_path / "model" / part)
    assert list((tmp_path / "model" / part).glob("*.bf16.*"))
    ours = getattr(load_model(str(tmp_path / "model")).pipeline, part).state_dict()
    assert all(torch.equal(ours[key], value) for key, value in getattr(pipeline, part).state_dict().items())


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_part_that_lacks_a_tensor_is_not_filled_up_with_random_numbers(folder: Path, part: str) -> None:
    [file] = (folder / part).glob("*.safetensors")
    tensors = load_file(file)
    name = min(name for name in tensors if name.endswith("weight"))
    save_file({each: value for each, value in tensors.items() if each != name}, file, {"format": "pt"})
    assert refusal(folder) == f"{folder / part} is incomplete: its weights lack {name}; download it again"


def test_what_drawing_alone_would_need_is_not_asked_of_a_folder(folder: Path) -> None:
    index = folder / "model_index.json"
    more = {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
    }
    index.write_text(json.dumps(json.loads(index.read_text()) | more))
    assert load_model(str(folder)).name == "folder"


def test_a_tokenizer_without_its_vocabulary_and_quantized_weights_are_told(folder: Path) -> None:
    config = folder / "unet" / "config.json"
    plain = config.read_text()
    config.write_text(json.dumps(json.loads(plain) | {"quantization_config": {"quant_method": "bitsandbytes"}}))
    assert refusal(folder) == f"{folder / 'unet'} is quantized; give the model in float16 or float32"
    config.write_text(plain)
    for file in (folder / "tokenizer").iterdir():
        file.unlink()
    assert refusal(folder) == f"{folder} is incomplete: its folder tokenizer holds no tokenizer.json and no vocab.json"


def test_a_model_of_flow_matching_in_the_same_pipeline_is_refused(folder: Path) -> None:
    index = folder / "model_index.json"
    flow = {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}
    index.write_text(json.dumps(json.loads(index.read_text()) | flow))
    (folder / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "FlowMatchEulerDiscreteScheduler"}')
    assert "learned by flow matching (FlowMatchEulerDiscreteScheduler)" in refusal(folder)


def test_a_folder_of_the_hubs_cache_names_the_one_in_it(model: Path, tmp_path: Path) -> None:
    inside = Path(shutil.copytree(model, tmp_path / "models--x--y" / "snapshots" / "abc"))
    assert refusal(tmp_path / "models--x--y").endswith(f"; one is in it: give {inside}")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("https://huggingface.co/owner/name", "is a page; give what it is called on the Hub, owner/name"),
        (
            "https://huggingface.co/owner/name/blob/main/a.safetensors",
            "is an address, from which nothing is downloaded",
        ),
        ("https://civitai.com/models/4384/dreamshaper", "is an address, from which nothing is downloaded"),
        ("/dev/null", "is no ordinary file"),
    ],
)
def test_addresses_and_devices_are_told_from_names_that_are_not_there(name: str, said: str) -> None:
    assert f"{name} {said}" in refusal(name)


def test_a_link_that_leads_nowhere_and_a_mistyped_name_are_told(tmp_path: Path) -> None:
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "gone.safetensors")
    (tmp_path / "loop.ckpt").symlink_to(tmp_path / "loop.ckpt")
    assert f"link.safetensors is a link that leads nowhere ({tmp_path / 'gone.safetensors'})" in refusal(
        tmp_path / "link.safetensors"
    )
    assert "is a link that leads nowhere" in refusal(tmp_path / "loop.ckpt")
    (tmp_path / "v1-5-pruned.safetensors").touch()
    assert refusal(tmp_path / "v1-5-pruned").endswith("Did you mean v1-5-pruned.safetensors?")


def test_a_path_as_systems_copy_it(model: Path) -> None:
    for written in (f'"{model}"', f" {model} ", model.as_uri()):
        assert load_model(written).name == model.name


def test_a_folder_with_a_vae_and_a_prediction_of_its_own(model: Path, tmp_path: Path) -> None:
    other = stable_diffusion_2().vae
    with torch.no_grad():
        other.decoder.conv_out.bias.fill_(3)
    other.save_pretrained(tmp_path / "vae")
    backend = load_model(str(model), vae=tmp_path / "vae", prediction_type="epsilon")
    assert backend.pipeline.vae.decoder.conv_out.bias.tolist() == [3, 3, 3]
    assert backend.prediction_type == "epsilon" and load_model(str(model)).prediction_type == "v_prediction"


@pytest.mark.parametrize("content", ["{oops", "[]", "3", ""])
def test_a_damaged_index_is_told(folder: Path, content: str) -> None:
    (folder / "model_index.json").write_text(content)
    assert "model_index.json" in refusal(folder)


@pytest.mark.parametrize(
    "kind", ["StableDiffusion3Pipeline", "FluxPipeline", "StableDiffusionInpaintPipeline", "WanPipeline", ""]
)
def test_pipelines_of_other_kinds_are_refused_by_their_name(folder: Path, kind: str) -> None:
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    assert f"is a {kind or 'model of unknown kind'}; only Stable Diffusion 1, 2 and XL can be used" in refusal(folder)


def test_the_folder_that_one_is_in_has_its_own_name(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model / "unet")
    assert load_model("..").name == "tiny-v2"
    monkeypatch.chdir(model)
    assert load_model(".").name == "tiny-v2"


def test_a_configuration_nested_without_end_is_told(folder: Path) -> None:
    (folder / "model_index.json").write_text("[" * 100_000)
    assert "model_index.json cannot be read: maximum recursion" in refusal(folder)


def test_the_index_of_a_folder_is_taken_for_the_folder(model: Path) -> None:
    assert load_model(str(model / "model_index.json")).name == model.name


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_part_that_is_missing_is_named(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part)
    assert refusal(folder) == f"{folder} is incomplete: its folder {part} is missing"


@pytest.mark.parametrize(("configured", "resolution"), [(None, 512), (96, 768), ([64, 96], 768)])
def test_a_configuration_may_leave_out_its_latents_side_or_say_both(
    folder: Path, configured: object, resolution: int
) -> None:
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sample_size": configured}))
    assert load_model(str(folder)).resolution == resolution


def test_a_folder_that_image_to_image_was_saved_from_is_the_same_model(folder: Path) -> None:
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "StableDiffusionImg2ImgPipeline"}))
    assert load_model(str(folder)).prediction_type == "v_prediction"


def test_a_folder_that_predicts_something_else_is_refused(folder: Path) -> None:
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prediction_type": "sample"}))
    assert "predicts sample; only epsilon and v_prediction can be trained" in refusal(folder)


def test_what_to_give_instead_of_a_folder_that_is_no_model_is_told(folder: Path, tmp_path: Path) -> None:
    assert f"it is a part of {folder}, so give that" in refusal(folder / "unet")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "NAME.SAFETENSORS").touch()
    assert refusal(tmp_path / "checkpoints").endswith("; give a file in it, such as NAME.SAFETENSORS")


def test_a_folder_of_other_channels_is_refused_whatever_it_is_called(folder: Path) -> None:
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"in_channels": 9}))
    assert "is an inpainting model: its UNet takes 9 channels, not 4" in refusal(folder)


def test_a_torn_file_and_one_that_git_lfs_did_not_bring_are_told_by_name(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert "unet/diffusion_pytorch_model.safetensors is torn" in refusal(folder)
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 4265380512\n")
    assert "it is a Git LFS pointer" in refusal(folder)
    weights.unlink()
    assert refusal(folder) == f"{folder} is incomplete: its folder unet holds no weights (.safetensors or .bin)"
    (folder / "unet" / "config.json").unlink()
    assert "config.json is missing" in refusal(folder)


def test_a_folder_whose_index_names_no_part_that_is_needed_is_not_whole(folder: Path) -> None:
    index = folder / "model_index.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps(content | {"_class_name": "StableDiffusionXLPipeline"}))
    assert "names no text_encoder_2" in refusal(folder)
    for nothing in ([None, None], [], None, 3):
        index.write_text(json.dumps(content | {"text_encoder": nothing}))
        assert "names no text_encoder" in refusal(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_code_that_a_folder_brings_is_not_run(folder: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the folder is the one that Python looks for modules in, as it is where one starts it by -m."""
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {part: ["brought", "Model"]}))
    (folder / "brought.py").write_text("open('ran', 'w')\nclass Model: pass\n")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend("")
    assert refusal(".") == f"{folder} brings code of its own for its {part} (brought), which is not run"
    assert not (folder / "ran").exists()


def test_a_folder_of_bin_files_alone_loads_without_a_word(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pipeline = stable_diffusion_2()
    pipeline.save_pretrained(tmp_path / "model", safe_serialization=False)
    capfd.readouterr()
    ours = load_model(str(tmp_path / "model")).unet.state_dict()
    assert all(torch.equal(ours[key], value) for key, value in pipeline.unet.state_dict().items())
    assert "error" not in "".join(capfd.readouterr()).lower()


def test_what_is_no_name_of_the_hub_never_asks_the_hub(offline: list[str], tmp_path: Path) -> None:  # noqa: F811
    for name in (
        tmp_path / "missing", tmp_path / "missing.safetensors", "models/missing.ckpt", "missing", "a/b/c", "./a/b",
        "UPPER/NAME.SAFETENSORS",
    ):  # fmt: skip
        assert "there is no model" in refusal(name)
    assert "it has no model_index.json" in refusal(tmp_path)
    assert offline == []


def test_a_name_of_the_hub_asks_it_and_says_so_if_nobody_answers() -> None:
    assert "no such model could be downloaded from the Hub" in refusal("owner/no-such-model")


def test_a_command_refuses_what_is_no_model_before_it_touches_a_picture(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "page.safetensors").write_bytes(b"<!doctype html><title>Log in</title>")
    output = tmp_path / "out"
    assert main([
        "train", "--model", str(tmp_path / "page.safetensors"), "--instance_data_dir", str(pictures),
        "--instance_prompt", "a <new1> cat", "--output_dir", str(output),
    ]) == 2  # fmt: skip
    assert "it is a web page" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"vae": Path("nowhere.safetensors")}, r"there is no VAE nowhere\.safetensors"),
        ({"tokenizer": "no/where"}, "no/where is not a CLIP tokenizer"),
        ({"tokenizer": "nowhere"}, "nowhere is not a CLIP tokenizer"),
    ],
)
def test_what_is_asked_for_beside_the_model_is_looked_at_before_it_is_loaded(
    more: dict[str, Any],
    said: str,
    offline: list[str],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lib_custom_diffusion.standalone.models.load_checkpoint", lambda *_: pytest.fail("was loaded"))
    with pytest.raises(UserError, match=said):
        load_model("toy", **more)
    assert len(offline) <= 1  # a name of the Hub is asked for once, not 45 times
