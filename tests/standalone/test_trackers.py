"""What services are told of a training, by Accelerate's trackers."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from accelerate import tracking
from PIL import Image

from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.standalone import trackers
from lib_custom_diffusion.standalone.trackers import Trackers, chosen_services

PICTURES = [Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")]


class Told:
    """A tracker of Accelerate's that writes down what it is told; as a Comet experiment, too."""

    calls: list[tuple[Any, ...]]

    def __init__(self, name: str) -> None:
        self.name, self.calls, self.tracker = name, [], self

    def __call__(self, project: str) -> Told:
        self.calls.append(("project", project))
        return self

    def __getattr__(self, called: str) -> Any:
        return lambda *arguments, **options: self.calls.append((called, *arguments, options))


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> dict[str, Told]:
    """Both services, installed."""
    both = {name: Told(name) for name in ("wandb", "comet_ml")}
    for name, told in both.items():
        monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, name, told)
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: list(both))
    return both


def test_services_are_told_of_settings_steps_and_pictures(services: dict[str, Told]) -> None:
    following = Trackers(["wandb", "comet_ml"], {"seed": 1})
    following.add(3, {"loss": 0.5})
    following.add_pictures(3, PICTURES)
    following.close()
    same = [("project", "custom-diffusion"), ("start", {}), ("store_init_configuration", {"seed": 1}, {})]
    same.append(("log", {"loss": 0.5}, {"step": 3}))
    assert services["wandb"].calls == [
        *same, ("log_images", {"validation": PICTURES}, {"step": 3}), ("finish", {})
    ]  # fmt: skip
    assert services["comet_ml"].calls == [
        *same,
        ("log_image", PICTURES[0], {"name": "validation-0", "step": 3}),
        ("log_image", PICTURES[1], {"name": "validation-1", "step": 3}),
        ("finish", {}),
    ]


def test_all_are_those_that_are_installed(services: dict[str, Told], monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen_services("all") == ["wandb", "comet_ml"]
    assert chosen_services("wandb") == ["wandb"]
    assert chosen_services("none") == chosen_services("tensorboard") == []
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: ["comet_ml", "mlflow"])
    assert chosen_services("all") == ["comet_ml"]
    with pytest.raises(UserError, match="wandb is not installed; pip install wandb"):
        chosen_services("wandb")


def test_a_service_that_cannot_be_started_is_told_in_one_sentence(services: dict[str, Told]) -> None:
    def refused() -> None:
        raise RuntimeError("no API key\nsee the manual")

    services["wandb"].start = refused
    with pytest.raises(UserError, match="wandb cannot be started: no API key; use --report_to none"):
        Trackers(["wandb"], {})


class Wandb(ModuleType):
    """Stands for the library, and writes down how it is called."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.calls: list[tuple[Any, ...]] = []
        self.config = SimpleNamespace(update=lambda values, **options: self.calls.append(("config", values)))

    def init(self, project: str) -> SimpleNamespace:
        self.calls.append(("init", project))
        return SimpleNamespace(
            log=lambda values, step: self.calls.append(("log", values, step)),
            finish=lambda: self.calls.append(("finish",)),
        )

    def Image(self, picture: Image.Image) -> Image.Image:
        return picture


def test_wandb_is_called_as_its_manual_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """By Accelerate's own tracker, where the library is not installed, too."""
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: ["wandb"])
    following = Trackers(chosen_services("all"), {"seed": 1})
    following.add(1, {"loss": 0.5})
    following.add_pictures(1, PICTURES)
    following.close()
    assert wandb.calls == [
        ("init", "custom-diffusion"), ("config", {"seed": 1}), ("log", {"loss": 0.5}, 1),
        ("log", {"validation": PICTURES}, 1), ("finish",),
    ]  # fmt: skip


def test_wandb_itself_takes_what_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    following = Trackers(chosen_services("wandb"), {"seed": 1})
    following.add(1, {"loss": 0.5})
    following.add_pictures(1, PICTURES)
    following.close()
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(list(tmp_path.glob("wandb/offline-run-*/files/media/images/*.png"))) == 2
