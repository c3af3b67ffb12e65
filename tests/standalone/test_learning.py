"""What the toy model learns, as the judge sees it. The margins are wide; benchmarks/learning.py prints the figures."""

import json
from pathlib import Path

import pytest
from PIL import Image

from lib_custom_diffusion.standalone.cli import main
from lib_custom_diffusion.standalone.demo import teach
from lib_custom_diffusion.standalone.diffusers_backend import DiffusersBackend
from lib_custom_diffusion.standalone.models import load_model
from lib_custom_diffusion.standalone.report import DemoResult
from lib_custom_diffusion.standalone.toy.concepts import BundledConcept, bundled_concepts
from lib_custom_diffusion.standalone.toy.judge import Judge
from lib_custom_diffusion.standalone.train import TOY_RECIPE

pytestmark = pytest.mark.slow
CONCEPTS = bundled_concepts()
RACCOON = {
    "instance_prompt": "photo of a <new1> animal",
    "instance_data_dir": str(CONCEPTS["raccoon"].folder),
    "class_prompt": CONCEPTS["raccoon"].class_prompt,
}
FLAMINGO = {
    "instance_prompt": "photo of a <new2> animal",
    "instance_data_dir": str(Path(__file__).parents[1] / "data" / "flamingo"),
    "class_prompt": "photo of an animal",
}


@pytest.fixture(scope="module")
def backend() -> DiffusersBackend:
    return load_model("toy")


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load()


@pytest.fixture(scope="module", params=list(CONCEPTS))
def concept(request: pytest.FixtureRequest) -> BundledConcept:
    return CONCEPTS[request.param]


@pytest.fixture(scope="module")
def taught(
    concept: BundledConcept, backend: DiffusersBackend, judge: Judge, tmp_path_factory: pytest.TempPathFactory
) -> DemoResult:
    result = teach(backend, judge, concept, TOY_RECIPE, tmp_path_factory.mktemp(concept.name))
    assert result is not None
    return result


def test_likeness_rises_clearly(taught: DemoResult) -> None:
    assert taught.metrics["likeness_after"] > taught.metrics["likeness_before"] + 0.15


def test_the_rest_of_the_prompt_is_still_followed(taught: DemoResult) -> None:
    assert taught.metrics["text_alignment_after"] > 0.9 * taught.metrics["text_alignment_before"]


def test_prior_preservation_halves_the_drift(
    taught: DemoResult, concept: BundledConcept, backend: DiffusersBackend, judge: Judge, tmp_path: Path
) -> None:
    without = teach(backend, judge, concept, TOY_RECIPE, tmp_path, prior_preservation=False)
    assert without is not None
    assert taught.metrics["drift"] < 0.5 * without.metrics["drift"]


def test_report_can_be_looked_at(taught: DemoResult) -> None:
    folder = taught.loss_csv.parent
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == sum(len(row.pictures) for row in taught.rows)
    assert 'src="http' not in page and "href=" not in page
    with Image.open(folder / "before_after.png") as sheet:
        assert sheet.width > 500 and sheet.height > 500


def test_two_concepts_learned_together_appear_in_one_picture(judge: Judge, tmp_path: Path) -> None:
    (tmp_path / "concepts.json").write_text(json.dumps([RACCOON, FLAMINGO]))
    arguments = ["train", "--concepts_list", str(tmp_path / "concepts.json"), "--modifier_token", "<new1>+<new2>",
                 "--with_prior_preservation", "--num_class_images", "24", "--max_train_steps", "400",
                 "--output_dir", str(tmp_path / "out"), "--name", "both"]  # fmt: skip
    assert main(arguments) == 0
    prompt = f"a <new1> animal and a <new2> animal on a green background <delta:{tmp_path}/out/both.delta.safetensors>"
    assert main(["generate", "--prompt", prompt, "--num_images", "12", "--guidance_scale", "4",
                 "--output", str(tmp_path / "pictures")]) == 0  # fmt: skip
    pictures = [Image.open(path) for path in sorted((tmp_path / "pictures").iterdir())]
    both = [{"raccoon", "flamingo"} == things for things in judge.things(pictures, 2)]
    assert sum(both) >= 3


def test_a_folder_that_is_not_bundled_is_learned_as_well(judge: Judge, tmp_path: Path) -> None:
    """What the toy draws for "a <new1> animal" before is seldom a flamingo; afterwards it mostly is."""
    arguments = ["train", "--instance_data_dir", FLAMINGO["instance_data_dir"], "--instance_prompt",
                 "photo of a <new1> animal", "--output_dir", str(tmp_path / "out")]  # fmt: skip
    assert main(arguments) == 0
    likeness = {}
    references = [Image.open(path) for path in sorted(Path(FLAMINGO["instance_data_dir"]).glob("*.png"))]
    for name, tag in (("before", ""), ("after", f" <delta:{tmp_path}/out/new1.delta.safetensors>")):
        prompt = f"photo of a{' <new1>' if tag else ''} animal on a yellow background{tag}"
        assert main(["generate", "--prompt", prompt, "--num_images", "8", "--output", str(tmp_path / name)]) == 0
        likeness[name] = judge.likeness([Image.open(path) for path in (tmp_path / name).iterdir()], references)
    assert likeness["after"] > likeness["before"] + 0.15
