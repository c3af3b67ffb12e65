"""Compare checkpoints: the saves of a training, and weights, in the WebUI's own X/Y/Z plot."""

from __future__ import annotations

import os
import re
import urllib.error
from pathlib import Path

import pytest
from PIL import Image

from conftest import Page, WebUI, fingerprint

PROMPT = "photo of a plotted house"
SETTINGS = {"steps": 2}


@pytest.fixture(scope="module")
def saves(webui: WebUI, pictures: Path) -> str:
    """The name of a training of 4 steps with a copy after 2."""
    webui.post(
        "/sdapi/v1/create/embedding", name="plotted", init_text="house", num_vectors_per_token=1, overwrite_old=True
    )
    webui.ask_to_train(
        "plotted", pictures, name="saves", max_train_steps=4, checkpointing_steps=2, train_batch_size=1, overwrite=True,
        learning_rate="1e-2", prior="none", validation_steps=0, noaug=True, center_crop=True,
    )  # fmt: skip
    return "saves"


@pytest.fixture(scope="module")
def first_axis() -> int:
    """The place of our first axis: after those of the host that txt2img has."""
    options = Path(os.environ["WEBUI_DIR"], "scripts", "xyz_grid.py").read_text()
    return len(re.findall(r"^    AxisOption(?:Txt2Img)?\(", options, re.MULTILINE))


def plot(webui: WebUI, prompt: str, *axes: tuple[int, str]) -> list[str]:
    """Fingerprints of the cells."""
    asked = [part for axis, values in [*axes, (0, ""), (0, "")][:3] for part in (axis, values, [])]
    legend, lone_images, sub_grids, margin, as_text = True, True, False, 0, True
    given = [*asked, legend, lone_images, sub_grids, False, False, False, False, margin, as_text]
    drawn, _ = webui.images(prompt, script_name="x/y/z plot", script_args=given, **SETTINGS)
    return [fingerprint(each) for each in drawn]


def test_saves_and_weights_are_plotted(webui: WebUI, saves: str, first_axis: int) -> None:
    steps, weight = first_axis + 1, first_axis + 2
    cells = plot(webui, f"{PROMPT} <delta:saves:1>", (steps, "2, 4"), (weight, "0.5, 1"))
    tags = ["saves-2:0.5", "saves:0.5", "saves-2:1", "saves:1"]  # after 4 steps it is the delta itself
    drawn = [webui.picture(f"{PROMPT} <delta:{tag}>", **SETTINGS) for tag in tags]
    assert cells == [picture for picture, _ in drawn] and len(set(cells)) == 4
    assert re.search(r"Delta hashes: \"saves-2: [0-9a-f]{12}\"", drawn[0][1])
    by_name = plot(webui, f"{PROMPT} <delta:saves:1>", (first_axis, "saves-2, saves"))
    assert by_name == cells[-2:]


@pytest.mark.parametrize(
    ("prompt", "said"), [("a house", "the prompt has no delta"), ("a house <delta:saves:1>", "its saves: 2, 4")]
)
def test_a_plot_that_cannot_be_drawn_says_why(
    webui: WebUI, saves: str, first_axis: int, prompt: str, said: str
) -> None:  # fmt: skip
    with pytest.raises(urllib.error.HTTPError) as refused:
        plot(webui, prompt, (first_axis + 1, "2, 3"))
    assert said in refused.value.read().decode()


def test_the_button_fills_in_a_plot_of_all_saves_which_is_drawn(
    webui: WebUI, saves: str, page: Page, pictures: Path
) -> None:  # fmt: skip
    before = set(webui.data.glob("outputs/txt2img-grids/*/*.png"))
    page.fill_form("plotted", pictures, "compared", 6)
    page.fill("cd_save_every", 2)
    page.press("cd_start")
    page.wait_for("cd_outcome", "Finished after 6 steps")
    page.press("cd_compare")
    values = page.page.locator("#script_txt2img_xyz_plot_x_values textarea")
    values.wait_for()
    page.look("compare-in-txt2img")
    assert values.input_value() == "2, 4, 6"
    assert page.value("script_txt2img_xyz_plot_x_type") == "Delta steps"
    assert page.value("script_list") == "X/Y/Z plot"
    prompt = page.value("txt2img_prompt")
    assert "<delta:compared:1>" in prompt and "Script" not in prompt
    page.draw(webui.data)
    page.look("compared")
    [grid] = set(webui.data.glob("outputs/txt2img-grids/*/*.png")) - before
    with Image.open(grid) as plot:
        assert plot.width >= 3 * 128
