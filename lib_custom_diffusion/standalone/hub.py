"""A training's result on the Hub: a repository with the delta, its words, pictures, and a card on how to use them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from huggingface_hub import CommitOperationAdd, HfApi, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from PIL import Image

from ..delta import SUFFIX, Delta
from ..errors import UserError

_T = TypeVar("_T")


class Repository:
    """A model repository of the user's, made if it is not there.

    Raises UserError if the Hub cannot be reached or refuses: before a training, so that nothing is trained in vain.
    """

    def __init__(self, name: str, token: str | None) -> None:
        self._api = HfApi(token=token)
        self.name: str = _told(lambda: self._api.create_repo(name, exist_ok=True).repo_id)

    def publish(self, files: Sequence[Path], pictures: Sequence[Image.Image], card: str) -> str:
        """Put files, pictures (image_0.png …) and card there in one commit; returns its address.

        Raises UserError as the constructor does.
        """
        operations = [CommitOperationAdd(path.name, str(path)) for path in files]
        operations += [CommitOperationAdd(_picture(number), _png(each)) for number, each in enumerate(pictures)]
        operations.append(CommitOperationAdd("README.md", card.encode()))
        return str(_told(lambda: self._api.create_commit(self.name, operations, commit_message="End of training")))


def card(
    repository: str, delta_file: Path, delta: Delta, prompt: str, base_model: str | None, licence: str, pictures: int
) -> str:
    """The model card: licence, base model and prompt in fields, pictures, and what to write in each program.

    base_model: by its name on the Hub; None for one that is not there.
    """
    fields = ModelCardData(
        license=licence,
        base_model=base_model,
        pipeline_tag="text-to-image",
        instance_prompt=prompt,
        tags=["text-to-image", "stable-diffusion", "diffusers", "custom-diffusion", "diffusers-training"],
        widget=[{"text": prompt, "output": {"url": _picture(number)}} for number in range(pictures)] or None,
    )
    shown = "\n".join(f"![{prompt}](./{_picture(number)})" for number in range(pictures))
    taught = base_model or "a model of Stable Diffusion"
    words = ", ".join(f"`{token}`" for token in delta.embeddings) or "none"
    return f"""---
{fields.to_yaml()}
---

# {repository}

What [Custom Diffusion](https://www.cs.cmu.edu/~custom-diffusion) has taught {taught}. New words: {words}.

{shown}

Write `{prompt}`, with `{delta_file.name}` loaded:

- AUTOMATIC1111's WebUI with the extension Custom Diffusion: add `<delta:{delta_file.name.removesuffix(SUFFIX)}:1>`
- ComfyUI with the same: the node *Load Delta (Custom Diffusion)*
- elsewhere: `python -m lib_custom_diffusion convert "{delta_file.name}" --to lora --output FOLDER`
"""


def _picture(number: int) -> str:
    return f"image_{number}.png"


def _png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "png")
    return content.getvalue()


def _told(call: Callable[[], _T]) -> _T:
    """What the call gives. Raises UserError, in one sentence, for what the Hub or the network says."""
    try:
        return call()
    except LocalTokenNotFoundError as error:
        raise UserError("the Hub does not know you: run `hf auth login`, or give --hub_token") from error
    except HFValidationError as error:
        raise UserError(f"--hub_model_id is not a valid repository name: {' '.join(str(error).split())}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "none"
        hint = "; give a --hub_token with write access" if status in (401, 403) else ""
        raise UserError(f"the Hub refused (status {status}): {_first_line(error)}{hint}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"the Hub cannot be reached: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
