"""Stable Diffusion 2, and SDXL that predicts velocity, in the real WebUI beside the command line; tiny and random."""

from __future__ import annotations

import csv
import json
import os
import shutil
import urllib.error
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import PROMPT, WebUI
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
    assert webui.picture(f"{prompt} <delta:{name}:1>")[0] != webui.picture(prompt)[0]
    assert webui.picture(PROMPT)[0] == chosen.before


def refusal(webui: WebUI, pictures: Path) -> str:
    """What is said instead of a training."""
    with pytest.raises(urllib.error.HTTPError) as error:
        webui.ask_to_train("nosuchword", pictures, **SETTINGS)
    return json.loads(error.value.read())["detail"]


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
