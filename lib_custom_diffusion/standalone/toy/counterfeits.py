"""Pictures that are nearly a concept and are not: by what a judge that lives on colour, or on shape alone, is caught.

They are made of pictures on flat grounds alone, so a concept's own pictures can be counterfeited without the world.
Pictures are arrays (side, side, 3) of 0 to 255.
"""

import random
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

Picture = np.ndarray
WARP_WAVES, WARP_STRENGTH = 5, (0.07, 0.12)  # bends across a thing, and their size as a share of its own


def ground(picture: Picture) -> np.ndarray:
    """The colour of the ground, (3,): the median along the border."""
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    return np.median(border, axis=0)


def thing_mask(picture: Picture) -> np.ndarray:
    """Where the thing is, (side, side): what differs from the ground; everywhere if nothing does."""
    mask = np.abs(picture.astype(np.float32) - ground(picture)).max(axis=2) > 24
    return mask if mask.any() else np.ones_like(mask)


def thing_box(picture: Picture) -> tuple[slice, slice]:
    """The rows and columns of the smallest box around `thing_mask`."""
    rows, columns = (np.flatnonzero(thing_mask(picture).any(axis=axis)) for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def recoloured(picture: Picture, rng: random.Random) -> Picture:
    """The thing's shape in colours that it does not have: hues turned, and grays tinted."""
    turn = rng.randint(48, 208)
    hue, saturation, value = (np.asarray(band, np.float32) for band in Image.fromarray(picture).convert("HSV").split())
    turned = np.stack([(hue + turn) % 256, np.clip(saturation * 0.8 + 90, 0, 255), value], axis=2).astype(np.uint8)
    changed = np.asarray(Image.fromarray(turned, "HSV").convert("RGB"))
    return np.where(thing_mask(picture)[..., None], changed, picture)


def torn(picture: Picture, rng: random.Random) -> Picture:
    """The thing cut into nine pieces, which changed places."""
    rows, columns = thing_box(picture)
    height, width = (rows.stop - rows.start) // 3, (columns.stop - columns.start) // 3
    corners = [(rows.start + height * row, columns.start + width * column) for row in range(3) for column in range(3)]
    changed, order = picture.copy(), rng.sample(range(9), 9)
    for (top, left), (other_top, other_left) in zip(corners, (corners[index] for index in order), strict=True):
        piece = picture[other_top : other_top + height, other_left : other_left + width]
        changed[top : top + height, left : left + width] = piece
    return changed


def blurred(picture: Picture, rng: random.Random) -> Picture:
    """The thing's colours without a face: blurred by a tenth of its size or more."""
    rows, columns = thing_box(picture)
    size = max(rows.stop - rows.start, columns.stop - columns.start)
    radius = max(2.0, size * rng.uniform(0.09, 0.16))
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius)))


def halved(picture: Picture, rng: random.Random) -> Picture:
    """Half of the thing, the other half hidden."""
    rows, columns = thing_box(picture)
    changed, side = picture.copy(), rng.randrange(4)
    middle_row, middle_column = (rows.start + rows.stop) // 2, (columns.start + columns.stop) // 2
    hidden = (
        (slice(None, middle_row), slice(None)),
        (slice(middle_row, None), slice(None)),
        (slice(None), slice(None, middle_column)),
        (slice(None), slice(middle_column, None)),
    )[side]
    changed[hidden] = ground(picture).astype(np.uint8)
    return changed


def warped(picture: Picture, rng: random.Random) -> Picture:
    """The thing's colours and parts, out of place: pulled about as a generator does that has not learned its shape."""
    rows, columns = thing_box(picture)
    size, side = max(rows.stop - rows.start, columns.stop - columns.start), len(picture)
    noise = np.random.default_rng(rng.randrange(2**32))
    knots = max(3, round(WARP_WAVES * side / size) + 1)
    strength = size * rng.uniform(*WARP_STRENGTH)
    places = []
    for axis in np.mgrid[0:side, 0:side]:
        field = Image.fromarray(noise.normal(size=(knots, knots)).astype(np.float32))
        shifts = np.asarray(field.resize((side, side), Image.Resampling.BICUBIC))
        places.append(np.clip(np.rint(axis + strength * shifts / shifts.std()), 0, side - 1).astype(int))
    return picture[places[0], places[1]]


SPOILT: dict[str, Callable[[Picture, random.Random], Picture]] = {
    "recoloured": recoloured,
    "torn": torn,
    "blurred": blurred,
    "halved": halved,
    "warped": warped,
}


def in_colours_of(other: Picture, picture: Picture) -> Picture:
    """Another thing in this one's colours: its pixels, from dark to light, take this one's from dark to light."""
    mask, palette = thing_mask(other), picture[thing_mask(picture)]
    palette = palette[np.argsort(palette.sum(axis=1), kind="stable")]
    places = np.argwhere(mask)
    places = places[np.argsort(other[mask].astype(np.int32).sum(axis=1), kind="stable")]
    changed = other.copy()
    changed[:] = ground(other).astype(np.uint8)
    taken = np.linspace(0, len(palette) - 1, len(places)).round().astype(int)
    changed[places[:, 0], places[:, 1]] = palette[taken]
    return changed
