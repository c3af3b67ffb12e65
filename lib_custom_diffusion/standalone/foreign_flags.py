"""Flags of other trainers' scripts that `train` lacks: what to write instead, or why they are not needed."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence

_RENAMED = {
    # kohya's sd-scripts
    "train_data_dir": "--instance_data_dir", "reg_data_dir": "--class_data_dir", "config_file": "--config",
    "dataset_config": "--config", "output_name": "--name", "network_dim": "--rank", "unet_lr": "--learning_rate",
    "text_encoder_lr": "--embedding_learning_rate", "optimizer_type": "--optimizer",
    "max_train_epochs": "--num_train_epochs", "enable_bucket": "--resize_mode bucket",
    "min_snr_gamma": "--snr_gamma", "save_every_n_steps": "--checkpointing_steps",
    "save_last_n_steps": "--checkpoints_total_limit", "caption_extension": "--caption_source txt",
    "caption_extention": "--caption_source txt", "sample_prompts": "--validation_prompt",
    "sample_every_n_steps": "--validation_steps", "log_with": "--report_to", "flip_aug": "--hflip",
    "token_string": "--modifier_token", "init_word": "--initializer_token",
    "num_vectors_per_token": "--vectors_per_token", "v_parameterization": "--prediction_type v_prediction",
    "masked_loss": "--use_alpha", "alpha_mask": "--use_alpha", "use_lion_optimizer": "--optimizer lion",
    "huggingface_repo_id": "--hub_model_id", "huggingface_token": "--hub_token",
    # diffusers' advanced SDXL LoRA script
    "pretrained_vae_model_name_or_path": "--vae", "dataset_name": "--instance_data_dir",
    "token_abstraction": "--modifier_token", "num_new_tokens_per_abstraction": "--vectors_per_token",
    "random_flip": "--hflip", "lora_unet_blocks": "--train_blocks",
}  # fmt: skip
_ALWAYS = {
    **dict.fromkeys(("cache_latents", "cache_latents_to_disk", "vae_batch_size"),
                    "all pictures are encoded before the first step"),
    **dict.fromkeys(("xformers", "sdpa", "mem_eff_attn"), "PyTorch's own attention takes as little memory"),
    **dict.fromkeys(("train_text_encoder_ti", "train_text_encoder_ti_frac", "network_train_unet_only"),
                    "new words are always learned, and the text encoder never changes"),
    **dict.fromkeys(("network_module", "network_alpha", "network_args", "save_model_as", "output_kohya_format"),
                    "convert --to lora makes a LoRA of the result"),
    **dict.fromkeys(("v2", "clip_skip"), "the model's own files say that"),
    **dict.fromkeys(("max_data_loader_n_workers", "persistent_data_loader_workers"),
                    "no picture is read during the training"),
    **dict.fromkeys(("repeats", "dataset_repeats"), "--max_train_steps alone says how long it takes"),
    "max_token_length": "captions of any length are read whole",
    "random_crop": "that is so without --center_crop",
    **dict.fromkeys(("prodigy_safeguard_warmup", "prodigy_use_bias_correction", "prodigy_beta3", "optimizer_args"),
                    "optimizers keep their own defaults for what no flag says"),
}  # fmt: skip


def is_foreign(name: str) -> bool:
    """Whether it is another program's name of a setting that has another name here, or is not needed."""
    return name in _RENAMED or name in _ALWAYS


def instead_of(unknown: Sequence[str], flags: Collection[str]) -> str:
    """A sentence on flags that there are not: what to write instead of each. flags: those that there are."""
    told = []
    for flag in unknown:
        name = flag.removeprefix("--")
        near = difflib.get_close_matches(flag, flags, 1)
        if name in _RENAMED and _RENAMED[name].split()[0] in flags:
            told.append(f"for {flag} write {_RENAMED[name]}")
        elif name in _ALWAYS:
            told.append(f"leave {flag} out, as {_ALWAYS[name]}")
        elif near:
            told.append(f"there is no {flag}; did you mean {near[0]}?")
        else:
            told.append(f"there is no {flag}; --help lists all flags")
    return "; ".join(told)
