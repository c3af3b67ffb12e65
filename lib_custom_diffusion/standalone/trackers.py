"""Where a training is followed beside its own files and TensorBoard: services, by Accelerate's trackers of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from PIL import Image

from ..errors import UserError

PROJECT = "custom-diffusion"
"""What the project of a training is called, as in diffusers' script."""

_SERVICES = ("wandb", "comet_ml")


def chosen_services(report_to: str) -> list[str]:
    """The services that --report_to asks for; "all" for those that are installed.

    Raises UserError for one that is not installed.
    """
    installed = [str(each) for each in get_available_trackers()]
    if report_to in _SERVICES and report_to not in installed:
        raise UserError(f"{report_to} is not installed; pip install {report_to}, or use --report_to none")
    return [name for name in _SERVICES if name in installed and report_to in (name, "all")]


class Trackers:
    """Services that are told of each step of a training. Raises UserError if one cannot be started."""

    def __init__(self, services: Sequence[str], settings: Mapping[str, Any]) -> None:
        """settings: of the training, to be shown beside its losses."""
        PartialState()  # which the trackers' own log needs
        self._trackers = [_started(name, settings) for name in services]

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """What is known of a step."""
        for tracker in self._trackers:
            tracker.log(dict(numbers), step=step)

    def add_pictures(self, step: int, pictures: Sequence[Image.Image]) -> None:
        """Validation pictures."""
        for tracker in self._trackers:
            if tracker.name == "wandb":
                tracker.log_images({"validation": list(pictures)}, step=step)
            else:  # Accelerate's tracker of Comet takes numbers and texts alone
                for number, picture in enumerate(pictures):
                    tracker.tracker.log_image(picture, name=f"validation-{number}", step=step)

    def close(self) -> None:
        """End them, so that nothing is lost."""
        for tracker in self._trackers:
            tracker.finish()


def _started(name: str, settings: Mapping[str, Any]) -> Any:
    tracker = LOGGER_TYPE_TO_CLASS[name](PROJECT)
    try:
        tracker.start()
        tracker.store_init_configuration(dict(settings))
    except Exception as error:  # of libraries that all raise their own
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{name} cannot be started: {lines[0]}; use --report_to none to train without it") from error
    return tracker
