"""The pictures of a folder as a training will see them, in small, and which of them it will not."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path

from PIL import Image, ImageOps

from ..data.pictures import UnusablePicture, find_pictures, is_moving, load_picture, moving_text, unread_pictures
from ..errors import UserError
from ..storage import printable, typed_path
from .training_form import PICTURE_SHAPES
from .training_page import error_html

_SIDE, _SHOWN, _READ = 112, 12, 60


def picture_strip(folder: str | None, shape: str, use_alpha: bool = False) -> str:
    """A folder's first pictures (HTML), cropped as `shape` (of PICTURE_SHAPES) says; how many, what is left out, why.

    "" for no folder, and for one that cannot be used, see `folder_fault`. Of a folder with very many pictures the first
    60 are looked into.
    """
    if not (folder or "").strip():
        return ""
    try:
        path = typed_path(folder or "")
        found = list(dict.fromkeys(find_pictures(path)))
        left_out = dict(unread_pictures(path))
    except UserError:
        return ""
    shown: list[str] = []
    for picture in found[:_READ]:
        try:
            loaded = load_picture(picture, use_alpha)
        except UnusablePicture as error:
            left_out[picture] = str(error)
            continue
        if len(shown) < _SHOWN:
            shown.append(_thumbnail(loaded.colors, PICTURE_SHAPES.get(shape, "crop"), picture.name))
    unreadable = sum(picture in left_out for picture in found)
    moving = [each.name for each in found[:_READ] if each not in left_out and is_moving(each)]
    told = f"{_said(len(found) - unreadable, left_out)} {html.escape(moving_text(moving, 'will be'))}".strip()
    return f'<div class="cd-strip">{"".join(shown)}<p>{told}</p></div>'


def folder_fault(folder: str | None) -> str:
    """Why a folder cannot be used (HTML); "" if it can be, and for no folder."""
    try:
        if (folder or "").strip():
            find_pictures(typed_path(folder or ""))
    except UserError as error:
        return error_html(error)
    return ""


def _thumbnail(picture: Image.Image, mode: str, name: str) -> str:
    square = (_SIDE, _SIDE)
    if mode == "crop":
        small = ImageOps.fit(picture, square)
    elif mode == "pad":
        small = ImageOps.pad(picture, square, color="white")
    else:
        small = picture.copy()
        small.thumbnail((2 * _SIDE, _SIDE))
    content = io.BytesIO()
    small.save(content, "jpeg", quality=80)
    source = base64.b64encode(content.getvalue()).decode()
    name = html.escape(printable(name))
    return f'<img alt="{name}" title="{name}" src="data:image/jpeg;base64,{source}">'


def _said(used: int, left_out: dict[Path, str]) -> str:
    count = f"{used} picture{'' if used == 1 else 's'}."
    return f"{count} {left_out_html(left_out)}" if left_out else count


def left_out_html(left_out: dict[Path, str]) -> str:
    """The names of files that are left out, each with the reason."""
    reasons = "; ".join(
        f"{html.escape(printable(path.name))}: {html.escape(reason)}" for path, reason in list(left_out.items())[:3]
    )
    more = f"; and {len(left_out) - 3} more" if len(left_out) > 3 else ""
    return f"Left out: {reasons}{more}."
