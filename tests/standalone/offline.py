"""A computer without a network."""

import socket

import pytest


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """No route to anywhere and an empty cache. Holds the names of the hosts that were asked for all the same."""
    asked: list[str] = []

    def refuse(host: object, *_arguments: object, **_named: object) -> None:
        asked.append(str(host))
        raise socket.gaierror("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return asked
