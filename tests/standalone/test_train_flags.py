"""Flags and files as users of diffusers' script, and of kohya's, write them."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPTokenizer

from hub_stand_in import HubStandIn
from lib_custom_diffusion.delta import Delta
from lib_custom_diffusion.injection import Injection
from lib_custom_diffusion.standalone import cli, models, trackers, train
from lib_custom_diffusion.standalone.models import load_model
from lib_custom_diffusion.standalone.train import plan_of
from tiny_pipeline import stable_diffusion_2

# All flags of examples/custom_diffusion/train_custom_diffusion.py in diffusers (main, August 2026) that take a
# value, and those that take none; --use_8bit_adam has a test of its own.
WITH_VALUE = """
    pretrained_model_name_or_path revision variant tokenizer_name instance_data_dir class_data_dir instance_prompt
    class_prompt validation_prompt num_validation_images validation_steps prior_loss_weight num_class_images output_dir
    seed resolution train_batch_size sample_batch_size num_train_epochs max_train_steps checkpointing_steps
    checkpoints_total_limit resume_from_checkpoint gradient_accumulation_steps learning_rate dataloader_num_workers
    freeze_model lr_scheduler lr_warmup_steps adam_beta1 adam_beta2 adam_weight_decay adam_epsilon max_grad_norm
    hub_token hub_model_id logging_dir report_to mixed_precision prior_generation_precision concepts_list local_rank
    modifier_token initializer_token
""".split()  # noqa: SIM905 - a list of 44 lines says no more
SWITCHES = """
    with_prior_preservation real_prior center_crop gradient_checkpointing scale_lr push_to_hub allow_tf32
    enable_xformers_memory_efficient_attention set_grads_to_none hflip noaug no_safe_serialization
""".split()  # noqa: SIM905
VALUES = {"freeze_model": "crossattn", "lr_scheduler": "cosine", "mixed_precision": "no", "report_to": "all"}


def parsed(*flags: str) -> Any:
    return cli._parsed(["train", *flags])


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on the error output, other than progress bars and warnings."""
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


@pytest.fixture
def flags(model: Path, pictures: Path, tmp_path: Path) -> list[str]:
    """Of a training of four steps."""
    return [
        f"--model={model}", f"--instance_data_dir={pictures}", "--instance_prompt=photo of a <new1> cat",
        f"--output_dir={tmp_path / 'out'}", "--max_train_steps=4", "--train_batch_size=2", "--prior=none",
    ]  # fmt: skip


@pytest.mark.parametrize("name", WITH_VALUE)
def test_a_flag_of_diffusers_with_a_value_is_taken(name: str) -> None:
    value = VALUES.get(name, "1")
    assert str(vars(parsed(f"--{name}", value))["model" if name.startswith("pretrained") else name]) == value or (
        float(vars(parsed(f"--{name}", value))[name]) == 1
    )


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_of_diffusers_is_taken_with_and_without_a_value(name: str) -> None:
    unsaid = None if name == "noaug" else False  # which the toy's recipe says
    assert [vars(parsed(*given))[name] for given in ([f"--{name}"], [f"--{name}=True"], [f"--{name}=False"], [])] == [
        True, True, False, unsaid,
    ]  # fmt: skip
    assert vars(parsed(f"--{name}", f"--{name}=false"))[name] is False


PATHS = {
    "demo": "output",
    "train": "vae config concepts_list instance_data_dir class_data_dir template output_dir logging_dir tokenizer_name",
    "generate": "vae deltas_dir embedding output",
    "regularize": "vae class_data_dir pick_from",
    "evaluate": "vae delta instance_data_dir prompts class_data_dir clip dino output",
    "info": "file",
    "compress": "file output captions",
    "blend": "files output",
    "merge": "files output captions",
    "rename": "file output",
    "convert": "files output",
    "ui": "deltas_dir models_dir",
}


@pytest.mark.parametrize("command", PATHS)
def test_a_tilde_is_the_home_folder_in_every_flag_with_a_path(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shells leave it as it is after --flag=, and so do files of settings."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("USERPROFILE", "/home/me")
    parsers = next(each for each in cli.parser()._actions if isinstance(each, argparse._SubParsersAction)).choices
    assert set(PATHS) == set(parsers)
    takes = {action.dest: action.type for action in parsers[command]._actions}
    for name in PATHS[command].split():
        assert str(takes[name]("~/cats")) == "/home/me/cats", name
    assert Path not in takes.values()


def test_a_tilde_is_the_home_folder_in_a_file_of_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "a.yaml").write_text(
        "output_dir: ~/out\nprior_captions: ~/captions.txt\n"
        "concepts: [{instance_prompt: a <new1> cat, instance_data_dir: ~/cats, class_data_dir: ~/class}]\n"
    )
    options = parsed("--config=~/a.yaml", f"--template={tmp_path}/x")
    plan = plan_of(options)
    assert options.output_dir == tmp_path / "out"
    assert (plan.prior_captions, plan.template) == (str(tmp_path / "captions.txt"), tmp_path / "x")
    assert plan.concepts[0].instance_data_dir == tmp_path / "cats"


