"""The API answers with what there is, and a mistake with a sentence and a number above 400."""

from __future__ import annotations

import pytest
from modules import shared
from test_extra_network import save

from lib_custom_diffusion.ui.training_form import ConceptForm, TrainingForm
from lib_custom_diffusion.webui.library import library

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
    assert "damaged" in listed["broken"]["error"]
    assert api.list_deltas() == list(listed.values())


def test_a_training_that_cannot_be_is_a_sentence(folder):
    with pytest.raises(fastapi.HTTPException) as raised:
        api.train_custom_diffusion(TrainingForm([ConceptForm("nobody", "x")]))
    assert raised.value.status_code == 422
    assert "there is no embedding 'nobody'" in raised.value.detail


@pytest.mark.parametrize(
    ("enabled", "password", "guarded"), [(False, None, None), (True, None, 0), (True, "me:secret", 1)]
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
    assert routes == ({} if not enabled else dict.fromkeys(expected, guarded))
