"""The same request through command line, app and the WebUI's API: the same delta to the byte, the same refusals.

All three train the model that the stand-in WebUI has loaded, as one model cannot be loaded by two programs to the bit.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from modules import paths
from PIL import Image
from safetensors.torch import load

from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.webui.host_backend import HostBackend
from lib_custom_diffusion.webui.new_embedding import create_embedding

fastapi = pytest.importorskip("fastapi")
gradio = pytest.importorskip("gradio")
pytest.importorskip("diffusers")
from lib_custom_diffusion.standalone import train as command  # noqa: E402 - it needs diffusers
from lib_custom_diffusion.standalone.app import train_tab  # noqa: E402
from lib_custom_diffusion.standalone.app.jobs import Jobs  # noqa: E402
from lib_custom_diffusion.standalone.app.reopened_pages import ReopenedPages  # noqa: E402
from lib_custom_diffusion.standalone.cli import main  # noqa: E402
from lib_custom_diffusion.webui import api  # noqa: E402
from lib_custom_diffusion.webui.training_job import library  # noqa: E402
from page import parts  # noqa: E402

SAME = {
    "train_batch_size": 2, "max_train_steps": 4, "learning_rate": "1e-2", "embedding_learning_rate": "1e-2", "seed": 7,
    "prior": "none", "freeze_model": "crossattn", "snr_gamma": 5.0, "hflip": True, "noaug": True,
    "checkpoints_total_limit": 1, "num_validation_images": 1, "resolution": 16, "caption_source": "prompt",
}  # fmt: skip
CONCEPT = {"instance_prompt": "photo of a [name]", "class_prompt": "cat"}


class OneModel:
    """What the app loads its models from."""

    name, lock, loaded, small = "elsewhere", threading.Lock(), None, False

    def get(self) -> HostBackend:
        return HostBackend(["mycat"])


@pytest.fixture
def request_of(host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Settings by diffusers' names, with what a test wants otherwise; the three programs are ready for them."""
    monkeypatch.setattr(command, "load_model", lambda *_: HostBackend(["mycat"]))
    monkeypatch.setattr(library, "folder", tmp_path / "api")
    monkeypatch.setattr(paths, "data_path", str(tmp_path))
    create_embedding("mycat", "ktn", 1, overwrite=False)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(3):
        Image.new("RGB", (16, 16), (80 * index, 40, 200)).save(folder / f"{index}.png")

    def settings(**otherwise: Any) -> dict[str, Any]:
        concept = {"instance_data_dir": str(folder), **CONCEPT, **otherwise.pop("concept", {})}
        return {**SAME, "modifier_token": ["mycat"], "concepts": [concept], **otherwise}

    return settings


def by_command(asked: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Path, str]:
    [concept] = asked["concepts"]
    flags = {**concept, **{name: value for name, value in asked.items() if name != "concepts"}}
    flags |= {
        "modifier_token": "+".join(asked["modifier_token"]),
        "initializer_token": asked.get("initializer_token", "mycat"),
    }
    given = [part for name, value in flags.items() for part in _flag(name, value)]
    capsys.readouterr()
    main(["train", "--model", "elsewhere", "--output_dir", str(tmp_path / "command"), *given])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return tmp_path / "command", lines[0].removeprefix("error: ") if lines else ""


def _flag(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}"] if value else []
    return [f"--{name}={value}"]


def by_app(asked: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Path, str]:
    with gradio.Blocks() as blocks:
        train_tab.build_train_tab(
            Jobs(OneModel.lock), OneModel(), tmp_path / "app", tmp_path / "logs", lambda *_: None, ReopenedPages()
        )
    made = parts(blocks)
    [concept] = asked["concepts"]
    values = {**asked, "augment": not asked["noaug"], "instance_prompt": concept["instance_prompt"]}
    ids = {
        "max_train_steps": "cd_steps", "train_batch_size": "cd_batch_size", "freeze_model": "cd_select",
        "hflip": "cd_flip", "instance_prompt": "cd_prompt", "caption_source": "cd_captions",
        "gradient_accumulation_steps": "cd_accumulation", "resume_from_checkpoint": "cd_resume",
    }  # fmt: skip
    entered = {ids.get(name, f"cd_{name}"): value for name, value in values.items()}
    entered = {each: value for each, value in entered.items() if each in made}
    entered |= {
        "cd_word_1": asked["modifier_token"][0], "cd_preview_every": 0,
        "cd_initializer_1": asked.get("initializer_token", "mycat"),
        "cd_pictures_1": concept["instance_data_dir"], "cd_class_1": concept["class_prompt"],
    }  # fmt: skip
    *_, last = made["cd_start"].press(**entered)
    error = last[0] if isinstance(last[0], str) else ""  # an update where there is none
    told = error.partition("<div class='error'>")[2].removesuffix("</div>")
    return tmp_path / "app", re.sub("^(There|No|In|The)(?= )", lambda first: first[0].lower(), told)