def test_adam_of_8_bits_is_an_optimizer_here() -> None:
    assert parsed("--use_8bit_adam").optimizer == "adamw8bit"
    assert parsed("--use_8bit_adam=False").optimizer == parsed().optimizer != "adamw8bit"


def test_a_switch_that_is_neither_on_nor_off_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--real_prior=maybe"]) == 2
    assert "--real_prior is on or off: write --real_prior or --real_prior=False" in told(capsys)


def test_needless_flags_are_named_with_the_reason(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", *flags, "--set_grads_to_none", "--dataloader_num_workers=0"]) == 0
    said = capsys.readouterr().out
    assert "--set_grads_to_none is not needed: that is always so." in said
    assert "--dataloader_num_workers is not needed: all pictures are encoded before the first step." in said
    assert said.count("is not needed") == 2


@pytest.mark.parametrize(
    ("more", "steps"),
    [
        (["--num_train_epochs=3"], 6),  # 3 pictures, 2 a step
        (["--num_train_epochs=3", "--gradient_accumulation_steps=2"], 3),
        (["--num_train_epochs=3", "--max_train_steps=7"], 7),
        (["--num_train_epochs=1", "--with_prior_preservation", "--class_prompt=cat", "--num_class_images=9"], 5),
    ],
)
def test_epochs_are_rounds_through_the_pictures(flags: list[str], more: list[str], steps: int) -> None:
    given = [flag for flag in flags if not flag.startswith("--max_train_steps")]
    assert plan_of(parsed(*given, *more)).max_train_steps == steps


def test_flags_without_effect_are_told_with_the_reason(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--hub_model_id=me/cat", "--hub_license=mit", "--logging_dir=mine", "--revision=x", "--num_train_epochs=9",
            "--validation_prompt=a cat", "--validation_steps=0"]  # fmt: skip
    assert cli.main(["train", *flags, *more]) == 0
    printed = capsys.readouterr().out
    for said in (
        "--hub_model_id and --hub_license have no effect, as --push_to_hub is not given.",
        "--logging_dir has no effect, as --report_to is none.",
        "--revision has no effect, as the model is not of the Hub.",
        "--num_train_epochs has no effect, as --max_train_steps is given.",
        "--validation_prompt has no effect, as --validation_steps is 0.",
    ):
        assert said in printed
    assert printed.count("no effect") == 5


@pytest.mark.parametrize(
    "flag", ["--resume_from_checkpoint", "--validation_prompt", "--max_size", "--instance_data_dir"]
)
def test_a_variable_without_a_value_is_no_flag_left_out(
    flag: str, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", *flags, flag, ""]) == 2
    assert f"{flag} is empty; " in told(capsys)


def test_no_epochs_are_refused(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    given = [flag for flag in flags if not flag.startswith("--max_train_steps")]
    assert cli.main(["train", *given, "--num_train_epochs=0"]) == 2
    assert "--num_train_epochs must be 1 or more, not 0" in told(capsys)


def test_tf32_is_allowed_where_it_is_asked_for(flags: list[str]) -> None:
    for given, allowed in ((["--allow_tf32"], True), ([], False)):
        assert cli.main(["train", *flags, "--overwrite", *given]) == 0
        assert torch.backends.cuda.matmul.allow_tf32 is allowed


@pytest.mark.parametrize(
    ("device", "reason"),
    [("cpu", "is for NVIDIA and AMD GPUs, not for cpu"), ("mps", "not for mps"), ("cuda", "needs Triton")],
)
def test_torch_compile_is_refused_at_once_where_it_cannot_work(
    flags: list[str], device: str, reason: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "best_device", lambda: torch.device(device))
    monkeypatch.setattr(train, "find_spec", lambda name: None)
    monkeypatch.setattr(train, "load_model", lambda *arguments: pytest.fail("the model was loaded"))
    assert cli.main(["train", *flags, "--torch_compile"]) == 2
    said = told(capsys)
    assert "--torch_compile" in said and reason in said and "leave it out" in said


def test_files_for_diffusers_are_loaded_by_it_and_draw_the_same(flags: list[str], tmp_path: Path) -> None:
    assert cli.main(["train", *flags, "--no_safe_serialization", "--learning_rate=1e-2"]) == 0
    out = tmp_path / "out"
    delta, backend, pipeline = (
        Delta.load(out / "new1.delta.safetensors"),
        load_model(flags[0][8:]),
        stable_diffusion_2(),
    )
    latents, text = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 48)
    plain = pipeline.unet(latents, 5, text).sample
    with torch.no_grad(), Injection(backend.unet, [(delta, 1.0)]):
        expected = backend.unet(latents, 5, text).sample
    pipeline.unet.load_attn_procs(str(out), weight_name="pytorch_custom_diffusion_weights.bin", _pipeline=pipeline)
    pipeline.load_textual_inversion(str(out), weight_name="<new1>.bin")
    with torch.no_grad():
        torch.testing.assert_close(pipeline.unet(latents, 5, text).sample, expected, atol=1e-4, rtol=1e-4)
    assert (plain - expected).abs().max() > 1e-3
    number = pipeline.tokenizer.convert_tokens_to_ids("<new1>")
    learned = pipeline.text_encoder.get_input_embeddings().weight[number]
    torch.testing.assert_close(learned, delta.embeddings["<new1>"][0].float(), atol=1e-3, rtol=1e-3)


def test_another_tokenizer_takes_the_place_of_the_models_own(
    model: Path, tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer")
    tokenizer.add_tokens("catamaran")
    tokenizer.save_pretrained(tmp_path / "other")
    assert load_model(str(model), tokenizer=str(tmp_path / "other")).has_token("catamaran")
    assert not load_model(str(model)).has_token("catamaran")
    assert cli.main(["train", *flags, f"--tokenizer_name={tmp_path}"]) == 2
    assert "is not a CLIP tokenizer" in told(capsys)


def test_a_model_of_the_hub_is_had_in_its_revision_and_variant(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def download(name: str, **options: Any) -> str:
        asked.append((name, options))
        return str(model)

    monkeypatch.setattr(models.DiffusionPipeline, "download", download)
    load_model("me/model", revision="v2", variant="fp16")
    assert asked == [("me/model", {"revision": "v2", "variant": "fp16"})]


def test_the_record_of_a_run_given_back_trains_the_same_again(flags: list[str], tmp_path: Path, model: Path) -> None:
    assert cli.main(["train", *flags, "--hflip", "--train_blocks=mid,up", "--learning_rate=1e-3"]) == 0
    record = tmp_path / "out" / "config.json"
    again = tmp_path / "again"
    assert cli.main(["train", "--config", str(record), f"--model={model}", f"--output_dir={again}"]) == 0
    for name in ("new1.delta.safetensors", "new1.pt", "config.json"):
        assert (again / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_flags_count_for_more_than_the_file_and_the_file_for_more_than_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "train.toml"
    file.write_text(
        'instance_data_dir = "x"\ninstance_prompt = "a <a>"\nseed = 7\nhflip = true\n[a]\nlearning_rate = 1e-4'
    )
    plan = plan_of(parsed("--config", str(file), "--seed=8", "--hflip=False"))
    assert (plan.seed, plan.hflip, plan.learning_rate, plan.max_train_steps) == (8, False, "0.0001", 300)


def test_the_recipe_says_whether_pictures_are_scaled_unless_a_flag_or_the_file_does(tmp_path: Path) -> None:
    file = tmp_path / "train.toml"
    file.write_text("noaug = false")
    asked = ("--instance_data_dir=x", "--instance_prompt=a <a>")
    plans = [
        plan_of(parsed(*asked, *more)).noaug
        for more in ([], ["--no-noaug"], ["--noaug=False"], ["--config", str(file)], ["--config", str(file), "--noaug"])
    ]
    assert plans == [True, False, False, False, True]
    assert plan_of(parsed(*asked, "--model", str(tmp_path))).noaug is False


def test_a_setting_that_there_is_not_is_refused_with_what_may_be_meant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "train.toml"
    file.write_text("max_train_step = 4")
    assert cli.main(["train", "--config", str(file)]) == 2
    assert "has 'max_train_step', which is not a setting; did you mean max_train_steps?" in told(capsys)


def test_the_result_is_put_on_the_hub(flags: list[str], hub: HubStandIn, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--push_to_hub", "--hub_model_id=me/cat", "--hub_token=hf_right", "--hub_license=mit"]
    assert cli.main(["train", *flags, *more, "--num_validation_images=1"]) == 0
    found = hub.repositories["me/cat"]
    assert sorted(found) == ["README.md", "image_0.png", "new1.delta.safetensors", "new1.pt"]
    card = found["README.md"].decode()
    assert "license: mit" in card and "photo of a <new1> cat" in card and "base_model" not in card
    assert "put on the Hub: " in capsys.readouterr().out


def test_a_hub_that_refuses_is_told_before_anything_is_trained(
    flags: list[str], hub: HubStandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", *flags, "--push_to_hub", "--hub_token=hf_wrong"]) == 2
    assert "the Hub refused (status 401)" in told(capsys)
    assert not (tmp_path / "out").exists()


def test_services_are_told_of_every_step(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[int, dict[str, float]]] = []
    pictures: list[int] = []
    settings: list[Any] = []

    class Told:
        name = "wandb"
        start = finish = lambda self: None
        store_init_configuration = staticmethod(settings.append)

        def __init__(self, project: str) -> None:
            """Nothing is sent."""

        def log(self, numbers: dict[str, float], step: int) -> None:
            steps.append((step, numbers))

        def log_images(self, drawn: dict[str, list[Any]], step: int) -> None:
            pictures.append(step)

    monkeypatch.setitem(trackers.LOGGER_TYPE_TO_CLASS, "wandb", Told)
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: ["wandb"])
    more = ["--report_to=wandb", "--validation_prompt=a cat", "--validation_steps=2", "--num_validation_images=1"]
    assert cli.main(["train", *flags, *more]) == 0
    assert [step for step, _ in steps] == [1, 2, 3, 4] and pictures == [2, 4]
    assert all(numbers["loss"] > 0 for _, numbers in steps) and settings[0]["max_train_steps"] == 4


def test_a_service_that_is_not_installed_is_told_before_anything_is_trained(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trackers, "get_available_trackers", list)
    assert cli.main(["train", *flags, "--report_to=comet_ml"]) == 2
    assert "comet_ml is not installed; pip install comet_ml" in told(capsys) and not (tmp_path / "out").exists()


def test_tensorboards_logs_are_where_they_are_asked_for(flags: list[str], tmp_path: Path) -> None:
    assert cli.main(["train", *flags, "--report_to=all", "--logging_dir=curves"]) == 0
    assert list((tmp_path / "out" / "curves").glob("events.*"))
    assert "report_to" in json.loads((tmp_path / "out" / "config.json").read_text())


def test_the_command_line_starts_with_the_libraries_of_the_core_alone() -> None:
    others = ("yaml", "tomli", "diffusers", "transformers", "accelerate", "huggingface_hub")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({others})); import {cli.__name__} as cli; cli._parsed(['train'])"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--resume_from_checkpoint=checkpoint-7"], "there is no save checkpoint-7 in"),
        (["--resume_from_checkpoint=checkpoint-4", "--max_train_steps=3"], "checkpoint-4 has 4 steps behind it"),
        ([], "there is already a training called new1"),
        (["--mixed_precision=fp16", "--overwrite"], "--mixed_precision fp16 needs a GPU"),
        (
            ["--instance_data_dir=out/images", "--overwrite"],
            "--instance_data_dir of concept 1 is out/images, where thi",
        ),
    ],
)
def test_what_is_there_already_is_looked_at_before_the_model_is_loaded(
    flags: list[str], tmp_path: Path, more: list[str], said: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "best_device", lambda: torch.device("cpu"))
    assert cli.main(["train", *flags, "--validation_prompt=a cat", "--validation_steps=4"]) == 0
    assert cli.main(["train", *flags, "--model=nowhere", *more]) == 2
    assert said in told(capsys)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--pick_from=gone"], "there is no folder gone"),
        (["--pick_from=pictures"], "pictures has no captions to pick by"),
        (["--pick_from=broken"], "none of the pictures can be used"),
        (["--class_data_dir=drawn"], "drawn has pictures of 'dog', not 'cat'; choose another folder"),
        (
            ["--class_prompt= ", "--class_data_dir=new"],
            "--class_prompt is empty; say what to draw or pick, such as cat",
        ),
    ],
)
def test_regularize_looks_at_its_folders_before_the_model_is_loaded(
    pictures: Path, tmp_path: Path, more: list[str], said: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in (
        ("drawn/0000.png", b""),
        ("drawn/0000.txt", b"dog"),
        ("broken/a.png", b""),
        ("broken/a.txt", b"b"),
    ):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(content)
    assert cli.main(["regularize", "--model=nowhere", "--class_prompt=cat", *more]) == 2
    assert said in told(capsys)
