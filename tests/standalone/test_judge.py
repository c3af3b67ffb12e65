"""The judge's exam, and what it calls recognised: a concept, not its colours or its shape."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter

from lib_custom_diffusion.standalone.toy import counterfeits, exam
from lib_custom_diffusion.standalone.toy.concepts import bundled_concepts
from lib_custom_diffusion.standalone.toy.judge import NAMES, Judge

SHEET = Path(__file__).with_name("exam.webp")
FLAMINGO = Path(__file__).parents[1] / "flamingo"


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load()


@pytest.fixture(scope="module")
def marks(judge: Judge) -> exam.Marks:
    rows = exam.read(Image.open(SHEET).convert("RGB"))
    return exam.sit(judge, rows[::3], exam.names_of_rows(len(rows))[::3])


def pictures_in(folder: Path) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.png"))]


@pytest.fixture(scope="module")
def raccoons() -> list[Image.Image]:
    return pictures_in(bundled_concepts()["raccoon"].folder)


@pytest.fixture(scope="module")
def two_faced_cats() -> list[Image.Image]:
    return pictures_in(bundled_concepts()["two-faced-cat"].folder)


# -- the exam ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", exam.KINDS)
def test_true_pictures_rank_above_rivals_of_every_kind(marks: exam.Marks, kind: str) -> None:
    assert marks.above[kind] >= 0.95


def test_the_exam_has_many_concepts_and_every_kind_of_rival_of_each() -> None:
    rows = exam.read(Image.open(SHEET))
    assert len(rows) >= 24
    assert {len(row) for row in rows} == {exam.KNOWN + exam.TRUE + exam.OF_A_KIND * len(exam.KINDS)}


def test_true_pictures_are_recognised_and_rivals_are_not(marks: exam.Marks) -> None:
    """Torn ones are the hardest: of what is torn into nine, some have a face left."""
    assert marks.recognised["true"] >= 0.95
    assert max(marks.recognised[kind] for kind in exam.KINDS) <= 0.3
    assert sum(marks.recognised[kind] for kind in exam.KINDS) / len(exam.KINDS) <= 0.15


def test_the_exam_can_be_failed(judge: Judge) -> None:
    """By who lives on colour alone: it can't tell a thing from its torn self."""

    class OfColours(Judge):
        def embed_identities(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
            means = [np.asarray(picture.resize((1, 1), Image.Resampling.BOX)).ravel() for picture in pictures]
            return F.normalize(torch.tensor(np.array(means), dtype=torch.float32), dim=1)

    blind = OfColours(judge.network, torch.zeros(len(NAMES), 3))
    rows = exam.read(Image.open(SHEET).convert("RGB"))[:6]
    marks = exam.sit(blind, rows, exam.names_of_rows(len(rows)))
    assert max(marks.above.values()) < 0.9
    assert marks.recognised["true"] < 0.95


# -- recognised -------------------------------------------------------------------------------------------------------


def test_true_pictures_are_recognised(
    judge: Judge, raccoons: list[Image.Image], two_faced_cats: list[Image.Image]
) -> None:
    assert all(judge.recognised(raccoons[::2], raccoons[1::2], "raccoon"))
    # But for the fifth, of 17 pixels for the judge: too few to tell a face from one whose parts are out of place.
    assert all(judge.recognised(two_faced_cats[:4:2], two_faced_cats[1::2]))


def test_other_things_are_not(judge: Judge, raccoons: list[Image.Image], two_faced_cats: list[Image.Image]) -> None:
    assert not any(judge.recognised(two_faced_cats, raccoons, "raccoon"))
    assert not any(judge.recognised(pictures_in(FLAMINGO), two_faced_cats))


def test_a_thing_as_blurred_as_a_small_model_draws_is_still_recognised(
    judge: Judge, raccoons: list[Image.Image]
) -> None:
    blurred = [picture.filter(ImageFilter.GaussianBlur(1.5)) for picture in raccoons[:4]]
    assert sum(judge.recognised(blurred, raccoons, "raccoon")) >= 3


def test_a_style_is_told_whatever_it_shows(judge: Judge, raccoons: list[Image.Image]) -> None:
    stickers = pictures_in(bundled_concepts()["sticker"].folder)
    assert all(judge.in_style(stickers[::2], stickers[1::2]))
    assert not any(judge.in_style(raccoons, stickers))


# -- counterfeits -----------------------------------------------------------------------------------------------------


def square_on_blue() -> np.ndarray:
    """A red square with a black eye, rows and columns 8 to 31 of 64, on blue."""
    picture = np.full((64, 64, 3), (0, 0, 255), np.uint8)
    picture[8:32, 8:32] = (200, 40, 40)
    picture[12:16, 12:16] = 0
    return picture


def test_the_thing_is_what_differs_from_the_ground() -> None:
    mask = counterfeits.thing_mask(square_on_blue())
    assert mask[8:32, 8:32].all() and mask.sum() == 24 * 24


@pytest.mark.parametrize("kind", counterfeits.SPOILT)
def test_a_counterfeit_is_another_picture_and_leaves_the_true_one_alone(kind: str) -> None:
    picture = square_on_blue()
    changed = counterfeits.SPOILT[kind](picture, random.Random(0))
    assert (changed != picture).any()
    assert (picture == square_on_blue()).all()


def test_what_is_torn_has_the_same_pixels_in_other_places() -> None:
    picture = square_on_blue()
    changed = counterfeits.torn(picture, random.Random(0))
    assert sorted(map(tuple, changed.reshape(-1, 3).tolist())) == sorted(map(tuple, picture.reshape(-1, 3).tolist()))


def test_what_is_recoloured_keeps_shape_and_ground() -> None:
    picture = square_on_blue()
    changed = counterfeits.recoloured(picture, random.Random(0))
    outside = ~counterfeits.thing_mask(picture)
    assert (changed[outside] == picture[outside]).all()
    assert np.abs(changed[20, 20].astype(int) - picture[20, 20]).max() > 40


def test_what_is_warped_has_its_own_colours_in_other_places() -> None:
    picture = square_on_blue()
    changed = counterfeits.warped(picture, random.Random(0))
    assert set(map(tuple, changed.reshape(-1, 3).tolist())) <= set(map(tuple, picture.reshape(-1, 3).tolist()))
    corners = [(8, 8), (8, 31), (31, 8), (31, 31)]
    assert any((changed[corner] != picture[corner]).any() for corner in corners)
    assert 0.4 < counterfeits.thing_mask(changed).sum() / (24 * 24) < 2.0


def test_half_is_hidden() -> None:
    assert counterfeits.thing_mask(counterfeits.halved(square_on_blue(), random.Random(0))).sum() == 24 * 12


def test_a_disguised_thing_has_its_own_shape_and_the_others_colours() -> None:
    other = np.full((64, 64, 3), 255, np.uint8)
    other[20:30, 30:50] = (0, 200, 0)
    changed = counterfeits.in_colours_of(other, square_on_blue())
    assert (counterfeits.thing_mask(changed) == counterfeits.thing_mask(other)).all()
    colours, counts = np.unique(changed[20:30, 30:50].reshape(-1, 3), axis=0, return_counts=True)
    assert colours.tolist() == [[0, 0, 0], [200, 40, 40]]
    assert counts[0] / counts.sum() == pytest.approx(16 / 576, abs=0.01)
