"""Stable Diffusion 2, and SDXL that predicts velocity, in the real WebUI beside the command line; tiny and random."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import shutil
import urllib.error
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from conftest import PROMPT, TOY, Page, WebUI, difference, fingerprint
from lib_custom_diffusion.algebra.converting import convert_files
from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.tokens import embedding_pt, embedding_sdxl

SETTINGS = {
    "resolution": 128, "rank": 4, "prior": "none", "noaug": True, "max_train_steps": 1, "train_batch_size": 1,
    "learning_rate": "1e-2", "embedding_learning_rate": "1e-2",
}  # fmt: skip
CAPTION = "photo of a ([name]:1.4), [red] BREAK"  # which is text, brackets and all
WIDTHS = (64, 256)  # of a word's vectors in SDXL's two text encoders here; Stable Diffusion 2 has the second alone


@dataclass(frozen=True)
class Chosen:
    """A checkpoint that the WebUI has loaded, and the picture that it made before anything was done with it."""

    path: Path
    before: str

    @property
    def word(self) -> str:
        return f"{self.path.stem}thing"


@pytest.fixture(params=["noise2", "velocity2", "velocityxl"])
def chosen(request: pytest.FixtureRequest, webui: WebUI, untouched: str) -> Iterator[Chosen]:
    """The toy is chosen again afterwards."""
    from tiny_models import write_checkpoint, write_stable_diffusion_2

    name, folder = request.param, webui.data / "models" / "Stable-diffusion"
    if name == "velocityxl":
        path = write_checkpoint(folder, name, velocity=True)
    else:
        path = write_stable_diffusion_2(folder, name, {"noise2": "eps", "velocity2": "v"}[name])
    webui.post("/sdapi/v1/refresh-checkpoints")
    webui.post("/sdapi/v1/options", show_progress_type="Approx cheap", sd_model_checkpoint=path.name)
    yield Chosen(path, webui.picture(PROMPT)[0])
    webui.post("/sdapi/v1/options", sd_model_checkpoint="toy.safetensors")
    assert webui.picture(PROMPT)[0] == untouched


def concept_of(pictures: Path) -> dict[str, str]:
    return {"instance_data_dir": str(pictures), "instance_prompt": CAPTION, "class_prompt": "house"}


def loss_of_the_command_line(chosen: Chosen, pictures: Path, folder: Path) -> tuple[torch.Tensor, float]:
    """The word's vectors at first, which are those of "house", and the loss of the first step, standalone."""
    from lib_custom_diffusion.standalone.models import load_model
    from lib_custom_diffusion.standalone.train import run_training
    from lib_custom_diffusion.training.plan import TrainingPlan

    backend = load_model(str(chosen.path))
    assert backend.prediction_type == ("epsilon" if chosen.path.stem == "noise2" else "v_prediction")
    words = {"modifier_token": ["<thing>"], "initializer_token": ["house</w>"], "concepts": [concept_of(pictures)]}
    run_training(backend, TrainingPlan.of({**SETTINGS, **words}), folder)
    return backend.token_vectors("house"), loss_in(folder / "loss.csv")


def loss_in(table: Path) -> float:
    with table.open() as file:
        return float(next(csv.DictReader(file))["loss"])


def write_word(webui: WebUI, chosen: Chosen, vectors: torch.Tensor) -> None:
    folder = webui.data / "embeddings"
    if vectors.shape[1] == WIDTHS[1]:
        (folder / f"{chosen.word}.pt").write_bytes(embedding_pt(vectors, chosen.word, 0))
    else:
        content = embedding_sdxl(list(vectors.split(WIDTHS, dim=1)), 0)
        (folder / f"{chosen.word}.safetensors").write_bytes(content)
    os.utime(folder)
    webui.post("/sdapi/v1/refresh-embeddings")


