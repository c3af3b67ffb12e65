"""<delta:…> in every kind of picture that the real WebUI makes; through its API."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from conftest import PROMPT, WebUI, difference, fingerprint
from lib_custom_diffusion.delta import Delta, Factors

TAG = "<delta:thing:1>"
WITH_DELTA = f"{PROMPT} {TAG}"


@pytest.fixture(autouse=True)
def model_is_untouched(webui: WebUI, thing: Path, untouched: str) -> Iterator[None]:
    """Whatever a test does, the picture without a delta is the same afterwards, to the bit."""
    yield
    assert webui.picture(PROMPT)[0] == untouched


def png(picture: Image.Image) -> str:
    content = io.BytesIO()
    picture.save(content, format="PNG")
    return base64.b64encode(content.getvalue()).decode()


def test_deltas_add_up_and_a_delta_and_its_negative_are_nothing(webui: WebUI, thing: Path, untouched: str) -> None:
    delta = Delta.load(thing)
    negative = {key: -entry for key, entry in delta.entries.items() if not isinstance(entry, Factors)}
    assert len(negative) == len(delta.entries)
    Delta(negative).save(webui.delta("negative"))
    whole = webui.picture(WITH_DELTA)[0]
    assert whole != untouched
    assert webui.picture(f"{PROMPT} <delta:thing:0.5> <delta:thing:0.5>")[0] == whole
    assert webui.picture(f"{WITH_DELTA} <delta:negative:1>")[0] == untouched
    assert webui.picture(f"{WITH_DELTA} <delta:negative:0.5>")[0] not in (whole, untouched)


def test_the_weight_may_be_named_as_a_loras_is(webui: WebUI, untouched: str) -> None:
    half = webui.picture(f"{PROMPT} <delta:thing:0.5>")[0]
    assert webui.picture(f"{PROMPT} <delta:thing:unet=0.5>")[0] == half not in (untouched, webui.picture(WITH_DELTA)[0])
    assert webui.picture(f"{PROMPT} <delta:thing:te=0.5>")[0] == untouched


def test_a_word_is_read_when_its_file_comes_changes_and_goes(webui: WebUI, thing: Path) -> None:
    """The delta is a word alone, so that all depends on the prompt, which is the same every time."""
    [vectors] = Delta.load(thing).embeddings.values()
    prompt, file = "a late <delta:l=ate:1>", webui.delta("l=ate")
    missing = webui.picture(prompt)[0]
    Delta({}, {"late": vectors}).save(file)
    come = webui.picture(prompt)[0]
    Delta({}, {"late": -vectors}).save(file)
    changed = webui.picture(prompt)[0]
    assert len({missing, come, changed}) == 3
    file.unlink()
    assert webui.picture(prompt)[0] == missing


def test_every_picture_of_a_batch_and_of_the_next_has_the_delta(webui: WebUI) -> None:
    batched = webui.images(WITH_DELTA, batch_size=2, n_iter=2)[0]
    single = [webui.images(WITH_DELTA, seed=7 + index)[0][0] for index in range(4)]
    assert len(batched) == 4
    for one, other in zip(batched, single, strict=True):
        assert difference(one, other)[0] <= 2  # of 255: sums are rounded differently in a batch


def test_both_passes_of_hires_fix_have_their_prompts_deltas(webui: WebUI) -> None:
    hires: dict[str, Any] = {
        "enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.6, "hr_upscaler": "Latent",
        "hr_second_pass_steps": 3,
    }  # fmt: skip
    both = webui.picture(WITH_DELTA, **hires)[0]
    first = webui.picture(WITH_DELTA, hr_prompt=PROMPT, **hires)[0]
    second, infotext = webui.picture(PROMPT, hr_prompt=WITH_DELTA, **hires)
    neither = webui.picture(PROMPT, **hires)[0]
    assert len({both, first, second, neither}) == 4
    assert "Delta hashes" in infotext


def test_the_refiner_has_the_delta(webui: WebUI, other_checkpoint: str) -> None:
    refiner = {"refiner_checkpoint": "other", "refiner_switch_at": 0.5}
    refined, infotext = webui.picture(WITH_DELTA, **refiner)
    assert "Refiner: other" in infotext and "Delta hashes" in infotext
    assert refined not in (webui.picture(PROMPT, **refiner)[0], webui.picture(WITH_DELTA)[0])


def test_prompt_editing_reaches_the_word(webui: WebUI) -> None:
    before, after = webui.picture(f"a cat {TAG}")[0], webui.picture(f"a thing house {TAG}")[0]
    assert webui.picture(f"a [cat:thing house:0.5] {TAG}")[0] not in (before, after)
    assert webui.picture(f"a [cat|thing house] {TAG}")[0] not in (before, after)
    assert webui.picture(f"a (thing:1.3) house {TAG}")[0] not in (before, after)


def test_img2img_and_inpainting_have_the_delta(webui: WebUI) -> None:
    start = webui.images("a house on a blue background")[0][0]
    asked = {"route": "img2img", "init_images": [png(start)], "denoising_strength": 0.7}
    assert webui.picture(WITH_DELTA, **asked)[0] != webui.picture(PROMPT, **asked)[0]
    mask = Image.new("L", start.size)
    ImageDraw.Draw(mask).rectangle((64, 0, 127, 127), fill=255)
    inpainting = {**asked, "mask": png(mask), "mask_blur": 0, "inpainting_fill": 1}
    with_delta, without = webui.images(WITH_DELTA, **inpainting)[0][0], webui.images(PROMPT, **inpainting)[0][0]
    left, right = (0, 0, 64, 128), (64, 0, 128, 128)
    assert fingerprint(with_delta.crop(left)) == fingerprint(without.crop(left)) == fingerprint(start.crop(left))
    assert fingerprint(with_delta.crop(right)) != fingerprint(without.crop(right))


def test_a_grid_of_weights_has_the_pictures_of_these_weights(webui: WebUI) -> None:
    prompt_search_replace, nothing, weights = 7, 0, ["thing:0.2", "thing:1"]
    axes = [prompt_search_replace, ", ".join(weights), [], nothing, "", [], nothing, "", []]
    legend, lone_images, sub_grids, margin = True, True, False, 0
    settings = [legend, lone_images, sub_grids, False, False, False, False, margin, False]
    cells = webui.images(
        f"{PROMPT} <delta:thing:0.2>", script_name="x/y/z plot", script_args=[*axes, *settings]
    )[0][-2:]  # fmt: skip
    assert [fingerprint(cell) for cell in cells] == [webui.picture(f"{PROMPT} <delta:{each}>")[0] for each in weights]


def test_a_delta_works_beside_a_hypernetwork_in_any_order(webui: WebUI, untouched: str) -> None:
    webui.post(
        "/sdapi/v1/create/hypernetwork", name="net", enable_sizes=["128"], overwrite_old=True,
        layer_structure="1, 2, 1", activation_func="linear", weight_init="KaimingNormal",
    )  # fmt: skip
    assert "net" in {each["name"] for each in webui.get("/sdapi/v1/hypernetworks")}
    net, delta = webui.picture(f"{PROMPT} <hypernet:net:1>")[0], webui.picture(WITH_DELTA)[0]
    both = webui.picture(f"{WITH_DELTA} <hypernet:net:1>")[0]
    assert len({untouched, net, delta, both}) == 4
    assert webui.picture(f"{PROMPT} <hypernet:net:1> {TAG}")[0] == both
    assert webui.picture(f"{PROMPT} <hypernet:net:1>")[0] == net


def test_the_other_checkpoint_has_the_delta_too_and_both_are_as_they_were(webui: WebUI, other_checkpoint: str) -> None:
    other = {"override_settings": {"sd_model_checkpoint": other_checkpoint}}
    bare = webui.picture(PROMPT, **other)[0]
    here, there = webui.picture(WITH_DELTA)[0], webui.picture(WITH_DELTA, **other)[0]
    assert len({bare, here, there}) == 3
    assert webui.picture(PROMPT, **other)[0] == bare
    assert webui.picture(WITH_DELTA)[0] == here


def test_a_delta_alone_brings_its_word(webui: WebUI, thing: Path, tmp_path: Path) -> None:
    prompt = f"a thing house {TAG}"
    known = webui.picture(prompt)[0]
    embedding = webui.data / "embeddings" / "thing.pt"
    embedding.rename(tmp_path / "thing.pt")
    try:
        webui.post("/sdapi/v1/refresh-embeddings")
        assert "thing" not in webui.get("/sdapi/v1/embeddings")["loaded"]
        assert webui.picture(prompt)[0] == known
        assert webui.picture("a thing house")[0] != known
    finally:
        (tmp_path / "thing.pt").rename(embedding)
        webui.post("/sdapi/v1/refresh-embeddings")


def test_with_weights_of_8_bits_and_autocast_the_delta_does_the_same(webui: WebUI, other_checkpoint: str) -> None:
    """What a processor can do of half precision in this WebUI: products of 16 bits."""
    exact = difference(webui.images(PROMPT)[0][0], webui.images(WITH_DELTA)[0][0])[1]
    webui.post("/sdapi/v1/options", fp8_storage="Enable")
    try:
        rounded = difference(webui.images(PROMPT)[0][0], webui.images(WITH_DELTA)[0][0])[1]
    finally:
        webui.post("/sdapi/v1/options", fp8_storage="Disable")
    # The WebUI leaves the weights rounded until it reads another checkpoint.
    webui.picture(PROMPT, override_settings={"sd_model_checkpoint": other_checkpoint})
    assert 0.5 * exact < rounded < 2 * exact


def test_the_list_and_the_refresh_of_deltas(webui: WebUI, thing: Path) -> None:
    [listed] = [each for each in webui.get("/sdapi/v1/deltas") if each["name"] == "thing"]
    assert (listed["path"], listed["tokens"], listed["steps"]) == (str(thing), {"thing": "house"}, 10)
    (webui.data / "models/deltas/damaged.delta.safetensors").write_bytes(b"no")
    [damaged] = [each for each in webui.post("/sdapi/v1/refresh-deltas") if each["name"] == "damaged"]
    assert "damaged" in damaged["error"]
    (webui.data / "models/deltas/damaged.delta.safetensors").unlink()
