"""Flags of other trainers' scripts that `train` lacks: what to write instead, or why they are not needed."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence

_RENAMED = {  # where commands call it differently, all its names
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
    "resume": "--resume_from_checkpoint", "save_every_n_epochs": "--checkpointing_steps",
    "save_n_epoch_ratio": "--checkpointing_steps", "save_last_n_epochs": "--checkpoints_total_limit",
    "sample_every_n_epochs": "--validation_steps", "full_fp16": "--mixed_precision fp16",
    "full_bf16": "--mixed_precision bf16", "save_last_n_epochs_state": "--checkpoints_total_limit",
    "save_last_n_steps_state": "--checkpoints_total_limit",
    **dict.fromkeys(("initial_epoch", "initial_step", "skip_until_initial_step"), "--resume_from_checkpoint"),
    **dict.fromkeys(("learning_rate_te", "learning_rate_te1", "learning_rate_te2"), "--embedding_learning_rate"),
    **dict.fromkeys(("caption_prefix", "caption_suffix", "use_object_template", "use_style_template"),
                    "--caption_source template"),
    # diffusers' advanced SDXL LoRA script
    "pretrained_vae_model_name_or_path": "--vae", "dataset_name": "--instance_data_dir",
    "token_abstraction": "--modifier_token", "num_new_tokens_per_abstraction": "--vectors_per_token",
    "random_flip": "--hflip", "lora_unet_blocks": "--train_blocks", "validation_epochs": "--validation_steps",
    "caption_column": "--caption_source txt", "adam_weight_decay_text_encoder": "--adam_weight_decay",
    # diffusers' textual inversion
    "placeholder_token": "--modifier_token", "num_vectors": "--vectors_per_token",
    "save_steps": "--checkpointing_steps", "offset_noise": "--noise_offset",
    # Adobe's train.py and sample.py
    "datapath": "--instance_data_dir", "caption": "--instance_prompt", "reg_datapath": "--class_data_dir",
    "reg_caption": "--class_prompt", "batch_size": "--train_batch_size|--sample_batch_size", "logdir": "--output_dir",
    **dict.fromkeys(("datapath2", "caption2", "reg_datapath2", "reg_caption2"), "--concepts_list"),
    **dict.fromkeys(("resume_from_checkpoint_custom", "ckpt"), "--model"),
    "-n": "--name", "-s": "--seed", "-l": "--output_dir", "-rc": "--model", "-r": "--resume_from_checkpoint",
    "ddim_steps": "--num_inference_steps", "scale": "--guidance_scale", "n_samples": "--num_images",
    "n_iter": "--num_images", "H": "--resolution", "W": "--resolution", "outdir": "--output",
    "save_path": "--output", "outpath": "--output", "regularization_prompt": "--captions", "mode": "--to",
    "sample_root": "--delta", "numgen": "--num_images", "target_paths": "--instance_data_dir",
    # what people type who do not look it up
    **dict.fromkeys(("steps", "num_steps", "train_steps", "max_steps"), "--num_inference_steps|--max_train_steps"),
    **dict.fromkeys(("epochs", "num_epochs", "max_epochs"), "--num_train_epochs"), "lr": "--learning_rate",
    **dict.fromkeys(("bs", "batch"), "--train_batch_size|--sample_batch_size"),
    **dict.fromkeys(("width", "height", "size"), "--resolution|--max_size"),
    **dict.fromkeys(("cfg", "cfg_scale", "guidance"), "--guidance_scale"),
    **dict.fromkeys(("out", "out_dir", "outfile", "output_file", "output_folder", "o", "-o", "output", "output_dir"),
                    "--output_dir|--output|--class_data_dir"),
    **dict.fromkeys(("count", "num", "num_samples", "batch_count"), "--num_images|--num_class_images"),
    **dict.fromkeys(("data", "data_dir", "instance_dir", "dataset", "images_dir", "image_dir", "pictures"),
                    "--instance_data_dir"),
    **dict.fromkeys(("negative", "neg"), "--negative_prompt"), "prompt": "--instance_prompt|--prompts|--class_prompt",
    **dict.fromkeys(("class", "class_word"), "--class_prompt"), "vectors": "--vectors_per_token",
    **dict.fromkeys(("word", "token", "trigger", "placeholder"), "--modifier_token"), "init": "--initializer_token",
    **dict.fromkeys(("checkpoint", "base_model", "model_path"), "--model"), "weight": "--weights",
    **dict.fromkeys(("force", "replace"), "--overwrite"), "save_every": "--checkpointing_steps", "format": "--to",
    "fp16": "--mixed_precision fp16", "bf16": "--mixed_precision bf16", "host": "--listen", "lora_rank": "--rank",
}  # fmt: skip
_ALWAYS = {
    **dict.fromkeys(("cache_latents", "cache_latents_to_disk", "vae_batch_size", "cache_info", "skip_cache_check"),
                    "all pictures are encoded before the first step"),
    **dict.fromkeys(("cache_text_encoder_outputs", "cache_text_encoder_outputs_to_disk", "text_encoder_batch_size",
                     "pre_compute_text_embeddings"),
                    "captions without a new word are encoded before the first step"),
    **dict.fromkeys(("xformers", "diffusers_xformers", "sdpa", "mem_eff_attn",
                     "enable_npu_flash_attention"),
                    "PyTorch's own attention takes as little memory"),
    **dict.fromkeys(("train_text_encoder_ti", "train_text_encoder_ti_frac", "network_train_unet_only",
                     "network_train_text_encoder_only", "train_text_encoder", "train_text_encoder_frac",
                     "stop_text_encoder_training", "skip_save_text_encoder", "save_as_full_pipeline"),
                    "new words are always learned, and the text encoder never changes"),
    **dict.fromkeys(("network_module", "network_alpha", "network_args", "save_model_as", "use_safetensors",
                     "output_kohya_format"),
                    "convert --to lora makes a LoRA of the result"),
    **dict.fromkeys(("v2", "clip_skip", "zero_terminal_snr", "base", "-b", "sd_version", "sdxl", "C", "f"),
                    "the model's own files say that"),
    **dict.fromkeys(("train", "-t"), "that is what this command does"),
    **dict.fromkeys(("config", "modifier_token", "freeze_model"), "the delta's own file says that"),
    **dict.fromkeys(("skip_grid", "skip_save", "n_rows", "wandb_log"), "pictures are always saved, each by itself"),
    "paths": "deltas stand without a flag, one after the other",
    "categories": "each delta knows the class of its words",
    "cache_dir": "HF_HOME says where models of the Hub are kept",
    **dict.fromkeys(("path", "newtoken"), "deltas are all that is saved"),
    **dict.fromkeys(("max_data_loader_n_workers", "persistent_data_loader_workers"),
                    "no picture is read during the training"),
    **dict.fromkeys(("repeats", "repeat", "dataset_repeats"), "--max_train_steps alone says how long it takes"),
    **dict.fromkeys(("max_token_length", "tokenizer_max_length"), "captions of any length are read whole"),
    "random_crop": "that is so without --center_crop",
    **dict.fromkeys(("prodigy_safeguard_warmup", "prodigy_use_bias_correction", "prodigy_beta3", "prodigy_decouple",
                     "optimizer_args", "lr_scheduler_type", "lr_scheduler_args", "lr_scheduler_num_cycles",
                     "lr_scheduler_power", "lr_decay_steps", "lr_num_cycles", "lr_power",
                     "lr_scheduler_timescale", "lr_scheduler_min_lr_ratio"),
                    "optimizers and schedules keep their own defaults for what no flag says"),
    **dict.fromkeys(("min_bucket_reso", "max_bucket_reso", "bucket_reso_steps", "bucket_no_upscale"),
                    "--resize_mode bucket takes sizes of about as many pixels as --resolution has"),
    **dict.fromkeys(("save_state", "save_state_on_train_end"), "every save has all that is needed to go on"),
    **dict.fromkeys(("output_config", "log_config"), "every training writes config.json, which --config takes"),
    "weighted_captions": "captions are text, brackets and all",
    "wandb_api_key": "wandb reads it from WANDB_API_KEY",
    "gpus": "accelerate launch tells which to use",
    "delta_ckpt": "prompts of generate name the delta: <delta:FILE:1>",
    "compress": "compressed deltas are read as they are",
    "diffuser": "which kind of file a delta is, its content says",
}  # fmt: skip
_LACKING = {
    "-d", "-f", "-p", "async_upload", "block_lr", "blocks_to_swap", "class_labels_conditioning",
    "cpu_offload_checkpointing", "dataset_class", "ddp_gradient_as_bucket_view", "ddp_static_graph", "debug",
    "debug_loss", "deepspeed", "disable_mmap_load_safetensors", "fixed_code", "fp16_master_weights_and_gradients",
    "fp8_base_unet", "from_file", "fused_optimizer_groups", "huber_scale", "huggingface_path_in_repo",
    "huggingface_repo_type", "huggingface_repo_visibility", "ip_noise_gamma_random_strength", "laion400m",
    "log_tracker_config", "logit_mean", "logit_std", "lora_dropout", "max_train_samples", "max_validation_steps",
    "mode_scale", "modelname", "no_token_padding", "offload_optimizer_device", "offload_optimizer_nvme_path",
    "offload_param_device", "offload_param_nvme_path", "outpkl", "plms", "postfix", "precision", "project",
    "resize_interpolation", "resume_from_huggingface", "save_state_to_huggingface", "target_name",
    "text_encoder_use_attention_mask", "validate_every_n_epochs", "validate_every_n_steps", "validation_images",
    "validation_scheduler", "validation_seed", "validation_split", "weighting_scheme", "weights", "zero3_init_flag",
    "zero3_save_16bit_model", "zero_stage",
    "adaptive_noise_scale", "base_weights", "base_weights_multiplier", "caption_dropout_every_n_epochs",
    "caption_dropout_rate", "caption_separator", "caption_tag_dropout_rate", "color_aug",
    "conditioning_data_dir", "crops_coords_top_left_h", "crops_coords_top_left_w", "dataset_config_name",
    "ddim_eta", "ddp_timeout", "debiased_estimation_loss", "debug_dataset", "dim_from_weights",
    "do_edm_style_training", "dynamo_backend", "enable_wildcard", "face_crop_aug_range", "fp8_base",
    "fused_backward_pass", "highvram", "huber_c", "huber_schedule", "image_column", "image_interpolation_mode",
    "in_json", "ip_noise_gamma", "keep_tokens", "keep_tokens_separator", "learnable_property", "log_prefix",
    "log_tracker_name", "loss_type", "lowram", "max_timestep", "metadata_author", "metadata_description",
    "metadata_license", "metadata_tags", "metadata_title", "min_timestep", "multires_noise_discount",
    "multires_noise_iterations", "network_dropout", "network_weights", "no_half_vae", "no_metadata", "no_test",
    "noise_offset_random_strength", "sample_at_first", "sample_sampler", "save_precision",
    "scale_v_pred_loss_like_noise_pred", "scale_weight_norms", "secondary_separator", "shuffle_caption",
    "token_warmup_min", "token_warmup_step", "tokenizer_cache_dir", "training_comment", "use_blora", "use_dora",
    "v_pred_like_loss", "wandb_run_name",
}  # fmt: skip
_NEAR = 0.8  # what is less alike is another thing more often than a slip


def is_foreign(name: str) -> bool:
    """Whether it is another program's name of a setting that has another name here, is not needed, or has no like."""
    return name in _RENAMED or name in _ALWAYS or name in _LACKING


def instead_of(unknown: Sequence[str], flags: Collection[str]) -> str:
    """A sentence on flags that there are not: what to write instead of each. flags: those that there are."""
    told = []
    for flag in unknown:
        name = flag[2:].replace("-", "_") if flag.startswith("--") else flag  # Adobe's have hyphens
        new = next((new for new in _RENAMED.get(name, "").split("|") if new.partition(" ")[0] in flags), None)
        near = difflib.get_close_matches(flag, flags, 1, _NEAR)
        if new is not None:
            told.append(f"for {flag} write {new}")
        elif name in _ALWAYS:
            told.append(f"leave {flag} out, as {_ALWAYS[name]}")
        elif name in _LACKING:
            told.append(f"leave {flag} out, as it has no equivalent here")
        elif near:
            told.append(f"there is no {flag}; did you mean {near[0]}?")
        else:
            told.append(f"there is no {flag}; --help lists all flags")
    return "; ".join(told)