def by_api(asked: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Path, str]:
    try:
        api.train_custom_diffusion(asked)
    except fastapi.HTTPException as error:
        assert error.status_code == 422
        return tmp_path / "api", error.detail
    return tmp_path / "api", ""


FACES = {"command": by_command, "app": by_app, "api": by_api}


@pytest.fixture
def expected(request_of, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> bytes:
    folder, said = by_command(request_of(), tmp_path / "expected", capsys)
    assert said == ""
    return (folder / "mycat.delta.safetensors").read_bytes()


def read(file: bytes) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The header of a .safetensors, and its tensors."""
    length = int.from_bytes(file[:8], "little")
    return json.loads(file[8 : 8 + length]), load(file)


@pytest.mark.parametrize("face", FACES)
def test_the_same_request_gives_the_same_file(face, request_of, expected, tmp_path, capsys):
    folder, said = FACES[face](request_of(), tmp_path, capsys)
    assert said == ""
    path = folder / "mycat.delta.safetensors"
    assert Delta.load(path).provenance.tokens == {"mycat": "cat"}
    assert all(torch.as_tensor(entry).any() for entry in Delta.load(path).entries.values())
    # But for how some processors round the last bit of a float16, by where a tensor lies in memory.
    told, tensors = read(path.read_bytes())
    expected_told, expected_tensors = read(expected)
    assert told == expected_told
    torch.testing.assert_close(tensors, expected_tensors, rtol=2**-10, atol=2**-24)


LABELS = {"max_train_steps": "Max steps", "learning_rate": "Learning rate",
          "train_batch_size": "Batch size", "resolution": "Width and height",
          "snr_gamma": "Min-SNR gamma"}  # fmt: skip
"""What a page calls settings that the command line calls --NAME, and the API by name."""


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max_train_steps": 0}, "{max_train_steps} must be 1 or more, not 0"),
        ({"max_train_steps": -5}, "{max_train_steps} must be 1 or more, not -5"),
        ({"train_batch_size": 0}, "{train_batch_size} must be 1 or more, not 0"),
        ({"learning_rate": "fast"}, "{learning_rate}: 'fast' is not a learning rate; write 1e-5, or 1e-5:100, 5e-6 to"),
        ({"snr_gamma": -1.0}, "{snr_gamma} must be above 0, not -1.0"),
        ({"resolution": 12}, "{resolution} must be a multiple of 8 pixels, such as 512, not 12"),
        ({"concept": {"instance_data_dir": "no/such/folder"}}, "there is no folder no/such/folder"),
        ({"concept": {"instance_prompt": "photo of a cat"}}, "no caption or prompt has the modifier token mycat; the"),
        ({"concept": {"instance_prompt": "a mycats"}}, "in the caption 'a mycats' letters or digits touch mycat, so"),
    ],
    ids=lambda each: str(each) if isinstance(each, dict) else "",
)
def test_the_same_mistake_is_the_same_sentence_in_the_words_of_the_face(
    face, change, said, request_of, tmp_path, capsys
):
    known = {
        "command": {name: f"--{name}" for name in LABELS}, "app": LABELS, "api": {name: name for name in LABELS},
    }[face]  # fmt: skip
    folder, told = FACES[face](request_of(**change), tmp_path, capsys)
    assert told.replace("&#x27;", "'").startswith(said.format(**known))
    assert not list(folder.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("face", "change", "said"),
    [
        *(
            (face, change, said)
            for face in ("command", "app")
            for change, said in (
                ({"concept": {"instance_prompt": "a cat"}}, "no caption or prompt has the modifier token mycat"),
                ({"concept": {"instance_prompt": "a mycat8"}}, "in the caption 'a mycat8' letters or digits touch"),
                ({"initializer_token": " "}, "the initializer token '' for mycat is empty; give a word such as cat"),
                ({"resume_from_checkpoint": "latest", "hflip": False}, "belongs to another training ("),
            )
        ),
        ("command", {"train_blocks": "middle"}, "no cross-attention layer is in 'middle'; choose from down, mid, up"),
    ],
)
def test_what_needs_no_model_is_refused_before_one_is_loaded(
    face, change, said, request_of, tmp_path, capsys, monkeypatch
):
    if "resume_from_checkpoint" in change:
        assert FACES[face](request_of(), tmp_path, capsys)[1] == ""

    def loaded(*_):
        raise UserError("a model was loaded")

    monkeypatch.setattr(command, "load_model", loaded)
    monkeypatch.setattr(OneModel, "get", loaded)
    _, told = FACES[face](request_of(**change), tmp_path, capsys)
    assert said in told.replace("&#x27;", "'")
