"""Every kind of checkpoint as one file, without a network: it trains, draws and gives a LoRA, or is refused.

The table of docs/checkpoints.md has a row for each; the models are tiny, with random weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import tiny_checkpoints as tiny
from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.injection import Injection
from lib_custom_diffusion.standalone.cli import main
from lib_custom_diffusion.standalone.diffusers_backend import DiffusersBackend
from lib_custom_diffusion.standalone.models import load_model
from offline import offline  # noqa: F401 - a fixture

Make = Callable[[], tiny.Tensors]
FIRST = "model.diffusion_model.input_blocks.0.0.weight"
VELOCITY = {"v_pred": torch.tensor([])}
ZERO_TERMINAL_SNR = VELOCITY | {"ztsnr": torch.tensor([])}
YAML = "model:\n  params:\n    image_size: 8\n{more}    unet_config:\n      params: {{}}\n"


def saved(path: Path, tensors: tiny.Tensors) -> Path:
    file = path.with_suffix(".safetensors")
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, file)
    return file


@dataclass(frozen=True)
class Kind:
    """How a file is made, what it predicts, and what is given beside it.

    write: takes the path without its suffix and the tensors. yaml: lines of its .yaml, which says its side, too.
    """

    tensors: Make
    predicts: str = "epsilon"
    yaml: str = ""
    write: Callable[[Path, tiny.Tensors], Path] = saved
    has_vae: bool = True


def in_half_precision(path: Path, tensors: tiny.Tensors) -> Path:
    return saved(path, halved(tensors))


def halved(tensors: tiny.Tensors) -> tiny.Tensors:
    return {name: each.half() if each.is_floating_point() else each for name, each in tensors.items()}


def nested(path: Path, tensors: tiny.Tensors) -> Path:
    """As a training by LDM's code leaves it, with averaged weights, the VAE's loss and what the optimizer had."""
    averaged = {
        f"model_ema.{name.removeprefix('model.').replace('.', '')}": tensor + 1
        for name, tensor in tensors.items() if name.startswith("model.")
    }  # fmt: skip
    more = {"first_stage_model.loss.logvar": torch.zeros(())}
    file = path.with_suffix(".ckpt")
    torch.save({"state_dict": tensors | averaged | more, "global_step": 3, "optimizer_states": [{"state": {}}]}, file)
    return file


def flat(path: Path, tensors: tiny.Tensors) -> Path:
    torch.save(tensors, path.with_suffix(".ckpt"))
    return path.with_suffix(".ckpt")


def without(make: Make, *prefixes: str) -> Make:
    return lambda: {name: tensor for name, tensor in make().items() if not name.startswith(prefixes)}


def with_channels(make: Make, channels: int) -> Make:
    """The same with more channels read, as of the mask and what it leaves of the picture."""

    def made() -> tiny.Tensors:
        tensors = make()
        first = tensors[FIRST]
        return tensors | {
            FIRST: torch.cat([first, torch.ones_like(first)], dim=1)[:, :4].repeat(1, 3, 1, 1)[:, :channels]
        }

    return made


def with_text(make: Make, width: int) -> Make:
    """The same with another width of text read."""

    def made() -> tiny.Tensors:
        ends = ("attn2.to_k.weight", "attn2.to_v.weight")
        return {
            name: torch.ones(len(tensor), width) if name.endswith(ends) else tensor for name, tensor in make().items()
        }

    return made


def refiner() -> tiny.Tensors:
    """SDXL's second text encoder as its only one."""
    tensors = with_text(without(tiny.sdxl, f"{TEXTS}embedders.0."), 1280)()
    return {name.replace(f"{TEXTS}embedders.1.", f"{TEXTS}embedders.0."): tensor for name, tensor in tensors.items()}


VAE, TEXT, TEXTS = "first_stage_model.", "cond_stage_model.", "conditioner."
KINDS = {
    "sd1": Kind(tiny.sd1),
    "sd1, float16": Kind(tiny.sd1, write=in_half_precision),
    "sd1, nested, averaged": Kind(tiny.sd1, write=nested),
    "sd1, flat ckpt": Kind(tiny.sd1, write=flat),
    "sd1, velocity": Kind(lambda: tiny.sd1() | VELOCITY, "v_prediction"),
    "sd1 without a VAE": Kind(without(tiny.sd1, VAE), has_vae=False),
    "sd2, noise": Kind(tiny.sd2),
    "sd2, velocity": Kind(tiny.sd2, "v_prediction", "    parameterization: v\n"),
    "sd2, float16, nested": Kind(tiny.sd2, write=lambda path, tensors: nested(path, halved(tensors))),
    "sd2 without a VAE": Kind(without(tiny.sd2, VAE), has_vae=False),
    "sdxl, noise": Kind(tiny.sdxl),
    "sdxl, float16": Kind(tiny.sdxl, write=in_half_precision),
    "sdxl, velocity, ztsnr": Kind(lambda: tiny.sdxl() | ZERO_TERMINAL_SNR, "v_prediction"),
    "sdxl without a VAE": Kind(without(tiny.sdxl, VAE), has_vae=False),
    "sdxl, ckpt": Kind(tiny.sdxl, write=flat),
}  # fmt: skip

