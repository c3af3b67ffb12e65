"""Features are those that the models themselves give."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModel, CLIPModel, CLIPProcessor, CLIPTokenizer

from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.standalone.evaluation.alignment import kernel_distance, text_alignment
from lib_custom_diffusion.standalone.evaluation.eyes import ClipEyes, DinoEyes, JudgeEyes
from lib_custom_diffusion.standalone.toy.judge import Judge

CPU = torch.device("cpu")


def pictures(count: int = 3) -> list[Image.Image]:
    colours = ["red", "green", "blue", "yellow", "black", "white"]
    return [Image.linear_gradient("L").convert("RGB").rotate(30 * n, fillcolor=colours[n]) for n in range(count)]


def test_clips_text_alignment_is_what_its_own_logits_say(clip_folder: Path) -> None:
    eyes, captions = ClipEyes(str(clip_folder), CPU), ["a cat", "a red cup on a green background", "a dog"]
    model = CLIPModel.from_pretrained(clip_folder)
    processor = CLIPProcessor(
        AutoImageProcessor.from_pretrained(clip_folder), CLIPTokenizer.from_pretrained(clip_folder)
    )
    inputs = processor(text=captions, images=pictures(), padding=True, return_tensors="pt")
    with torch.no_grad():
        cosines = model(**inputs).logits_per_image / model.logit_scale.exp()
    expected = 2.5 * cosines.diagonal().clamp_min(0).mean()
    made = text_alignment(eyes.meanings(pictures()), eyes.captions(captions), eyes.text_scale)
    assert made == pytest.approx(float(expected), abs=1e-5)


def test_dinos_feature_is_the_class_token(dino_folder: Path) -> None:
    model, processor = AutoModel.from_pretrained(dino_folder), AutoImageProcessor.from_pretrained(dino_folder)
    with torch.no_grad():
        expected = model(**processor(pictures(), return_tensors="pt")).last_hidden_state[:, 0]
    torch.testing.assert_close(DinoEyes(str(dino_folder), CPU).things(pictures()), expected)


def test_batches_change_nothing(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    eyes = ClipEyes(str(clip_folder), CPU)
    whole = eyes.things(pictures(5))
    monkeypatch.setattr("lib_custom_diffusion.standalone.evaluation.eyes._BATCH", 2)
    torch.testing.assert_close(eyes.things(pictures(5)), whole)


def test_the_judges_figures_are_its_own() -> None:
    eyes, judge, captions = JudgeEyes(), Judge.load(), ["a cat", "a dog", "a cup"]
    assert text_alignment(eyes.meanings(pictures()), eyes.captions(captions)) == pytest.approx(
        float((judge.embed_meanings(pictures()) * judge.embed_texts(captions)).sum(dim=1).clamp_min(0).mean()), abs=1e-6
    )
    one, other = pictures(6)[:3], pictures(6)[3:]
    # The judge's kernel is an eighth of KID's, and its estimate counts each picture with itself, where cosines are 1.
    x, y = eyes.contents(one), eyes.contents(other)
    within = sum((F.normalize(part, dim=1) @ F.normalize(part, dim=1).T + 1).pow(3).sum() - 8 * 3 for part in (x, y))
    biased = kernel_distance(x, y) - float(within) / 6 + (float(within) + 2 * 8 * 3) / 9
    assert biased / 8 == pytest.approx(judge.drift(one, other), abs=1e-5)


@pytest.mark.parametrize(("eyes", "flag"), [(ClipEyes, "--clip"), (DinoEyes, "--dino")])
def test_a_model_that_is_not_there_is_told_in_one_sentence(tmp_path: Path, eyes: type, flag: str) -> None:
    with pytest.raises(UserError, match=f"cannot be loaded.*give {flag} a folder"):
        eyes(str(tmp_path), CPU)


def test_a_hub_that_is_out_of_reach_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def unreachable(*_: object, **__: object) -> None:
        asked.append(1)
        raise ConnectionError

    monkeypatch.setattr("lib_custom_diffusion.standalone.evaluation.eyes.HfApi.model_info", unreachable)
    with pytest.raises(UserError, match=r"not be downloaded from the Hub \(ConnectionError\); give --clip a folder"):
        ClipEyes("nobody/no-such-model", CPU)
    assert asked == [1]