def test_the_first_step_is_the_command_lines_and_pictures_stay_the_same(
    webui: WebUI, pictures: Path, chosen: Chosen, tmp_path: Path
) -> None:
    vectors, expected = loss_of_the_command_line(chosen, pictures, tmp_path)
    write_word(webui, chosen, vectors)
    name = chosen.path.stem
    asked = {**SETTINGS, "name": name, "overwrite": True, "concepts": [concept_of(pictures)]}
    told = webui.ask_to_train(chosen.word, pictures, **asked)
    found = loss_in(Path(told["log_directory"]) / "textual_inversion_loss.csv")
    assert found == pytest.approx(expected, rel=1e-3)
    factors = [tensor for key, tensor in load_file(webui.delta(name)).items() if key.endswith(".US")]
    assert factors and all(tensor.any() for tensor in factors)
    assert webui.picture(PROMPT)[0] == chosen.before
    prompt = f"a {chosen.word} house"
    from lib_custom_diffusion.standalone.models import load_model

    bare, delta = webui.images(prompt)[0][0], webui.images(f"{prompt} <delta:{name}:1>")[0][0]
    assert difference(bare, delta)[1] > 1
    assert webui.picture(PROMPT)[0] == chosen.before
    # As a LoRA it makes the same picture, up to rounding: the WebUI writes a LoRA into the weights.
    lora = convert_files([webui.delta(name)], "lora", lambda: load_model(str(chosen.path))).files["lora.safetensors"]
    (webui.data / "models" / "Lora" / f"{name}.safetensors").write_bytes(lora)
    webui.post("/sdapi/v1/refresh-loras")
    largest, mean = difference(webui.images(f"{prompt} <lora:{name}:1>")[0][0], delta)
    print(f"\n{name}, LoRA against delta: at most {largest} of 255, on average {mean:.4f}")
    assert largest <= 8 and mean <= 0.2
    assert webui.picture(PROMPT)[0] == chosen.before


def refusal(webui: WebUI, pictures: Path) -> str:
    """What is said instead of a training."""
    with pytest.raises(urllib.error.HTTPError) as error:
        webui.ask_to_train("nosuchword", pictures, **SETTINGS)
    return json.loads(error.value.read())["detail"]


