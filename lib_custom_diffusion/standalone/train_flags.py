"""What `train` takes beside plain flags: a file of settings, and what users of other scripts write."""

from __future__ import annotations

import argparse
import difflib
import logging
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..data.concepts import find_pictures
from ..errors import UserError
from ..storage import given_path
from ..training import parallel
from ..training.event_file import LOGS, is_for_tensorboard
from ..training.plan import TrainingPlan
from ..training.unused import no_effect
from ..versions import why_newer
from .foreign_flags import instead_of, is_foreign

logger = logging.getLogger(__name__)

NEEDLESS = {
    "enable_xformers_memory_efficient_attention": "PyTorch's own attention takes as little memory",
    "set_grads_to_none": "that is always so",
    "dataloader_num_workers": "all pictures are encoded before the first step",
    "prior_generation_precision": "class pictures are drawn in the precision of --mixed_precision",
    "local_rank": "accelerate launch and torchrun tell it by themselves",
}
"""Flags of diffusers' script that are taken and change nothing, and why."""

LICENSE = "creativeml-openrail-m"
"""Of Stable Diffusion 1, and of what diffusers' script puts on the Hub."""
OF_SCRIPT = "--pretrained_model_name_or_path"
"""What diffusers' script calls --model."""
_SWITCHED = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def settled(arguments: Sequence[str], command: argparse.ArgumentParser) -> list[str]:
    """The arguments of `train` with those of its --config put before them, and `--flag=True` as `--flag`.

    command: the parser of `train`. A setting of the file that is no flag becomes a default of it.
    Raises UserError for a file that cannot be read, and a setting that there is not.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=given_path)
    found, own = finder.parse_known_args(list(arguments))
    flags = command._option_string_actions
    switches = {name.removeprefix("--") for name, action in flags.items() if action.nargs == 0}
    given: list[str] = []
    if found.config is not None:
        from .settings_file import as_flags, read_settings  # which needs more than the core's libraries

        settings = read_settings(found.config)
        newer = why_newer(settings.pop("library_version", None))
        unknown = [name for name in settings if f"--{name}" not in flags and name not in _SETTINGS]
        foreign = [f"--{name}" for name in unknown if is_foreign(name)]
        if foreign:
            raise UserError(f"{found.config} has settings of another program: {instead_of(foreign, flags)}")
        if unknown:
            known = [*(flag[2:] for flag in flags if flag.startswith("--")), *_SETTINGS]
            near = difflib.get_close_matches(unknown[0], known, 1)
            hint = f"; did you mean {near[0]}?" if near else "; settings have the names of the flags"
            raise UserError(f"{found.config} has {unknown[0]!r}, which is not a setting{newer and '; '}{newer or hint}")
        if newer:
            logger.warning("%s has settings that may mean something else here: %s", found.config, newer)
        command.set_defaults(**{name: value for name, value in settings.items() if f"--{name}" not in flags})
        given = as_flags({name: value for name, value in settings.items() if f"--{name}" in flags}, switches)
    return _switched([*given, *own], switches)


_SETTINGS = {name for name in TrainingPlan.__dataclass_fields__ if name != "name"}


def _switched(arguments: Sequence[str], switches: set[str]) -> list[str]:
    """Switches on and off as flags that are there or not, or as --no-NAME where there is that; the last counts."""
    kept: list[str] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals or name.removeprefix("--") not in switches:
            kept.append(argument)
            continue
        if value.lower() not in _SWITCHED:
            raise UserError(f"{name} is on or off: write {name} or {name}=False, not {argument!r}")
        off = f"--no-{name.removeprefix('--')}"
        kept = [each for each in kept if each not in (name, off)]
        if _SWITCHED[value.lower()]:
            kept.append(name)
        elif off.removeprefix("--") in switches:
            kept.append(off)
    return kept


def needless(options: argparse.Namespace) -> list[str]:
    """A sentence for each flag that was given and changes nothing."""
    return [
        f"--{name} is not needed: {why}."
        for name, why in NEEDLESS.items()
        if getattr(options, name) not in (None, False)
    ]


def steps_of_epochs(plan: TrainingPlan, epochs: int) -> int:
    """Optimizer steps of so many rounds through the pictures, as diffusers' script counts them.

    A round is as long as the longer of a training's pictures and its class pictures. Raises UserError for none.
    """
    if epochs < 1:
        raise UserError(f"--num_train_epochs must be 1 or more, not {epochs}")
    pictures = sum(len(find_pictures(concept.instance_data_dir)) for concept in plan.concepts)
    if plan.with_prior_preservation:
        pictures = max(pictures, plan.num_class_images * len(plan.concepts))
    batches = math.ceil(pictures / plan.train_batch_size)
    shared = math.ceil(batches / parallel.world_size())
    return epochs * math.ceil(shared / plan.gradient_accumulation_steps)


def of_no_effect(options: argparse.Namespace, plan: TrainingPlan) -> list[str]:
    """Sentences on flags of the command line alone that have no effect beside the others."""
    given = {name for name, default in _SPARED.items() if getattr(options, name) not in (None, default)}
    of_hub = "/" in options.model and not given_path(options.model).exists()
    told: list[str] = []
    for names, spared, why in (
        (("hub_model_id", "hub_token", "hub_license"), not options.push_to_hub, "--push_to_hub is not given"),
        (("logging_dir",), not is_for_tensorboard(plan.report_to), f"--report_to is {plan.report_to}"),
        (("revision", "variant"), not of_hub, "the model is not of the Hub"),
        (("num_train_epochs",), options.max_train_steps is not None, "--max_train_steps is given"),
        (_OF_A_CONCEPT, options.concepts_list is not None, "--concepts_list has its own"),
        (("validation_prompt",), not plan.validation_steps, "--validation_steps is 0"),
    ):
        told += no_effect([f"--{name}" for name in names if name in given], why) if spared else []
    return told


_OF_A_CONCEPT = ("instance_data_dir", "instance_prompt", "class_data_dir", "class_prompt")
_SPARED = {
    "hub_model_id": None, "hub_token": None, "hub_license": LICENSE, "logging_dir": LOGS, "revision": None,
    "variant": None, "num_train_epochs": None, "validation_prompt": None, **dict.fromkeys(_OF_A_CONCEPT, ""),
}  # fmt: skip
"""Flags that may be of no effect, and what they are if they are not given."""


class _ModelOfScript(argparse.Action):
    """The model, and that the files are wanted which the script leaves."""

    def __call__(self, _parser: Any, namespace: argparse.Namespace, values: Any, _flag: Any = None) -> None:
        namespace.model, namespace.as_diffusers = values, True


def add_of_diffusers(command: argparse.ArgumentParser) -> None:
    """The flags that users of diffusers' script know, and that no other part of the command line has."""
    command.set_defaults(as_diffusers=False)
    add = command.add_argument_group("as in diffusers' train_custom_diffusion.py").add_argument
    add(
        OF_SCRIPT,
        dest="model",
        action=_ModelOfScript,
        metavar="MODEL",
        default=argparse.SUPPRESS,
        help="as --model; weights and words are written as that script does, too, for `load_attn_procs`",
    )
    add("--revision", help="of a model of the Hub: a branch, tag or commit")
    add("--variant", help="of a model of the Hub: files of this kind, such as fp16")
    add(
        "--tokenizer_name",
        type=os.path.expanduser,
        help="a tokenizer to use instead of the model's own: a folder or a name on the Hub",
    )
    add("--num_train_epochs", type=int, help="rounds through the pictures, if --max_train_steps is not given")
    add("--allow_tf32", action="store_true", help="faster, less precise matrix products on NVIDIA GPUs")
    add(
        "--no_safe_serialization",
        action="store_true",
        help="also write weights and words as diffusers' script does, as .bin files",
    )
    for name, why in NEEDLESS.items():
        takes: Mapping[str, Any] = {} if name in _WITH_VALUE else {"action": "store_true"}
        add(f"--{name}", help=f"not needed: {why}", **takes)


_WITH_VALUE = {"dataloader_num_workers", "prior_generation_precision", "local_rank"}
