"""The API answers with what there is, and a mistake with a sentence and a number above 400."""

from __future__ import annotations

import asyncio

import pytest
from modules import paths, shared
from PIL import Image
from test_extra_network import save

from lib_custom_diffusion.webui.delta_library import library
from lib_custom_diffusion.webui.new_embedding import create_embedding

fastapi = pytest.importorskip("fastapi")
from lib_custom_diffusion.webui import api  # noqa: E402 - it needs fastapi


@pytest.fixture
def folder(host, tmp_path, monkeypatch):
    monkeypatch.setattr(library, "folder", tmp_path / "deltas")
    return tmp_path / "deltas"


def test_deltas_are_listed_with_their_tokens_and_damaged_ones_with_the_reason(folder, host):
    save(folder, "cat", host, "<new1>")
    (folder / "broken.delta.safetensors").write_bytes(b"no")
    listed = {each["name"]: each for each in api.refresh_deltas()}
    assert listed["cat"]["tokens"] == {"<new1>": ""} and len(listed["cat"]["hash"]) == 12
    assert "2 bytes" in listed["broken"]["error"]
    assert api.list_deltas() == list(listed.values())


@pytest.fixture
def pictures(tmp_path):
    made = tmp_path / "pictures"
    made.mkdir()
    Image.new("RGB", (16, 16), (90, 40, 200)).save(made / "one.png")
    (made / "broken.png").write_bytes(b"no picture")
    return made


def ask(pictures, **more):
    """A training of two steps, as a program asks for it."""
    concept = {"instance_data_dir": str(pictures), "instance_prompt": "photo of a [name]", "class_prompt": "cat"}
    return {"concepts": [concept], "modifier_token": ["mycat"], "max_train_steps": 2, "train_batch_size": 1, **more}


def test_a_training_that_cannot_be_is_a_sentence(folder, pictures):
    with pytest.raises(fastapi.HTTPException) as raised:
        api.train_custom_diffusion(ask(pictures, modifier_token=["nobody"]))
    assert raised.value.status_code == 422
    assert "there is no embedding 'nobody'" in raised.value.detail


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batch_size": 4}, "there is no setting 'batch_size'; there are"),
        ({"max_train_steps": "many"}, "max_train_steps must be a whole number, not 'many'"),
        ({"max_train_steps": 2.5}, "max_train_steps must be a whole number, not 2.5"),
        ({"hflip": "yes"}, "hflip must be true or false, not 'yes'"),
        ({"concepts": "cat"}, "concepts must be a list, not 'cat'"),
        ({"concepts": [{"pictures": "x"}]}, "concept 1: unknown key 'pictures'"),
        (
            {"mixed_precision": "bf16"},
            "mixed_precision is 'no' here, by the WebUI's own settings and words, not 'bf16'",
        ),
    ],
)
def test_settings_that_there_are_not_are_refused(folder, pictures, change, said):
    create_embedding("mycat", "ktn", 1, overwrite=False)
    with pytest.raises(fastapi.HTTPException) as raised:
        api.train_custom_diffusion(ask(pictures, **change))
    assert raised.value.status_code == 422 and said in raised.value.detail
    assert not list(folder.iterdir())


def test_a_training_answers_with_what_it_made_and_used(folder, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "data_path", str(tmp_path))
    create_embedding("mycat", "ktn", 1, overwrite=False)
    answer = api.train_custom_diffusion(ask(pictures))
    assert (answer["steps"], answer["interrupted"]) == (2, False)
    assert answer["delta"] == str(folder / "mycat.delta.safetensors")
    assert answer["prompt"] == "photo of a mycat cat <delta:mycat:1>"
    assert answer["notes"].startswith("1 of 2 pictures was used; left out: broken.png (it is not a picture")


@pytest.mark.parametrize(
    ("enabled", "password", "guarded"), [(False, None, None), (True, None, 1), (True, "me:secret", 2)]
)
def test_routes_are_there_with_the_hosts_api_and_behind_its_password(host, monkeypatch, enabled, password, guarded):
    monkeypatch.setattr(shared.cmd_opts, "api", enabled)
    monkeypatch.setattr(shared.cmd_opts, "api_auth", password)
    routes: dict[str, int] = {}

    class App:
        def add_api_route(self, path, endpoint, methods, dependencies):
            routes[f"{methods[0]} {path}"] = len(dependencies)

    api.register(None, App())
    expected = ["GET /sdapi/v1/deltas", "POST /sdapi/v1/refresh-deltas", "POST /sdapi/v1/train/custom-diffusion"]
    assert routes == ({} if not enabled else {**dict.fromkeys(expected, guarded), expected[-1]: guarded + 1})


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ("application/json", 422), ("application/json; charset=utf-8", 422),  # it is read, and is no training
        ("text/plain", 415), ("application/x-www-form-urlencoded", 415), ("application/json-seq", 415), (None, 415),
    ],
)  # fmt: skip
def test_what_any_site_can_have_a_browser_send_begins_no_training(folder, monkeypatch, sent, status):
    monkeypatch.setattr(shared.cmd_opts, "api", True)
    app = fastapi.FastAPI()
    api.register(None, app)
    assert answered(app, "/sdapi/v1/train/custom-diffusion", b'{"no": "setting"}', sent) == status


def answered(app, path: str, body: bytes, content_type: str | None) -> int:
    """The status that a POST of the body is answered with."""
    headers = [] if content_type is None else [(b"content-type", content_type.encode())]
    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "path": path, "raw_path": path.encode(),
        "query_string": b"", "headers": headers, "scheme": "http", "server": ("127.0.0.1", 7860),
        "client": ("127.0.0.1", 1), "root_path": "",
    }  # fmt: skip
    messages = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        messages.append(message)

    asyncio.run(app(scope, receive, send))
    return messages[0]["status"]
