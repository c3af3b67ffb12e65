"""What the toy model learns, as the judge sees it. The margins are wide; benchmarks/learning.py prints the figures."""

import pytest
from PIL import Image

from lib_custom_diffusion.standalone.demo import teach
from lib_custom_diffusion.standalone.diffusers_backend import DiffusersBackend
from lib_custom_diffusion.standalone.models import load_model
from lib_custom_diffusion.standalone.report import DemoResult
from lib_custom_diffusion.standalone.toy.concepts import bundled_concepts
from lib_custom_diffusion.standalone.toy.judge import Judge
from lib_custom_diffusion.standalone.train import TOY_RECIPE

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def backend() -> DiffusersBackend:
    return load_model("toy")


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load()


@pytest.fixture(scope="module")
def taught(backend: DiffusersBackend, judge: Judge, tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    result = teach(backend, judge, bundled_concepts()["raccoon"], TOY_RECIPE, tmp_path_factory.mktemp("raccoon"))
    assert result is not None
    return result


def test_likeness_rises(taught: DemoResult) -> None:
    assert taught.metrics["likeness_after"] > taught.metrics["likeness_before"] + 0.05


def test_report_can_be_looked_at(taught: DemoResult) -> None:
    folder = taught.loss_csv.parent
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == sum(len(row.pictures) for row in taught.rows)
    assert 'src="http' not in page and "href=" not in page
    with Image.open(folder / "before_after.png") as sheet:
        assert sheet.width > 500 and sheet.height > 500
