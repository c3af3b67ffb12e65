"""What is put on the Hub, by huggingface_hub's own client, against a server on this machine."""

from __future__ import annotations

import shlex
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from hub_stand_in import HubStandIn
from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.standalone.cli import parser
from lib_custom_diffusion.standalone.hub import Repository, card


def my_card(pictures: int, file: str = "x/cat.delta.safetensors") -> str:
    delta = Delta({}, {"<new1>": torch.ones(1, 4)})
    return card("me/cat", Path(file), delta, "photo of a <new1> cat", "v1-5", "mit", pictures)


def test_a_repository_is_made_and_holds_files_pictures_and_card_in_one_commit(hub: HubStandIn, tmp_path: Path) -> None:
    file = tmp_path / "cat.delta.safetensors"
    file.write_bytes(b"\0delta")
    repository = Repository("me/cat", "hf_right")
    assert hub.repositories == {"me/cat": {}}
    address = repository.publish([file], [Image.new("RGB", (4, 4), "red")], my_card(1))
    assert "me/cat" in address and hub.commits == 1
    found = hub.repositories["me/cat"]
    assert sorted(found) == ["README.md", "cat.delta.safetensors", "image_0.png"]
    assert found["cat.delta.safetensors"] == b"\0delta" and found["image_0.png"][1:4] == b"PNG"
    assert found["README.md"].decode() == my_card(1)


def test_a_name_without_an_owner_is_the_users_own(hub: HubStandIn) -> None:
    assert Repository("cat", "hf_right").name == "me/cat"


def test_the_card_has_licence_model_prompt_and_pictures_in_its_fields() -> None:
    fields = ModelCard(my_card(2)).data
    assert (fields.license, fields.base_model) == ("mit", "v1-5")
    assert fields.to_dict()["instance_prompt"] == "photo of a <new1> cat"
    assert [each["output"]["url"] for each in fields.widget] == ["image_0.png", "image_1.png"]
    assert "![photo of a <new1> cat](./image_1.png)" in my_card(2) and "<delta:cat:1>" in my_card(2)
    assert "![" not in my_card(0) and "widget" not in ModelCard(my_card(0)).data.to_dict()


def test_the_command_of_the_card_runs_as_printed_whatever_the_file_is_called() -> None:
    """A name has letters, digits, dots, dashes and spaces: double quotes hold it together in every shell."""
    line = next(line for line in my_card(0, "x/my cat.delta.safetensors").splitlines() if " convert " in line)
    arguments = shlex.split(line.split("`")[1])
    assert arguments[:5] == ["python", "-m", "lib_custom_diffusion", "convert", "my cat.delta.safetensors"]
    assert parser().parse_args(arguments[3:]).to == "lora" and "'" not in line


@pytest.mark.parametrize(
    ("name", "token", "sentence"),
    [
        ("me/cat", "hf_wrong", "the Hub refused .status 401.*give a --hub_token with write access"),
        ("a/b/c", "hf_right", "--hub_model_id is not a valid repository name"),
    ],
)
def test_what_the_hub_refuses_is_told_in_one_sentence(hub: HubStandIn, name: str, token: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as told:
        Repository(name, token)
    assert "\n" not in str(told.value)


def test_a_hub_that_is_not_there_is_told_in_one_sentence(hub: HubStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", "http://127.0.0.1:9", raising=False)
    with pytest.raises(UserError, match="the Hub cannot be reached"):
        Repository("me/cat", "hf_right")