REFUSED: dict[str, tuple[Make, str]] = {
    "sd1 for inpainting": (with_channels(tiny.sd1, 9), "is an inpainting model: its UNet takes 9 channels, not 4"),
    "sd2 for inpainting": (with_channels(tiny.sd2, 9), "is an inpainting model"),
    "sdxl for inpainting": (with_channels(tiny.sdxl, 9), "is an inpainting model"),
    "sdxl's refiner": (refiner, "is SDXL's refiner"),
    "sd2 for depth": (with_channels(tiny.sd2, 5), "is a depth model"),
    "pix2pix": (with_channels(tiny.sd1, 8), "is an InstructPix2Pix model"),
    "sd1 without text": (without(tiny.sd1, TEXT), "has no text encoder: it was left out"),
    "sd2 without text": (without(tiny.sd2, TEXT), "has no text encoder: it was left out"),
    "sdxl without texts": (with_text(without(tiny.sdxl, TEXTS), 2048), "has no text encoders: they were left out"),
    "sdxl without one text": (without(tiny.sdxl, f"{TEXTS}embedders.1."), "lacks the second of its two text encoders"),
    "sd1 without a VAE": (without(tiny.sd1, VAE), "has no VAE; give one that belongs to the model by --vae FILE"),
    "sd1, UNet alone": (without(tiny.sd1, VAE, TEXT), "has no text encoder"),
}


def output(backend: DiffusersBackend) -> torch.Tensor:
    """The UNet's answer to a fixed input."""
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return backend.predict(latents, torch.tensor([400]), backend.encode_captions(["a cat"], {}))


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("name", KINDS)
def test_it_trains_draws_and_gives_a_lora_and_nobody_is_asked(
    name: str,
    tmp_path: Path,
    pictures: Path,
    offline: list[str],  # noqa: F811
) -> None:
    kind = KINDS[name]
    path = kind.write(tmp_path / "model", kind.tensors())
    path.with_suffix(".yaml").write_text(YAML.format(more=kind.yaml))
    model = ["--model", str(path)]
    if not kind.has_vae:
        make = {"sd1": tiny.sd1, "sd2": tiny.sd2, "sdxl": tiny.sdxl}[name.split()[0]]
        own = {each: tensor for each, tensor in make().items() if each.startswith(VAE)}
        model += ["--vae", str(saved(tmp_path / "vae", own))]
    (tmp_path / "captions.txt").write_text("a dog\na red house\n")
    delta, lora = tmp_path / "out" / "new1.delta.safetensors", tmp_path / "lora"
    assert main([
        "train", *model, "--instance_data_dir", str(pictures), "--instance_prompt", "a <new1> cat", "--class_prompt",
        "cat", "--output_dir", str(tmp_path / "out"), "--max_train_steps", "2", "--train_batch_size", "1", "--rank",
        "4", "--prior_captions", str(tmp_path / "captions.txt"), "--learning_rate", "1e-2",
    ]) == 0  # fmt: skip
    learned = Delta.load(delta)
    assert all(torch.isfinite(entry.us).all() and entry.us.any() for entry in learned.entries.values())  # type: ignore[union-attr]
    for tag in ("", f" <delta:{delta}:1>"):
        assert main([
            "generate", *model, "--prompt", f"a <new1> cat{tag}" if tag else "a cat", "--num_images", "1",
            "--num_inference_steps", "2", "--output", str(tmp_path / f"drawn{bool(tag)}"),
        ]) == 0  # fmt: skip
        [drawn] = (tmp_path / f"drawn{bool(tag)}").glob("*.png")
        assert Image.open(drawn).size == (64, 64)
    assert main(["convert", str(delta), *model, "--to", "lora-diffusers", "--output", str(lora)]) == 0
    assert offline == []
    backend = load_model(str(path), vae=Path(model[3]) if not kind.has_vae else None)
    assert backend.prediction_type == kind.predicts
    assert (backend.alphas_cumprod[-1] == 0) == ("ztsnr" in name)
    bare = output(backend)
    with Injection(backend.unet, [(learned, 1.0)]):
        acting = output(backend)
    backend.pipeline.load_lora_weights(str(lora), weight_name="pytorch_lora_weights.safetensors")
    assert distance(output(backend), acting) < 0.05 * distance(acting, bare)
    assert offline == []


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_one_sentence_before_pictures_are_touched(
    name: str,
    tmp_path: Path,
    pictures: Path,
    offline: list[str],  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    make, said = REFUSED[name]
    path = saved(tmp_path / "model", make())
    train = ["--instance_data_dir", str(pictures), "--instance_prompt", "a <new1> cat", "--output_dir"]
    for command in (
        ["train", *train, str(tmp_path / "out")],
        ["generate", "--prompt", "a cat", "--output", str(tmp_path / "out")],
    ):
        assert main([*command, "--model", str(path)]) == 2
        error = capsys.readouterr().err.strip()
        assert f"{path} {said}" in error and len(error.splitlines()) == 1
    assert offline == [] and not (tmp_path / "out").exists()
