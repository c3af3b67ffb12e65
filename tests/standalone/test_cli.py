"""The commands as a person gives them: what they leave behind, and one line for every mistake."""

import io
import json
import logging
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from PIL import Image
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from lib_custom_diffusion.algebra.compression import Limit, compress, functional_error
from lib_custom_diffusion.algebra.factors import Factors
from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.standalone import cli
from lib_custom_diffusion.standalone.cli import main
from lib_custom_diffusion.standalone.diffusers_backend import DiffusersBackend
from lib_custom_diffusion.standalone.generate import found_deltas
from lib_custom_diffusion.standalone.train import until_interrupt
from tiny_pipeline import WIDTH

ROOT = Path(__file__).parents[2]
PROMPT = "photo of a <new1> cat"


def train(model: Path, pictures: Path, output: Path, *more: str) -> int:
    return main([
        "train", "--model", str(model), "--instance_data_dir", str(pictures), "--instance_prompt", PROMPT,
        "--output_dir", str(output), "--max_train_steps", "4", "--train_batch_size", "2", "--checkpointing_steps", "2",
        *more,
    ])  # fmt: skip


def error(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on the error output, other than progress bars."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_train_leaves_what_it_promises(model: Path, pictures: Path, tmp_path: Path) -> None:
    assert train(model, pictures, tmp_path / "out", "--class_prompt", "cat") == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["checkpoint-2", "checkpoint-4", "config.json", "loss.csv", "new1.delta.safetensors", "new1.pt"]
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (settings["model"], settings["noaug"], settings["max_train_steps"]) == ("tiny-v2", False, 4)
    assert settings["concepts"][0]["instance_prompt"] == PROMPT
    delta = Delta.load(tmp_path / "out" / "new1.delta.safetensors")
    assert delta.provenance.architecture == "crossattn-4x48"
    assert delta.provenance.tokens == {"<new1>": "cat"}
    assert all(entry.any() for entry in delta.entries.values())


def test_two_concepts_with_regularization_and_a_name(model: Path, pictures: Path, tmp_path: Path) -> None:
    concepts = [
        {"instance_prompt": f"photo of a <{word}> cat", "class_prompt": "cat", "instance_data_dir": str(pictures),
         "class_data_dir": str(tmp_path / "class")} for word in ("one", "two")
    ]  # fmt: skip
    (tmp_path / "concepts.json").write_text(json.dumps(concepts))
    arguments = ["train", "--model", str(model), "--concepts_list", str(tmp_path / "concepts.json"), "--name", "pair",
                 "--modifier_token", "<one>+<two>", "--with_prior_preservation", "--num_class_images", "2",
                 "--max_train_steps", "2", "--output_dir", str(tmp_path / "out"), "--hflip", "--noaug",
                 "--scale_lr"]  # fmt: skip
    assert main(arguments) == 0
    assert sorted(path.name for path in (tmp_path / "class").iterdir()) == [
        "0000.png",
        "0000.txt",
        "0001.png",
        "0001.txt",
    ]
    delta = Delta.load(tmp_path / "out" / "pair.delta.safetensors")
    assert set(delta.embeddings) == {"<one>", "<two>"}
    assert delta.provenance.settings["learning_rate_scale"] == 4 * 1 * 1 * 2
    assert {"one.pt", "two.pt"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_real_prior_picks_by_caption(model: Path, pictures: Path, tmp_path: Path) -> None:
    others = Path(shutil.copytree(pictures, tmp_path / "others"))
    for name, caption in (("a", "a red house"), ("b", "cat"), ("c", "two trucks on a hill")):
        (others / f"{name}.txt").write_text(caption)
    more = ["--with_prior_preservation", "--real_prior", "--class_data_dir", str(others), "--class_prompt", "cat"]
    assert train(model, pictures, tmp_path / "out", "--num_class_images", "1", *more) == 0
    assert (tmp_path / "out" / "class_images-1" / "caption.txt").read_text() == "cat\n"


def test_resumed_training_ends_in_the_same_bytes(model: Path, pictures: Path, tmp_path: Path) -> None:
    train(model, pictures, tmp_path / "whole")
    train(model, pictures, tmp_path / "cut", "--max_train_steps", "2")
    assert train(model, pictures, tmp_path / "cut", "--resume_from_checkpoint", "latest") == 0
    whole, cut = ((tmp_path / name / "new1.delta.safetensors").read_bytes() for name in ("whole", "cut"))
    states = [load_file(tmp_path / name / "checkpoint-4" / "state.safetensors") for name in ("whole", "cut")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert whole == cut


def test_ctrl_c_saves_and_says_how_to_go_on(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "out" / "loss.csv"

    def press_ctrl_c() -> None:
        deadline = time.monotonic() + 120
        while not (log.is_file() and log.read_text().count("\n") > 10) and time.monotonic() < deadline:
            time.sleep(0.02)
        signal.raise_signal(signal.SIGINT)

    person = threading.Thread(target=press_ctrl_c)
    person.start()
    assert (
        train(model, pictures, tmp_path / "out", "--max_train_steps", "100000", "--checkpointing_steps", "1000") == 130
    )
    person.join()
    assert "--resume_from_checkpoint latest" in capsys.readouterr().out
    assert len(list((tmp_path / "out").glob("checkpoint-*"))) == 1


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--num_images", "0", "--num_images must be 1 or more, not 0"),
        ("--num_inference_steps", "100000", "--num_inference_steps must be 1,000 or less"),
        ("--guidance_scale", "nan", "--guidance_scale must be 0 or more, not nan"),
        ("--guidance_scale", "inf", "--guidance_scale must be 1,000 or less, not inf"),
        ("--resolution", "0", "--resolution must be a multiple of 8 pixels, up to 16,384, not 0"),
        ("--resolution", "-8", "--resolution must be a multiple of 8 pixels, up to 16,384, not -8"),
        ("--resolution", "65", "--resolution must be a multiple of 8 pixels, up to 16,384, not 65"),
        ("--resolution", "1000000", "--resolution must be a multiple of 8 pixels, up to 16,384, not 1000000"),
        ("--seed", "-1", "--seed must be 0 to 9,007,199,254,740,992, not -1"),
        ("--seed", "9" * 30, "--seed must be 0 to 9,007,199,254,740,992"),
        ("--sample_batch_size", "0", "--sample_batch_size must be 1 or more, not 0"),
        ("--negative_prompt", "\udcff", "--negative_prompt '\\udcff' has bytes that are not text"),
        ("--output", "{}/file", "cannot write to"),
    ],
)
def test_pictures_that_cannot_be_drawn_are_refused_before_the_model_is_loaded(
    flag: str, value: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    asked = ["generate", "--model", "nowhere", "--prompt", "cat", "--output", str(tmp_path / "out")]
    assert main([*asked, f"{flag}={value.format(tmp_path)}"]) == 2
    assert said in error(capsys)
    if flag not in ("--num_images", "--output"):
        asked = ["regularize", "--model", "nowhere", "--class_prompt", "cat", "--class_data_dir", str(tmp_path / "out")]
        assert main([*asked, f"{flag}={value}"]) == 2
        assert said in error(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_request_to_end_and_a_closed_terminal_save_as_ctrl_c_does(name: str) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with until_interrupt() as interrupted:
        assert not interrupted.is_set()
        signal.raise_signal(number)
        assert interrupted.is_set()
    assert signal.getsignal(number) is before


def test_what_a_shell_passes_on_once_more_does_not_stop_the_saving() -> None:
    with until_interrupt():
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_under_nohup_a_closed_terminal_stops_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with until_interrupt() as interrupted:
            signal.raise_signal(signal.SIGHUP)
            assert not interrupted.is_set()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_a_file_has_for_the_terminal_does_not_reach_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "a\x1b[2Jb\x9b31m"]) == 2
    assert error(capsys) == "error: there is no file a?[2Jb?31m"


def test_a_warning_has_a_line_of_its_own_beside_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with tqdm(total=3, desc="training") as bar:
        bar.update()
        cli._BesideBars().emit(logging.makeLogRecord({"msg": "skipped %s", "args": ("a.png",)}))
    assert any(line.strip() == "skipped a.png" for line in re.split("[\r\n]", capsys.readouterr().err))


CTRL_C_IN_AN_IMPORT = """
import os, signal, sys
class Interrupted:
    def find_spec(self, name, path, target=None):
        if name == os.environ["WHERE"]:
            try:
                os.kill(os.getpid(), signal.SIGINT)
                for _ in range(1000):  # a signal is looked for between two steps of Python
                    pass
            except KeyboardInterrupt:
                raise ImportError(f"{name} failed to import")  # as numpy's and torch's own parts make of it
sys.meta_path.insert(0, Interrupted())
"""


def test_a_request_to_end_during_a_preview_is_honoured_right_after_it(
    model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw, previews = DiffusersBackend.generate, ["--validation_prompt", PROMPT, "--validation_steps", "3"]
    assert train(model, pictures, tmp_path / "whole", *previews) == 0
    with monkeypatch.context() as asked:
        asked.setattr(DiffusersBackend, "generate", lambda *of: signal.raise_signal(signal.SIGTERM) or draw(*of))
        assert train(model, pictures, tmp_path / "cut", *previews) == 130
    assert "stopped after step 3 and saved" in capsys.readouterr().out
    assert len((tmp_path / "cut" / "loss.csv").read_text().splitlines()) == 1 + 3
    assert train(model, pictures, tmp_path / "cut", *previews, "--resume_from_checkpoint", "latest") == 0
    for name in ("new1.delta.safetensors", "new1.pt", "loss.csv", "images/new1-3-0.png", "images/new1-4-1.png"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill ends a process there")
@pytest.mark.parametrize(
    ("where", "arguments"),
    [
        ("numpy", ["info", "x"]),
        ("torch._C", ["--help"]),
        ("diffusers", ["generate", "--prompt", "a cat"]),
        ("transformers", ["regularize", "--class_prompt", "cat"]),
    ],
    ids=str,
)
def test_ctrl_c_while_libraries_are_imported_is_told_in_a_word(
    where: str, arguments: list[str], tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(CTRL_C_IN_AN_IMPORT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "WHERE": where}
    done = subprocess.run(
        [sys.executable, "-m", "lib_custom_diffusion", *arguments], env=environment, cwd=tmp_path, capture_output=True
    )
    assert (done.returncode, done.stderr) == (130, b"interrupted\n")


def test_ctrl_c_before_the_flags_are_read_is_told_in_a_word(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("logging.basicConfig", stopped)
    assert main(["info", "nothing"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_pictures_in_buckets_and_a_small_file(
    model: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    predict, sizes = DiffusersBackend.predict, set()
    monkeypatch.setattr(
        DiffusersBackend, "predict", lambda self, x, *rest: sizes.add(x.shape[2:]) or predict(self, x, *rest)
    )
    Image.new("RGB", (60, 120), "yellow").save(pictures / "upright.png")
    out = tmp_path / "out"
    assert train(model, pictures, out, "--resize_mode", "bucket", "--resolution", "64", "--max_size", "5kB") == 0
    assert json.loads((out / "config.json").read_text())["resize_mode"] == "bucket"
    assert {height > width for height, width in sizes} == {True, False}
    small, whole = (Delta.load(folder / "new1.delta.safetensors") for folder in (out, out / "checkpoint-4"))
    assert all(isinstance(entry, Factors) for entry in small.entries.values())
    assert all(isinstance(entry, torch.Tensor) and entry.any() for entry in whole.entries.values())
    assert small.embeddings.keys() == whole.embeddings.keys()
    blind = compress(whole, Limit(max_bytes=5000))  # not weighed by the model's text features
    assert functional_error(blind, small) > 0.01
    said = capsys.readouterr().out
    assert "Compressed to 0.0" in said and "differs by" in said


def test_deltas_are_trained_as_factors_if_asked(model: Path, pictures: Path, tmp_path: Path) -> None:
    assert train(model, pictures, tmp_path / "out", "--rank", "3", "--noise_offset", "0.1") == 0
    for folder in (tmp_path / "out", tmp_path / "out" / "checkpoint-2"):
        delta = Delta.load(folder / "new1.delta.safetensors")
        assert {(entry.us.shape[1], entry.vh.shape[0]) for entry in delta.entries.values()} == {(3, 3)}
        assert all(entry.us.any() for entry in delta.entries.values())


def test_a_size_that_is_none_is_refused_before_training(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    there = tmp_path / "out" / "new1.delta.safetensors"
    there.write_bytes(b"precious")
    assert train(model, pictures, tmp_path / "out", "--max_size", "small", "--overwrite") == 2
    assert "'small' is not a size; write 5MB" in error(capsys)
    assert [path.read_bytes() for path in (tmp_path / "out").iterdir()] == [b"precious"]


def launched(rank: int, environment: dict[str, str], arguments: list[str], said: Path) -> None:
    """A process as torchrun and, for several GPUs, `accelerate launch` start it."""
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)  # the threads of the process that was forked are not here
    PartialState._reset_state()  # what another test may have found out for one process alone
    with said.open("w") as file, redirect_stdout(file):
        status = main(arguments)
    os._exit(status)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_two_launched_processes_learn_what_one_learns(model: Path, pictures: Path, tmp_path: Path) -> None:
    shared = ["train", "--model", str(model), "--instance_data_dir", str(pictures),
              "--instance_prompt", PROMPT, "--max_train_steps", "3"]  # fmt: skip
    two = [*shared, "--train_batch_size", "1", "--output_dir", str(tmp_path / "two")]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    said = [tmp_path / f"said-{rank}" for rank in range(2)]
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=launched, args=(rank, environment, two, said[rank])) for rank in range(2)]
    for process in processes:
        process.start()
    assert main([*shared, "--train_batch_size", "2", "--output_dir", str(tmp_path / "one")]) == 0
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0]
    assert said[0].read_text().count("wrote ") == 2 and not said[1].read_text()  # files, by the main process alone
    states = [load_file(tmp_path / name / "checkpoint-3" / "state.safetensors") for name in ("one", "two")]
    for key, one in states[0].items():
        # Adam divides by the gradient's size: where that is nearly 0, rounding shows in a single number by 1 %.
        assert (states[1][key] - one).norm() <= 2e-3 * one.norm(), key


def test_generate_applies_a_delta_by_name_and_by_path(model: Path, pictures: Path, tmp_path: Path) -> None:
    train(model, pictures, tmp_path / "out", "--learning_rate", "1e-1")

    def draw(prompt: str, folder: str) -> bytes:
        arguments = ["generate", "--model", str(model), "--prompt", prompt, "--output", str(tmp_path / folder),
                     "--num_images", "1", "--seed", "7", "--num_inference_steps", "2",
                     "--deltas_dir", str(tmp_path / "out")]  # fmt: skip
        assert main(arguments) == 0
        with Image.open(tmp_path / folder / "00007.png") as picture:
            assert picture.info["parameters"].startswith(prompt)
            return picture.tobytes()

    plain, off = draw("a cat", "plain"), draw("a cat <delta:new1:0>", "off")
    named, given = (
        draw("a cat <delta:new1>", "named"),
        draw(f"a cat <delta:{tmp_path}/out/new1.delta.safetensors:1>", "path"),
    )
    assert plain == off != named == given


def test_regularize_draws_what_is_missing_and_picks(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "its class"
    arguments = ["regularize", "--model", str(model), "--class_prompt", "cat", "--class_data_dir", str(folder),
                 "--num_inference_steps", "2"]  # fmt: skip
    assert main([*arguments, "--num_class_images", "1"]) == 0
    first = (folder / "0000.png").stat().st_mtime_ns
    assert main([*arguments, "--num_class_images", "2"]) == 0
    assert (folder / "0000.png").stat().st_mtime_ns == first
    assert (folder / "0001.txt").read_text() == "cat\n"
    assert main([*arguments[:-4], "--class_data_dir", str(tmp_path / "picked"), "--pick_from", str(folder)]) == 0
    assert (tmp_path / "picked" / "caption.txt").read_text() == "cat\ncat\n"
    assert shlex.split(capsys.readouterr().out.splitlines()[0])[-1] == str(folder)


def test_info_for_people_and_programs(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(model, pictures, tmp_path / "out", "--class_prompt", "photo of a cat")
    path = tmp_path / "out" / "new1.delta.safetensors"
    capsys.readouterr()
    assert main(["info", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["architecture"], told["steps"], told["bytes"]) == ("crossattn-4x48", 4, path.stat().st_size)
    assert told["tokens"] == {"<new1>": {"vectors": 1, "width": 48, "class_word": "cat"}}
    assert len(told["layers"]) == 8
    assert main(["info", str(path)]) == 0
    assert "word <new1>: 1 vector of 48 numbers, a kind of cat" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--instance_data_dir", "nowhere"], "there is no folder nowhere"),
        (["--instance_prompt", "photo of a cat"], "no caption or prompt has the modifier token <new1>"),
        (["--modifier_token", "cat"], "cat is a word that the model tiny-v2 knows already"),
        (["--modifier_token", "<new1>+<new1>"], "names <new1> twice"),
        (["--learning_rate", "fast"], "'fast' is not a learning rate"),
        (["--train_blocks", "middle"], "choose from down, mid, up"),
        (["--max_train_steps", "-3"], "max_train_steps must be 1 or more"),
        (["--resolution", "60"], "multiple of 8"),
        (["--with_prior_preservation"], "needs a class_prompt"),
        (["--resume_from_checkpoint", "checkpoint-7"], "there is no save checkpoint-7"),
        (["--template", "nowhere.txt", "--caption_source", "template"], "nowhere.txt"),
        (["--model", "nowhere"], "there is no model 'nowhere'"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_delta(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert train(model, pictures, tmp_path / "out", *arguments) == 2
    assert message in error(capsys)
    assert not list((tmp_path / "out").rglob("*.safetensors")) if (tmp_path / "out").exists() else True


def test_empty_folder_and_corrupt_pictures(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "empty").mkdir()
    assert train(model, tmp_path / "empty", tmp_path / "out") == 2
    assert "has no pictures" in error(capsys)
    (pictures / "a.png").write_bytes(b"no picture")
    assert train(model, pictures, tmp_path / "out") == 0
    assert "a.png" in caplog.text
    for name in "bc":
        (pictures / f"{name}.png").write_bytes(b"no picture")
    capsys.readouterr()
    assert train(model, pictures, tmp_path / "out2") == 2
    assert "none of the pictures can be used" in error(capsys)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ('[{"instance_prompt": "a <new1> cat"}]', "concept 1: instance_data_dir is missing"),
        ('[{"instance_prompt": "<new1>", "instance_data_dir": "nowhere"}]', "concept 1: instance_data_dir points")
    ],
)  # fmt: skip
def test_bad_concepts_lists(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    (tmp_path / "concepts.json").write_text(content)
    assert main(["train", "--model", str(model), "--concepts_list", str(tmp_path / "concepts.json")]) == 2
    assert message in error(capsys)


def test_training_without_saying_what(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 2
    assert "say what to learn" in error(capsys)
    assert main(["train", "--instance_data_dir", "photos"]) == 2
    assert "--instance_prompt is missing" in error(capsys)


def test_folder_of_another_training_is_not_overwritten_unasked(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(model, pictures, tmp_path / "out")
    before = (tmp_path / "out" / "new1.delta.safetensors").read_bytes()
    assert train(model, pictures, tmp_path / "out", "--seed", "1") == 2
    assert "--overwrite" in error(capsys)
    assert train(model, pictures, tmp_path / "out", "--seed", "1", "--resume_from_checkpoint", "latest") == 2
    assert "seed was 42, is 1" in error(capsys)
    assert (tmp_path / "out" / "new1.delta.safetensors").read_bytes() == before
    assert train(model, pictures, tmp_path / "out", "--seed", "1", "--overwrite") == 0
    assert (tmp_path / "out" / "new1.delta.safetensors").read_bytes() != before


def other_model(model: Path, folder: Path) -> Path:
    """The same model with one number changed."""
    shutil.copytree(model, folder)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["conv_out.bias"] += 1
    save_file(weights, file)
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--hflip"], "--hflip was False, is True"),
        (["--instance_prompt", "a picture of a <new1> cat"], "--instance_prompt of concept 1 was 'photo of a <new1>"),
        (["--learning_rate", "1e-3"], "--learning_rate was '8e-5', is '1e-3'"),
        (["--prior_captions", "captions.txt"], "--prior_captions was '', is '"),
        (["--resolution", "64"], "--resolution was 32, is 64"),
        ("a picture", "added white.png"),
        ("a caption", "other captions of b.png"),
        ("the model", "the model is another"),
        (["--vae", "other"], "the VAE is another"),
        (["--tokenizer_name", "other/tokenizer"], "the tokenizer is another"),
    ],
    ids=str,
)
def test_other_data_is_refused_before_the_model_is_loaded(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    change: str | list[str], said: str,
) -> None:  # fmt: skip
    settled = ["--caption_source", "txt", "--train_batch_size", "100", "--resolution", "32"]
    assert train(model, pictures, tmp_path / "out", *settled) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    monkeypatch.setattr("lib_custom_diffusion.standalone.train.load_model", lambda *_: pytest.fail("was loaded"))
    monkeypatch.chdir(tmp_path)
    Path("captions.txt").write_text("a house\na tree\n")
    if change == "a picture":
        Image.new("RGB", (32, 32), "white").save(pictures / "white.png")
    elif change == "a caption":
        (pictures / "b.txt").write_text("a <new1> outside")
    more = change if isinstance(change, list) else []
    other = other_model(model, tmp_path / "other")
    chosen = other if change == "the model" else model
    capsys.readouterr()
    assert train(chosen, pictures, tmp_path / "out", *settled, "--resume_from_checkpoint", "latest", *more) == 2
    assert said in error(capsys)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_what_means_nothing_in_a_prompt_is_told(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = ("generate", "--model", str(model), "--num_images", "1", "--num_inference_steps", "1", "--resolution", "64")
    more = ["--negative_prompt", "<new7> dog", "--guidance_scale", "1", "--output", str(tmp_path)]
    assert main([*drawn, "--prompt", "a <new1> cat <lora:cat:1>", *more]) == 0
    assert capsys.readouterr().out.splitlines()[:4] == [
        "<lora:cat:1> is plain text here, where <delta:NAME:0.8> is the only tag; convert makes deltas of LoRAs.",
        "<new1> is plain text: no delta in the prompt has that word, and no --embedding.",
        "<new7> is plain text: no delta in the prompt has that word, and no --embedding.",
        "--negative_prompt has no effect, as --guidance_scale is 1.",
    ]
    delta = tmp_path / "words.delta.safetensors"
    Delta({}, {"<new1>": torch.zeros(1, WIDTH)}).save(delta)
    assert main([*drawn, "--prompt", f"a <new1> cat <delta:{delta}:1>", "--output", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out' / '00042.png'}\n"
    assert main([*drawn, "--prompt", f"a cat <delta:{delta}:1>", "--output", str(tmp_path)]) == 0
    assert "The prompt has none of its delta's words: <new1>." in capsys.readouterr().out


def test_another_picture_of_a_seed_is_put_beside_the_one_that_is_there(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = ("generate", "--model", str(model), "--num_images", "1", "--num_inference_steps", "1", "--resolution", "64")
    for prompt in ("a cat", "a dog", "a cat", "a dog", "a bird"):
        assert main([*drawn, "--prompt", prompt, "--output", str(tmp_path / "out")]) == 0
    names = [Path(line).name for line in capsys.readouterr().out.split()]
    assert names == ["00042.png", "00042-2.png", "00042.png", "00042-2.png", "00042-3.png"]
    for name, prompt in zip(names[2:], ("a cat", "a dog", "a bird")):
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.info["parameters"].startswith(prompt)


def test_which_file_a_name_in_a_prompt_is_and_which_others_have_it_is_told(tmp_path: Path) -> None:
    for folder in ("dog", "cat"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "new1.delta.safetensors").touch()
    near = tmp_path / "cat" / "new1.delta.safetensors"
    told = f"<delta:new1> is {near}; <delta:dog/new1> would be another."
    assert found_deltas("a <delta:new1> and <delta:new1:0.5>", tmp_path) == [told]
    (tmp_path / "mug.delta.safetensors").touch()
    assert found_deltas(f"a <delta:{near}> and <delta:mug>", tmp_path) == []


def generate(model: Path, delta: Path, output: Path) -> int:
    prompt = f"a cat <delta:{delta}:1>"
    return main(["generate", "--model", str(model), "--prompt", prompt, "--output", str(output)])


def test_bad_deltas(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    entries = {"json": json.dumps({"meta": {"version": "0.2.0"}, "entries": {key: "delta"}})}
    path = tmp_path / "bad.delta.safetensors"
    for tensor, message in (
        (torch.ones(320, 768), "does not fit this model"),
        (torch.full((32, 48), torch.nan), "not finite"),
    ):
        save_file({key: tensor}, path, entries)
        assert generate(model, path, tmp_path / "out") == 2
        assert message in error(capsys)
    path.write_bytes(path.read_bytes()[:-8])
    assert generate(model, path, tmp_path / "out") == 2
    assert "damaged" in error(capsys)
    assert generate(model, tmp_path / "nowhere", tmp_path / "out") == 2
    assert "there is no delta" in error(capsys)
    assert not (tmp_path / "out").exists()


def test_models_that_cannot_be_used(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flux, torn = tmp_path / "flux", tmp_path / "torn"
    for folder, kind in ((flux, "FluxPipeline"), (torn, "StableDiffusionXLPipeline")):
        folder.mkdir()
        (folder / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    for name in ("broken.safetensors", "broken.ckpt"):
        (tmp_path / name).write_bytes(b"not a checkpoint")
    save_file({"x": torch.ones(1)}, tmp_path / "small.safetensors")
    save_file({"x": torch.ones(1, 2, 3)}, tmp_path / "other.safetensors")
    expected = {
        flux: "FluxPipeline",
        torn: "is incomplete",
        tmp_path: "no model_index.json",
        tmp_path / "broken.safetensors": "it is a text",
        tmp_path / "broken.ckpt": "it is a text",
        tmp_path / "small.safetensors": "another small file",
        tmp_path / "other.safetensors": "has no UNet",
    }
    for path, message in expected.items():
        assert train(path, pictures, tmp_path / "out") == 2
        assert message in error(capsys)


def test_adam_in_8_bits_is_asked_for_as_in_diffusers(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lib_custom_diffusion.training.optimizers.find_spec", lambda module: None)
    for flags in (["--use_8bit_adam"], ["--optimizer", "adamw8bit"]):
        assert train(tmp_path / "no-model", pictures, tmp_path / "out", *flags) == 2
        assert "--optimizer adamw8bit needs bitsandbytes; pip install bitsandbytes" in error(capsys)


def test_prompt_tag_with_a_bad_weight(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--model", str(model), "--prompt", "a <delta:new1:much>"]) == 2
    assert "<delta:new1:much>: its weight should be a number, not 'much'" in error(capsys)


@pytest.mark.parametrize(
    "mistake",
    [
        ["--model", "nowhere"],
        ["--learning_rate", "fast"],
        ["--instance_data_dir", "nowhere"],
        ["--modifier_token", "***"],
        ["--name", "x" * 300],
        ["--train_blocks", "sideways"],
        ["--checkpoints_total_limit", "0"],
        ["--with_prior_preservation", "--class_prompt", ""],
        ["--initializer_token", " "],
        ["--prior_captions", "nowhere.txt"],
        ["--resolution", "63"],
    ],
    ids=lambda mistake: mistake[0],
)
def test_a_mistake_beside_overwrite_loses_nothing(
    mistake: list[str], model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    (output / "checkpoint-9").mkdir(parents=True)
    (output / "new1.delta.safetensors").write_bytes(b"of weeks")
    assert train(model, pictures, output, "--overwrite", *mistake) == 2
    assert error(capsys)
    assert sorted(path.name for path in output.iterdir()) == ["checkpoint-9", "new1.delta.safetensors"]
    assert (output / "new1.delta.safetensors").read_bytes() == b"of weeks"


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--instance_data_dir", "PATH", "--instance_prompt", "a <new1>"],
        ["train", "--config", "PATH"],
        ["train", "--concepts_list", "PATH"],
        ["generate", "--prompt", "a cat", "--output", "PATH"],
        ["regularize", "--class_prompt", "cat", "--class_data_dir=PATH"],
        ["info", "PATH"],
        ["convert", "PATH", "--output", "x.pt"],
    ],
)
def test_paths_that_no_file_can_have_are_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str]
) -> None:
    assert main([each.replace("PATH", str(tmp_path / ("n" * 300))) for each in arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and len(said.splitlines()) == 1
    flag = next((each.removesuffix("=PATH") for each in arguments if each.endswith("=PATH")), None)
    flag = flag or arguments[arguments.index("PATH") - 1]
    if flag.startswith("--"):
        assert main([each.replace("PATH", "") for each in arguments]) == 2
        assert capsys.readouterr().err == f"error: {flag} is empty; give a path, or leave it out\n"


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (PermissionError(13, "Permission denied", "a.png"), "error: cannot use a.png: Permission denied\n"),
        (OSError(5, "Input/output error"), "error: Input/output error\n"),
        (FileNotFoundError(2, "No such file or directory"), "error: the folder that you are in is gone; change to one"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), "error: the GPU's memory is too small for this; give"),
    ],
    ids=lambda each: type(each).__name__,
)
def test_what_the_system_will_not_do_is_one_line(
    failure: Exception, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> None:
        raise failure

    monkeypatch.setattr("lib_custom_diffusion.standalone.info.describe", fail)
    assert main(["info", "a.delta.safetensors"]) == 2
    told = capsys.readouterr().err
    assert told.startswith(said) and told.count("\n") == 1


def test_letters_that_the_terminal_does_not_have_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a C locale, in a window of Windows, and with names that are not in UTF-8."""
    told = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(told, encoding="ascii"))
    monkeypatch.setattr("lib_custom_diffusion.standalone.info.describe", lambda path: None)
    monkeypatch.setattr("lib_custom_diffusion.standalone.info._text", lambda _: "猫 \udcff █")
    assert main(["info", "a.delta.safetensors"]) == 0
    assert told.getvalue() == rb"\u732b \udcff \u2588" + os.linesep.encode()


def test_a_closed_output_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib_custom_diffusion.standalone.info.describe", lambda path: {})
    monkeypatch.setattr(sys, "stdout", None)  # as Python has it after >&-
    assert main(["info", "a.delta.safetensors", "--json"]) == 0


@pytest.mark.parametrize("closed", [["stderr"], ["stdout"], ["stdout", "stderr"]])
def test_closed_streams_do_not_stop_what_shows_its_progress(closed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def described(path: Path) -> dict[str, str]:
        with tqdm(total=1) as bar:
            bar.update()
        tqdm.write("done")
        return {}

    monkeypatch.setattr("lib_custom_diffusion.standalone.info.describe", described)
    for name in closed:
        monkeypatch.setattr(sys, name, None)
    assert main(["info", "a.delta.safetensors", "--json"]) == 0


def test_usage_names_what_must_be_given_and_not_seventy_flags(capsys: pytest.CaptureFixture[str]) -> None:
    for command, needed in (("train", ""), ("evaluate", "--delta DELTA [DELTA ...] --instance_data_dir")):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        usage = " ".join(capsys.readouterr().out.partition("\n\n")[0].split())
        assert usage.endswith("[FLAGS]") and needed in usage and "--seed" not in usage
