"""Flags of kohya's and the advanced SDXL script, and mistyped ones: one sentence that says what to write instead."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
import torch

from lib_custom_diffusion.standalone import cli, foreign_flags
from lib_custom_diffusion.training.schedule import Schedule

# As in the guides of sd-scripts (docs/train_network.md) and diffusers (advanced_diffusion_training/README.md).
KOHYA = """train --pretrained_model_name_or_path=model.safetensors --train_data_dir=data --output_dir=out
    --output_name=cat --save_model_as=safetensors --max_train_steps=400 --learning_rate=1e-4 --optimizer_type=AdamW8bit
    --xformers --mixed_precision=fp16 --cache_latents --gradient_checkpointing --network_module=networks.lora
    --network_dim 16"""
# Of all that its network script takes, what is neither a flag here nor in another table.
MORE_OF_KOHYA = """caption_dropout_rate cache_text_encoder_outputs color_aug full_bf16 huber_c in_json keep_tokens
    loss_type lr_scheduler_num_cycles max_timestep min_bucket_reso multires_noise_iterations network_dropout
    network_weights resume sample_at_first save_every_n_epochs save_precision save_state scale_weight_norms
    shuffle_caption weighted_captions zero_terminal_snr async_upload block_lr blocks_to_swap cpu_offload_checkpointing
    dataset_class ddp_gradient_as_bucket_view ddp_static_graph deepspeed diffusers_xformers
    disable_mmap_load_safetensors fp16_master_weights_and_gradients fp8_base_unet fused_optimizer_groups huber_scale
    huggingface_path_in_repo huggingface_repo_type huggingface_repo_visibility initial_epoch initial_step
    ip_noise_gamma_random_strength learning_rate_te learning_rate_te1 learning_rate_te2 log_config log_tracker_config
    logit_mean logit_std lr_scheduler_min_lr_ratio lr_scheduler_timescale max_validation_steps mode_scale
    no_token_padding offload_optimizer_device offload_optimizer_nvme_path offload_param_device
    offload_param_nvme_path resize_interpolation resume_from_huggingface save_last_n_epochs_state
    save_last_n_steps_state save_state_to_huggingface skip_until_initial_step stop_text_encoder_training
    text_encoder_batch_size use_safetensors validate_every_n_epochs validate_every_n_steps validation_seed
    validation_split weighting_scheme weights zero3_init_flag zero3_save_16bit_model zero_stage"""
# Of diffusers' scripts for DreamBooth, textual inversion and LoRA, the advanced ones too.
OF_DIFFUSERS = """cache_dir class_labels_conditioning debug_loss lora_dropout max_train_samples offset_noise
    pre_compute_text_embeddings save_as_full_pipeline skip_save_text_encoder text_encoder_use_attention_mask
    tokenizer_max_length validation_images validation_scheduler"""
ADOBE = (
    "train --base=x.yaml --caption=x --datapath=x --reg_datapath2=x --delta-ckpt=x --no-test --batch_size=2 --gpus=0,"
    " -n=x -r=x -rc=x -b=x -t --train -p=x --project=x -d --debug -s=1 -f=x --postfix=x -l=x --repeat=1"
)
ADOBES_SAMPLING = """generate --prompt=x --skip_grid --skip_save --plms --laion400m --fixed_code --n_iter=1 --H=512
    --W=512 --C=4 --f=8 --n_rows=1 --from-file=x --config=x --precision=x --wandb_log --modifier_token=x --sdxl
    --batch_size=4 --freeze_model=x"""
OTHERS = [
    *("train " + " --".join(["", *flags.split()]) for flags in (MORE_OF_KOHYA, OF_DIFFUSERS)),
    ADOBE,
    " ".join(ADOBES_SAMPLING.split()),
    "compress x --rank=4 --delta_ckpt=x --ckpt=x --diffuser --sd_version=x",
    "merge x y --target_prompts=x --model=toy --output=z --paths=x --save_path=x --categories=x --ckpt=x"
    " --regularization_prompt=x",
    "convert x --output=y --delta_ckpt=x --ckpt=x --mode=diffuser-to-webui --modelname=x",
    "evaluate --model=toy --delta=x --instance_data_dir=x --prompts=x --sample_root=x --numgen=1 --target_paths=x"
    " --outpkl=x",
]
ADVANCED = """train --pretrained_model_name_or_path=base --pretrained_vae_model_name_or_path=vae --dataset_name=./data
    --instance_prompt=TOK --token_abstraction=TOK --train_text_encoder_ti --train_text_encoder_ti_frac=0.5
    --text_encoder_lr=1.0 --optimizer=prodigy --prodigy_safeguard_warmup=True --repeats=1 --rank=32 --snr_gamma=5.0"""


def told(arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(arguments.split()) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def test_all_flags_of_kohyas_users_are_answered_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    said = told(KOHYA, capsys)
    assert (
        "for --train_data_dir write --instance_data_dir; for --output_name write --name; leave --save_model_as" in said
    )
    assert "for --network_dim write --rank" in said and "leave --xformers out, as PyTorch's own" in said
    assert "--mixed_precision" not in said and "16" not in said


@pytest.mark.parametrize("arguments", OTHERS)
def test_no_known_flag_is_taken_for_a_mistyped_one(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = told(arguments, capsys)
    assert "there is no -" not in said and "did you mean" not in said
    known = next(each for each in cli.parser()._actions if isinstance(each, argparse._SubParsersAction)).choices
    for flag in set(re.findall("(?<= )-[-A-Za-z0-9_]+", arguments)) - set(
        known[arguments.split()[0]]._option_string_actions
    ):
        assert f"for {flag} write" in said or f"leave {flag} out, as" in said


def test_generate_answers_the_flags_of_adobes_sampling(capsys: pytest.CaptureFixture[str]) -> None:
    said = told("generate --prompt x --delta_ckpt a.ckpt --ckpt m --ddim_steps 200 --scale 6 --compress", capsys)
    assert "leave --delta_ckpt out, as prompts of generate name the delta: <delta:FILE:1>" in said
    assert "for --ddim_steps write --num_inference_steps; for --scale write --guidance_scale" in said


def test_all_flags_of_the_advanced_scripts_users_are_answered_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    said = told(ADVANCED, capsys)
    assert "for --token_abstraction write --modifier_token" in said
    assert "leave --train_text_encoder_ti_frac out, as new words are always learned" in said
    assert "for --text_encoder_lr write --embedding_learning_rate" in said and "--snr_gamma" not in said


def test_what_is_to_be_written_instead_is_a_flag_of_train_or_generate() -> None:
    commands = next(each for each in cli.parser()._actions if isinstance(each, argparse._SubParsersAction)).choices
    names = ("merge", "convert", "blend", "ui", "evaluate", "generate", "train")
    flags = {flag: each for name in names for flag, each in commands[name]._option_string_actions.items()}
    for each in foreign_flags._RENAMED.values():
        for new in each.split("|"):
            flag, _, value = new.partition(" ")
            assert flag in flags and (not value or value in flags[flag].choices), new


def test_a_mistyped_flag_is_told_with_the_one_that_may_be_meant(capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no --lerning_rate; did you mean --learning_rate?" in told("train --lerning_rate 1", capsys)
    assert "there is no --zzz; --help lists all flags" in told("train --zzz", capsys)
    assert "'cats' stands alone" in told("train cats", capsys)
    assert "there is no --max_train_step; did you mean --max_train_steps?" in told("train --max_train_step=4", capsys)
    assert "there is no --promt; did you mean --prompt?" in told("generate --promt cat", capsys)  # which it needs
    assert "--resize_mode has no 'bukcet'; there are crop, pad, bucket. Did you mean bucket?" in told(
        "train --resize_mode bukcet", capsys
    )
    assert "there is no file --odd" in told("blend --output new.delta.safetensors -- --odd", capsys)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("generate --prompt x --steps 8", "--num_inference_steps"),
        ("train --steps 8", "--max_train_steps"),
        ("demo --steps 8", "--max_train_steps"),
        ("train --lr 1", "--learning_rate"),
        ("train --epochs 3", "--num_train_epochs"),
        ("train --batch-size 3", "--train_batch_size"),
        ("generate --prompt x --batch_size 3", "--sample_batch_size"),
        ("generate --prompt x --width 64", "--resolution"),
        ("compress x --size 5MB", "--max_size"),
        ("generate --prompt x --cfg 7", "--guidance_scale"),
        ("generate --prompt x --out y", "--output"),
        ("train -o y", "--output_dir"),
        ("blend x y --output_dir z", "--output"),
        ("regularize --prompt cat", "--class_prompt"),
        ("evaluate --prompt cat", "--prompts"),
        ("convert x --output y --format lora", "--to"),
    ],
)
def test_a_common_name_of_a_flag_is_told_with_that_of_the_command(
    typed: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(typed, capsys).endswith(f" write {meant}")


@pytest.mark.parametrize(("typed", "meant"), [("trian", "train"), ("evalute", "evaluate"), ("Info", "info")])
def test_a_mistyped_command_is_told_with_the_one_that_may_be_meant(
    typed: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = told(f"{typed} --model toy", capsys)
    assert f"there is no command '{typed}'; there are demo, train," in said and said.endswith(f"Did you mean {meant}?")


def test_a_flag_before_the_command_is_told_where_it_goes(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--model comes after the command, such as train; there are demo," in told("--model toy train", capsys)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [("", "required: COMMAND"), ("train --seed=x", "invalid int value: 'x'")],
)
def test_other_mistakes_are_one_line_too(arguments: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = told(arguments, capsys)
    assert said in line and re.search(r"--help lists all there is$", line)


def test_a_file_of_kohyas_settings_is_answered_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "lora.toml"
    file.write_text('[network]\nnetwork_dim = 8\n[data]\ntrain_data_dir = "x"\nseed = 1\n')
    said = told(f"train --config {file}", capsys)
    assert "has settings of another program: for --network_dim write --rank; for --train_data_dir write" in said


def test_optimizers_may_be_written_as_elsewhere() -> None:
    assert cli._parsed(["train", "--optimizer", "AdamW8bit"]).optimizer == "adamw8bit"


@pytest.mark.parametrize(("theirs", "ours"), [("constant_with_warmup", "constant"), ("polynomial", "linear"),
                                              ("cosine_with_restarts", "cosine")])  # fmt: skip
def test_schedules_may_be_written_as_in_diffusers_and_are_the_same(theirs: str, ours: str) -> None:
    from diffusers.optimization import get_scheduler

    assert cli._parsed(["train", "--lr_scheduler", theirs]).lr_scheduler == ours
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    other = get_scheduler(theirs, optimizer, num_warmup_steps=0, num_training_steps=10)
    own = Schedule.parse("1.0", ours)
    for step in range(10):
        assert own.rate_at(step, 10) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-6)
        optimizer.step()
        other.step()
