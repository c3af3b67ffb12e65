"""The command, on a small model with a random CLIP: what it writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from lib_custom_diffusion.attention import projections
from lib_custom_diffusion.delta import Delta, Provenance
from lib_custom_diffusion.standalone.cli import main
from lib_custom_diffusion.standalone.evaluation.command import find_candidates
from lib_custom_diffusion.standalone.infotext import parse_infotext
from tiny_pipeline import WIDTH, stable_diffusion_2


def saved(path: Path, steps: int, size: float = 1.0) -> Delta:
    torch.manual_seed(steps)
    layers = projections(stable_diffusion_2().unet)
    entries = {key: size * torch.randn(layer.shape) for key, layer in layers.items()}
    provenance = Provenance(tokens={"<new1>": "cat"}, steps=steps)
    delta = Delta(entries, {"<new1>": torch.randn(1, WIDTH)}, provenance)
    delta.save(path)
    return delta


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """The folder of a training of 20 steps that was saved twice."""
    folder = tmp_path / "run"
    for steps in (10, 20):
        (folder / f"checkpoint-{steps}").mkdir(parents=True)
        saved(folder / f"checkpoint-{steps}" / "cat.delta.safetensors", steps)
    saved(folder / "cat.delta.safetensors", 20)
    return folder


@pytest.fixture
def flags(tmp_path: Path, model: Path, pictures: Path, clip_folder: Path, run_folder: Path) -> list[str]:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("{} on a red background\nphoto of a <new1> cat\n")
    return [
        *("evaluate", "--model", str(model), "--delta", str(run_folder), "--instance_data_dir", str(pictures)),
        *("--prompts", str(prompts), "--clip", str(clip_folder), "--output", str(tmp_path / "out")),
        *("--num_images", "2", "--num_inference_steps", "1", "--sample_batch_size", "3"),
    ]


def test_every_save_of_a_training_is_measured_against_the_model_alone(
    tmp_path: Path, flags: list[str], dino_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--class_prompt", "photo of a cat", "--num_class_images", "3", "--dino", str(dino_folder)]
    assert main([*flags, *more]) == 0
    out = tmp_path / "out"
    found = json.loads((out / "evaluation.json").read_text())
    assert [each["name"] for each in found["results"]] == ["the model alone", "step 10", "step 20"]
    for each in found["results"]:
        assert all(isinstance(each[name], float) for name in ("image_alignment", "text_alignment", "kid"))
        assert -1 <= each["dino_image_alignment"] <= 1
    alone, *deltas = found["results"]
    assert alone["score"] is None and all(0 <= each["score"] <= 1 for each in deltas)
    best = max(deltas, key=lambda each: each["score"])["file"]
    told = capsys.readouterr()
    assert found["best"] == best and best in told.out and "drawing:" in told.err
    captions = json.loads((out / "step-10" / "prompts.json").read_text())
    assert captions == {
        "00000": "cat on a red background", "00001": "cat on a red background",
        "00002": "photo of a cat", "00003": "photo of a cat",
    }  # fmt: skip
    assert sorted(path.stem for path in (out / "step-10" / "samples").glob("*.png")) == sorted(captions)
    page = (out / "evaluation.html").read_text()
    assert "scores highest" in page and set(found["as_good_within_chance"]) <= {each["file"] for each in deltas}
    assert page.count("<polyline") == 3 and "step 20" in page and "KID" in page
    assert Image.open(out / "pictures.png").width > 128


def test_the_model_and_each_delta_draw_from_the_same_seeds(
    tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path / "none.delta.safetensors", 0, size=0.0)
    Path(flags[8]).write_text("a red dog\n")  # no new word in it: nothing but the delta can change the pictures
    flags[4] = str(tmp_path / "none.delta.safetensors")
    assert main(flags) == 0
    out = tmp_path / "out"
    plain, same = (
        [Image.open(out / name / "samples" / f"{number}.png") for number in ("00000", "00001")]
        for name in ("the-model-alone", "none")
    )
    assert [each.tobytes() for each in plain] == [each.tobytes() for each in same]
    assert plain[0].tobytes() != plain[1].tobytes()
    said = [parse_infotext(each.info["parameters"]) for each in (plain[1], same[1])]
    assert [each.prompt for each in said] == ["a red dog", "a red dog <delta:none:1>"]
    assert [(each.seed, each.steps) for each in said] == [(43, 1), (43, 1)]
    page = (out / "evaluation.html").read_text()
    assert "<polyline" not in page
    assert "highest" not in page + capsys.readouterr().out  # of one


def test_an_evaluation_is_replaced_only_where_that_is_asked_for(
    tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "evaluation.json").write_text("mine")
    assert main([*flags, "--model", "nowhere"]) == 2
    assert "has an evaluation already; give another --output, or --overwrite" in capsys.readouterr().err
    assert main([*flags, "--model", "nowhere", "--overwrite"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_a_delta_and_its_copy_are_said_to_be_as_good_as_each_other(
    tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / f"{name}.delta.safetensors" for name in "ab"]
    for file in files:
        saved(file, 5)
    assert main([*flags, "--delta", *map(str, files)]) == 0
    assert "with 4 pictures each, that may be chance: b could be just as good" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert found["best"] == str(files[0]) and found["as_good_within_chance"] == [str(files[1])]


def test_pictures_of_the_concept_are_read_as_those_of_a_training(
    tmp_path: Path, pictures: Path, flags: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    def likeness() -> list[float]:
        assert main([*flags, "--overwrite"]) == 0
        results = json.loads((tmp_path / "out" / "evaluation.json").read_text())["results"]
        return [each["image_alignment"] for each in results]

    lying = Image.effect_noise((48, 64), 50).convert("RGB")
    lying.save(pictures / "picture.png")
    upright = likeness()
    exif = Image.Exif()
    exif[0x0112] = 6  # it is to be turned clockwise
    lying.transpose(Image.Transpose.ROTATE_90).save(pictures / "picture.png", exif=exif)
    (pictures / "broken.png").write_bytes(b"no picture")
    assert likeness() == upright
    assert "skipped" in caplog.text and "broken.png" in caplog.text


def test_deltas_of_as_many_steps_are_measured_without_a_curve(tmp_path: Path, flags: list[str]) -> None:
    files = {name: tmp_path / f"{name}.delta.safetensors" for name in "abc"}
    for size, (name, steps) in enumerate((("a", 5), ("b", 5), ("c", 7))):
        saved(files[name], steps, size)
    assert main([*flags, "--delta", *map(str, files.values())]) == 0
    page = (tmp_path / "out" / "evaluation.html").read_text()
    assert all(f"<td>{name}<td>" in page for name in files) and "<polyline" not in page


def test_a_delta_that_says_its_number_of_steps_is_called_by_it_and_others_by_their_files(tmp_path: Path) -> None:
    for name, steps in (("a", 5), ("b", 5), ("c", 7)):
        saved(tmp_path / f"{name}.delta.safetensors", steps)
    a, b = tmp_path / "a.delta.safetensors", tmp_path / "b.delta.safetensors"
    assert [each.name for each in find_candidates([a])] == ["a"]
    assert [each.name for each in find_candidates([b, a])] == ["b", "a"]
    assert [each.name for each in find_candidates([tmp_path])] == ["step 5", "step 7"]
    earlier = tmp_path / "earlier" / "a.delta.safetensors"
    earlier.parent.mkdir()
    saved(earlier, 3)
    assert [each.name for each in find_candidates([a, earlier])] == ["a", "earlier/a"]


def test_a_delta_that_is_named_twice_is_measured_once(tmp_path: Path) -> None:
    path = tmp_path / "a.delta.safetensors"
    saved(path, 5)
    assert [each.path for each in find_candidates([path, tmp_path, path])] == [path]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"--num_images": "0"}, "--num_images must be 1 or more, not 0"),
        ({"--num_class_images": "1"}, "--num_class_images must be 2 or more, not 1"),
        ({"--class_data_dir": "."}, "--class_data_dir needs a --class_prompt"),
        ({"--delta": "tests"}, "tests has no deltas"),
        ({"--delta": "gone.delta.safetensors"}, "there is no file gone.delta.safetensors"),
        ({"--prompts": "gone.txt"}, "the prompts in gone.txt cannot be read"),
        ({"--delta": "README.md"}, "README.md"),
        ({"--instance_data_dir": "gone"}, "there is no folder gone"),
        ({"--instance_data_dir": "scripts"}, "scripts has no pictures"),
        ({"--clip": "tests"}, "tests cannot be loaded"),
        ({"--instance_data_dir": "docs/..", "--output": "."}, "--output is ., where the pictures are; give another"),
        (
            {"--class_prompt": "cat", "--class_data_dir": ".", "--output": "docs/.."},
            "--output is docs/.., where the pic",
        ),
    ],
)
def test_mistakes_are_told_in_one_line_before_the_model_is_loaded(
    flags: list[str], change: dict[str, str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*flags, *(part for pair in change.items() for part in pair)]) == 2
    told = capsys.readouterr().err
    assert sentence in told and told.count("\n") == 1


def test_a_delta_of_another_model_is_refused_before_anything_is_drawn(
    tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    good = saved(tmp_path / "good.delta.safetensors", 1)
    other = Delta({key: torch.zeros(3, 5) for key in good.entries}, provenance=Provenance(steps=2))
    other.save(tmp_path / "other.delta.safetensors")
    flags[4] = str(tmp_path)
    assert main(flags) == 2
    told = capsys.readouterr().err
    assert "does not fit this model" in told and "picture" not in told