def test_inpainting_is_drawn_with_a_delta_and_a_model_without_text_encoder_is_not_trained(
    webui: WebUI, pictures: Path, untouched: str
) -> None:
    from tiny_models import write_inpainting

    folder = webui.data / "models" / "Stable-diffusion"
    inpainting = write_inpainting(folder, "paint9")
    tensors = load_file(inpainting)
    tensors["first_stage_model.quant_conv.weight"][4:] = 0
    tensors["first_stage_model.quant_conv.bias"][4:] = -30  # what the host encodes a picture to is drawn at random
    save_file(tensors, inpainting)
    generator = torch.Generator().manual_seed(1)
    read = (name for name in tensors if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")))
    Delta({name: 0.3 * torch.randn(tensors[name].shape, generator=generator) for name in read}).save(
        webui.delta("paint")
    )
    without_text_encoder(folder)
    webui.post("/sdapi/v1/refresh-checkpoints")
    webui.post("/sdapi/v1/options", show_progress_type="Approx cheap", sd_model_checkpoint=inpainting.name)
    try:
        mask = Image.new("L", (128, 128))
        mask.paste(255, (64, 0, 128, 128))  # the right half is drawn
        asked = {"init_images": [base64_of(pictures / "0.png")], "mask": base64_of(mask), "denoising_strength": 1.0,
                 "inpainting_fill": 1, "mask_blur": 0, "inpaint_full_res": False}  # fmt: skip
        drawn = {
            weight: webui.images(f"a cat <delta:paint:{weight}>", route="img2img", **asked)[0][0].convert("RGB")
            for weight in (0, 1)
        }
        bare = webui.images("a cat", route="img2img", **asked)[0][0]
        assert fingerprint(bare) == fingerprint(drawn[0])
        left, right = (0, 0, 56, 128), (72, 0, 128, 128)
        assert difference(drawn[1].crop(right), drawn[0].crop(right))[1] > 1
        assert difference(drawn[1].crop(left), drawn[0].crop(left))[0] <= 2
        assert "takes 9 channels, not 4" in refusal(webui, pictures)
        webui.post("/sdapi/v1/options", sd_model_checkpoint="textless.safetensors")
        assert "textless.safetensors has no text encoder" in refusal(webui, pictures)
    finally:
        webui.post("/sdapi/v1/options", sd_model_checkpoint="toy.safetensors")
    assert webui.picture(PROMPT)[0] == untouched


def base64_of(picture: Path | Image.Image) -> str:
    if isinstance(picture, Path):
        picture = Image.open(picture)
    content = io.BytesIO()
    picture.save(content, "png")
    return base64.b64encode(content.getvalue()).decode()


def without_text_encoder(folder: Path) -> None:
    """Write the toy as textless.safetensors, and where the host finds the text encoder that it draws with instead."""
    tensors, begins = load_file(folder / "toy.safetensors"), "cond_stage_model."
    save_file({n: t for n, t in tensors.items() if not n.startswith(begins)}, folder / "textless.safetensors")
    encoder = folder / "textless-encoder"
    shutil.copytree(TOY / "config" / "tokenizer", encoder)
    own = {n.removeprefix(f"{begins}transformer."): t for n, t in tensors.items() if n.startswith(begins)}
    save_file(own, encoder / "model.safetensors", metadata={"format": "pt"})
    config = (folder / "toy.yaml").read_text().replace(str(TOY / "config" / "tokenizer"), str(encoder))
    (folder / "textless.yaml").write_text(config)


def test_a_refiner_that_a_delta_does_not_fit_draws_without_it_and_that_is_said(
    webui: WebUI, page: Page, thing: Path, untouched: str
) -> None:
    from tiny_models import write_checkpoint

    write_checkpoint(webui.data / "models" / "Stable-diffusion", "refinerxl", velocity=True)
    webui.post("/sdapi/v1/refresh-checkpoints")
    webui.post("/sdapi/v1/options", show_progress_type="Approx cheap")
    asked = {"refiner_checkpoint": "refinerxl.safetensors", "refiner_switch_at": 0.5}
    bare, (drawn, infotext) = (
        webui.picture("a thing house", **asked)[0],
        webui.picture("a thing house <delta:thing:1>", **asked),
    )
    assert bare != drawn  # the first half of the steps is drawn with it
    assert "Refiner: refinerxl" in infotext and "Delta hashes: " in infotext
    page.paste(infotext)
    assert fingerprint(page.draw(webui.data)) == drawn
    said = page.wait_for("html_log_txt2img", "the deltas were left out from here on")
    assert "the delta does not fit this model" in said
    assert webui.picture(PROMPT)[0] == untouched


def test_kinds_in_turn_leave_each_other_as_they_were_and_some_are_refused(
    webui: WebUI, pictures: Path, thing: Path, untouched: str
) -> None:
    from tiny_models import write_checkpoint, write_inpainting, write_stable_diffusion_2

    folder = webui.data / "models" / "Stable-diffusion"
    write_checkpoint(folder, "turnxl", velocity=True)
    write_stable_diffusion_2(folder, "turn2", "v")
    write_inpainting(folder, "turn9")
    tensors = load_file(folder / "toy.safetensors")
    save_file(
        {n: t for n, t in tensors.items() if not n.startswith("first_stage_model.")}, folder / "pruned.safetensors"
    )
    shutil.copy(folder / "toy.yaml", folder / "pruned.yaml")
    webui.post("/sdapi/v1/refresh-checkpoints")
    webui.post("/sdapi/v1/options", show_progress_type="Approx cheap")

    def drawn(name: str) -> str:
        webui.post("/sdapi/v1/options", sd_model_checkpoint=f"{name}.safetensors")
        return webui.picture(PROMPT)[0]

    before = {name: drawn(name) for name in ("turnxl", "turn9", "turn2", "toy")}
    assert before["toy"] == untouched and len(set(before.values())) == 4
    refined = [
        webui.picture(prompt, refiner_checkpoint="turnxl.safetensors", refiner_switch_at=0.5)[0]
        for prompt in ("a thing house", f"a thing house <delta:{thing.name.partition('.')[0]}:1>")
    ]
    assert refined[0] != refined[1]  # the delta acts on the model that it fits
    assert {name: drawn(name) for name in before} == before
    for name, said in (("turn9", "takes 9 channels, not 4"), ("pruned", "pruned.safetensors has no VAE")):
        drawn(name)
        assert said in refusal(webui, pictures)
    assert drawn("toy") == untouched
