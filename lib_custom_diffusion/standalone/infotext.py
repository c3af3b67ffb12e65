"""How a picture was made, as text in the picture, as the WebUI writes and reads it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..backend import Sampling
from ..errors import UserError

SAMPLER = "DPM++ 2M"
"""The WebUI's name of the sampler that `DiffusersBackend` draws with."""
_NEGATIVE = "Negative prompt: "
_SETTING = re.compile(r'\s*([A-Za-z][\w /-]*): ("(?:[^"\\]|\\.)*"|[^,]*)(?:,|$)')


@dataclass(frozen=True)
class Parameters:
    """How a picture was made; None for what its text does not say."""

    prompt: str
    negative_prompt: str = ""
    steps: int | None = None
    cfg_scale: float | None = None
    seed: int | None = None
    size: tuple[int, int] | None = None


def infotext(
    prompt: str, sampling: Sampling, seed: int, size: tuple[int, int], model: str, checkpoint_hash: str
) -> str:
    """The text of a picture of (width, height) pixels."""
    settings = {
        "Steps": sampling.steps,
        "Sampler": SAMPLER,
        "CFG scale": f"{sampling.guidance_scale:g}",
        "Seed": seed,
        "Size": f"{size[0]}x{size[1]}",
        "Model hash": checkpoint_hash,
        "Model": model,
    }
    said = ", ".join(f"{name}: {_quoted(str(value))}" for name, value in settings.items() if value != "")
    return "\n".join(filter(None, [prompt, sampling.negative_prompt and _NEGATIVE + sampling.negative_prompt, said]))


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' if re.search(r'[,:"\n]', value) else value


def parse_infotext(text: str) -> Parameters:
    """What such a text says, whoever wrote it; numbers that are none are left out."""
    *lines, last = text.strip().splitlines() or [""]
    if not last.startswith("Steps: "):
        lines, last = [*lines, last], ""
    said = dict(_SETTING.findall(last))
    start = next((row for row, line in enumerate(lines) if line.startswith(_NEGATIVE.strip())), len(lines))
    size = re.fullmatch(r"(\d{1,5})x(\d{1,5})", said.get("Size", ""))
    return Parameters(
        "\n".join(lines[:start]).strip(),
        "\n".join(lines[start:]).removeprefix(_NEGATIVE.strip()).strip(),
        _whole(said.get("Steps", "")),
        float(said["CFG scale"]) if re.fullmatch(r"\d{1,3}(\.\d+)?", said.get("CFG scale", "")) else None,
        _whole(said.get("Seed", "")),
        (int(size[1]), int(size[2])) if size else None,
    )


def _whole(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\d{1,19}", text) else None


def read_parameters(path: Path) -> Parameters:
    """How the picture in a file was made. Raises UserError if it does not say, or is no picture."""
    try:
        with Image.open(path) as picture:
            text = picture.info.get("parameters")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path.name} is not a picture that can be read") from error
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{path.name} does not say how it was made: it has no generation parameters")
    return parse_infotext(text)
