"""The flags of `train`, in the groups of its help. (`train_flags`: files of settings, and what others write.)"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..attention import SELECTIONS
from ..data.concepts import CAPTION_SOURCES, RESIZE_MODES
from ..storage import given_path
from ..tokens import DEFAULT_INITIALIZERS
from ..training.config import PRECISIONS, REPORTS, TrainingConfig
from ..training.event_file import LOGS
from ..training.optimizers import OPTIMIZERS
from ..training.prior import PRIORS
from ..training.recipes import TOY
from ..training.schedule import SHAPES
from .algebra_commands import add_limits
from .commands import add_command, add_model, run_from
from .train_flags import LICENSE, add_of_diffusers

_SHAPES_OF_DIFFUSERS = {"constant_with_warmup": "constant", "cosine_with_restarts": "cosine", "polynomial": "linear"}
"""Schedules of its script, which has them with one cycle and power 1, and what they then are."""
_D = TrainingConfig()


def add_train(commands: argparse._SubParsersAction) -> None:
    """`train`, whose flags stand in its help in the groups that they have here."""
    command = add_command(commands, "train", "Teach a model one concept or several.", run_from(".train", "train"))
    add_model(command)
    command.add_argument(
        "--config", type=given_path, metavar="FILE",
        help="file with settings by the names of the flags, in TOML, YAML or JSON, or the config.json of a training;"
        " flags override it",
    )  # fmt: skip
    _add_concepts(command)
    _add_pictures(command)
    _add_prior_preservation(command)
    _add_training(command)
    _add_rates(command)
    _add_output(command)
    add_of_diffusers(command)


def _add_concepts(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("concepts").add_argument
    add("--concepts_list", type=given_path, help="JSON file with a list of concepts, each with instance_prompt,"
        " instance_data_dir, class_prompt and class_data_dir; instead of the four flags below")  # fmt: skip
    add("--instance_data_dir", type=given_path, help="folder with pictures of the concept")
    add("--instance_prompt", help='caption of those pictures, such as "photo of a <new1> cat"')
    add("--class_data_dir", type=given_path, help="folder of regularization pictures; missing ones are drawn into it")
    add("--class_prompt", default="", help='what the concept is a kind of, such as "cat"')
    add(
        "--modifier_token", help='the new words, such as "<new1>" or "<new1>+<new2>"; those in the prompts if not given'
    )
    add("--initializer_token", default=DEFAULT_INITIALIZERS, help="existing words that the new ones start from")
    add("--vectors_per_token", type=int, default=_D.vectors_per_token, help="number of vectors of each new word")


def _add_pictures(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("pictures").add_argument
    add("--resolution", type=int, help="width and height in pixels; the model's own if not given")
    add(
        "--resize_mode",
        choices=RESIZE_MODES,
        default=RESIZE_MODES[0],
        help="pictures that are not square are cropped or padded to a square, or (bucket) keep their shape: they are"
        " trained at sizes of about resolution² pixels, one size per step",
    )
    add("--center_crop", action="store_true", help="crop at the centre rather than at random")
    add("--hflip", action="store_true", help="mirror half of the pictures")
    add(
        "--noaug",
        action=argparse.BooleanOptionalAction,
        help="no random scaling (far away, zoomed in); if neither is given, pictures are scaled unless the model is"
        " a toy",
    )
    add("--use_alpha", action="store_true", help="weight the loss by the opacity of the pictures")
    add("--caption_source", choices=CAPTION_SOURCES, default=CAPTION_SOURCES[0], help="where captions come from")
    add(
        "--template",
        type=given_path,
        help="file of captions with [name] and [filewords], for --caption_source template",
    )


def _add_prior_preservation(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("prior preservation").add_argument
    add(
        "--prior",
        choices=PRIORS,
        default=_D.prior,
        help="text: keep what ordinary captions and captions of the class do as it was, without any pictures",
    )
    add("--text_prior_weight", type=float, default=_D.text_prior_weight, help="weight of --prior text")
    add(
        "--prior_captions",
        default="",
        metavar="FILE",
        help="file of ordinary captions, one per line, instead of the model's own",
    )
    add(
        "--with_prior_preservation",
        action="store_true",
        help="train on regularization pictures of the class as well",
    )
    add(
        "--real_prior",
        action="store_true",
        help="use the pictures in --class_data_dir whose captions are nearest to the class prompt, and draw none",
    )
    add(
        "--num_class_images",
        type=int,
        default=200,
        help="number of regularization pictures per concept; 0 uses those in --class_data_dir as they are",
    )
    add(
        "--prior_loss_weight",
        type=float,
        default=_D.prior_loss_weight,
        help="weight of the loss of the regularization pictures",
    )
    add("--sample_batch_size", type=int, default=4, help="how many pictures are drawn at once")


def _add_training(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("training").add_argument
    add(
        "--rank", type=int,
        help="how much each layer can learn: a low rank, such as 16, takes less memory and makes a smaller file; 0 is"
        " no limit. If not given, 32 for SDXL and 0 for others",
    )  # fmt: skip
    add("--freeze_model", choices=SELECTIONS, default=_D.freeze_model, help="which cross-attention layers are trained")
    add("--train_blocks", default="", help='only in these blocks: down, mid, up or patterns, such as "mid,up"')
    add("--max_train_steps", type=int, help=f"optimizer steps; 250 if not given, {TOY['max_train_steps']} for the toys")
    add(
        "--train_batch_size",
        type=int,
        default=_D.train_batch_size,
        help="pictures of the concepts per step and process; as many regularization pictures are added",
    )
    add(
        "--gradient_accumulation_steps",
        type=int,
        default=_D.gradient_accumulation_steps,
        help="number of batches that make one step",
    )
    add("--gradient_checkpointing", action="store_true", help="use less memory and more time")
    add(
        "--torch_compile",
        action="store_true",
        help="on a GPU: compile the UNet, which makes the first step slow and later ones faster",
    )
    add(
        "--mixed_precision",
        choices=(*PRECISIONS, "auto"),
        default=_D.mixed_precision,
        help="precision of the frozen model; auto: whichever is fastest here, on a CPU by a short trial",
    )
    add(
        "--snr_gamma",
        type=float,
        help=f"min-SNR weighting of the loss, such as 5; none if not given, {TOY['snr_gamma']:g} for the toys",
    )
    add(
        "--noise_offset", type=float, default=_D.noise_offset,
        help="add noise that is the same all over a picture, for very dark and bright ones; 0.05 to 0.1 are usual",
    )  # fmt: skip
    add("--seed", type=int, default=_D.seed, help="seed of everything that is random")


def _add_rates(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("learning rates and optimizer").add_argument
    add(
        "--learning_rate",
        help='of the deltas: "8e-5", or "1e-4:100, 5e-5" to change it after step 100; 8e-5 if not given,'
        f" {TOY['learning_rate']} for the toys",
    )
    add(
        "--embedding_learning_rate",
        help="of the new words' vectors; as --learning_rate if not given,"
        f" {TOY['embedding_learning_rate']} for the toys where neither is",
    )
    add(
        "--scale_lr",
        action="store_true",
        help="multiply the rates by batch, accumulation steps, processes, and 2 with prior preservation",
    )
    add(
        "--lr_scheduler",
        type=lambda shape: _SHAPES_OF_DIFFUSERS.get(shape, shape),
        choices=SHAPES,
        default=_D.lr_scheduler,
        help="how the learning rates change until the last step",
    )
    add(
        "--lr_warmup_steps",
        type=int,
        default=_D.lr_warmup_steps,
        help="number of steps over which the rates rise from 0",
    )
    add(
        "--optimizer",
        type=str.lower,
        choices=OPTIMIZERS,
        default=_D.optimizer,
        help="adamw8bit needs bitsandbytes, prodigy prodigyopt, lion lion-pytorch; prodigy wants --learning_rate 1",
    )
    add("--use_8bit_adam", dest="optimizer", action="store_const", const="adamw8bit", help="as --optimizer adamw8bit")
    add("--adam_beta1", type=float, default=_D.adam_beta1, help="of the optimizer; sgd's momentum")
    add("--adam_beta2", type=float, default=_D.adam_beta2, help="of the optimizer")
    add(
        "--adam_weight_decay", type=float, default=_D.adam_weight_decay, help="of the optimizer, towards the base model"
    )
    add("--adam_epsilon", type=float, default=_D.adam_epsilon, help="of the optimizer")
    add("--max_grad_norm", type=float, default=_D.max_grad_norm, help="gradients are scaled down to this norm")
    add("--max_grad_value", type=float, help="gradients are clipped to this value")


def _add_output(command: argparse.ArgumentParser) -> None:
    output = command.add_argument_group("output")
    add = output.add_argument
    add("--output_dir", type=given_path, default=Path("custom-diffusion-model"), help="folder for the results")
    add("--name", help="name of the delta; made from the tokens if not given")
    add("--overwrite", action="store_true", help="replace the training in --output_dir")
    add_limits(output, required=False, rank=False)
    add(
        "--checkpointing_steps",
        type=int,
        default=_D.checkpointing_steps,
        help="steps between saves; 0 to save only at the end",
    )
    add("--checkpoints_total_limit", type=int, help="keep only this many saves; all if not given")
    add("--resume_from_checkpoint", help="resume from this save in --output_dir, or from the latest")
    add("--allow_changes", action="store_true", help="resume even if pictures, captions or settings have changed")
    add("--validation_prompt", help="prompt to draw every --validation_steps steps, and at the end")
    add("--validation_steps", type=int, default=_D.validation_steps, help="steps between previews; 0 for none")
    add(
        "--num_validation_images",
        type=int,
        default=_D.num_validation_images,
        help="number of previews to draw each time",
    )
    add(
        "--report_to",
        choices=REPORTS,
        default=_D.report_to,
        help="where to log, besides loss.csv; all: whatever is installed",
    )
    add(
        "--logging_dir",
        type=given_path,
        default=LOGS,
        help="folder for TensorBoard's logs, relative to --output_dir",
    )
    add(
        "--push_to_hub",
        action="store_true",
        help="upload the delta, its words, pictures and a model card to the Hub at the end",
    )
    add("--hub_model_id", help="repository to upload to; named like --output_dir if not given")
    add("--hub_token", help="access token for the Hub; that of `hf auth login` if not given")
    add("--hub_license", default=LICENSE, help="licence stated on the model card")
