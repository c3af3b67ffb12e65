"""The WebUI started with other flags: --medvram, and another folder of deltas."""

from __future__ import annotations

import shutil
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import PROMPT, WebUI


@pytest.fixture(scope="module")
def medvram(thing: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    elsewhere = tmp_path_factory.mktemp("deltas")
    shutil.copy(thing, elsewhere / "moved.delta.safetensors")
    running = WebUI(tmp_path_factory.mktemp("medvram"), "--medvram", "--deltas-dir", str(elsewhere))
    running.start()
    yield running
    running.stop()


def test_with_medvram_and_another_folder_the_picture_is_the_same(webui: WebUI, medvram: WebUI, untouched: str) -> None:
    assert medvram.picture(PROMPT)[0] == untouched
    prompt = "a thing house on a red background"
    here, there = webui.picture(f"{prompt} <delta:thing:1>")[0], medvram.picture(f"{prompt} <delta:moved:1>")[0]
    assert here == there
    assert medvram.picture(PROMPT)[0] == untouched


def test_with_medvram_training_is_refused_with_a_sentence(medvram: WebUI, pictures: Path) -> None:
    word = {"name": "thing", "num_vectors_per_token": 1, "overwrite_old": True, "init_text": "house"}
    medvram.post("/sdapi/v1/create/embedding", **word)
    with pytest.raises(urllib.error.HTTPError) as refused:
        medvram.train("never", pictures)
    assert refused.value.code == 422 and b"without --medvram" in refused.value.read()
