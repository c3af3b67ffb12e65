"""The train command: a training in a terminal."""

from __future__ import annotations

import argparse
import io
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from ..backend import Sampling, usual_sampling
from ..data import regularization
from ..data.concepts import load_concepts_list
from ..delta import Delta
from ..errors import Interrupted, UserError
from ..storage import given_path
from ..training import parallel
from ..training.checks import check_device, check_settings
from ..training.config import PRECISIONS
from ..training.event_file import LOGS
from ..training.job import Host, Report, TrainingJob
from ..training.loop import Progress
from ..training.losslog import Recorder
from ..training.place import check_place
from ..training.plan import TrainingPlan, Wording
from ..training.recipes import TOY, plan_settings
from ..training.resuming import identity_of, refuse_other
from ..training.words import stands_alone
from .diffusers_backend import DiffusersBackend
from .diffusers_files import write_for_diffusers
from .generate import draw
from .hub import Repository, card
from .models import HUB_NAME, best_device, known_of_model, load_model
from .precision import AUTO, cpu_precision, gpu_precision, saved_precision
from .prompts import to_draw
from .toy import TOYS
from .trackers import Trackers, chosen_services
from .train_flags import needless, of_no_effect, steps_of_epochs

FLAGS = Wording(prefix="--", asking="{}")
"""How the command line speaks of settings."""
_CONCEPT = ("instance_prompt", "instance_data_dir", "class_prompt", "class_data_dir")


def train(options: argparse.Namespace) -> int:
    """Run the command; returns its exit status. Raises UserError for whatever the user can mend."""
    device = _join_processes()
    plan = plan_of(options)
    check_settings(plan, FLAGS, stands_alone)
    if options.torch_compile:
        _check_compiles(device)
    check_device(plan, device, FLAGS)
    save = check_place(plan, FLAGS, options.output_dir, logging_dir=options.logging_dir)
    services = chosen_services(plan.report_to)
    repository = _repository(options) if options.push_to_hub and parallel.rank() == 0 else None
    torch.backends.cuda.matmul.allow_tf32 = options.allow_tf32
    chosen = known_precision(options, device) if options.mixed_precision == AUTO else plan.mixed_precision
    if save is not None:
        known = replace(plan.clipped(), mixed_precision=chosen or plan.mixed_precision)
        model = known_of_model(options.model, options.vae, options.tokenizer_name)
        refuse_other(plan, FLAGS, save, replace(identity_of(known, options.output_dir), model=model))
    backend = load_model(
        options.model, _weight_dtype(chosen or "no", device), device, options.vae, options.prediction_type,
        options.revision, options.variant, options.tokenizer_name,
    )  # fmt: skip
    plan = replace(plan, mixed_precision=chosen or cpu_precision(backend, plan.train_batch_size))
    if options.torch_compile:
        backend.compile(True)
    if options.mixed_precision == AUTO:
        print(f"mixed_precision: {plan.mixed_precision}")
    followed = plan.report_to not in ("none", "tensorboard")
    recorder = partial(Trackers, services, plan.to_json()) if followed else None
    try:
        report = run_training(backend, plan, options.output_dir, recorder, options.logging_dir)
    except Interrupted as stop:
        if parallel.rank() == 0:
            print(stop)
        return 130
    if parallel.rank() == 0:
        for sentence in (*needless(options), *of_no_effect(options, plan)):
            print(sentence)
        _tell(report, options)
        if not report.interrupted:
            _hand_on(report, backend, plan, options, repository)
    return 130 if report.interrupted else 0


def _check_compiles(device: torch.device) -> None:
    """Raise UserError where torch.compile makes no code for a training's steps, or none that pays."""
    if device.type != "cuda":
        raise UserError(f"--torch_compile is for NVIDIA and AMD GPUs, not for {device.type}; leave it out")
    if find_spec("triton") is None:
        raise UserError("--torch_compile needs Triton, which is not installed; pip install triton, or leave it out")


def _repository(options: argparse.Namespace) -> Repository:
    name = options.hub_model_id or options.output_dir.resolve().name
    return Repository(name, options.hub_token)


def _hand_on(
    report: Report,
    backend: DiffusersBackend,
    plan: TrainingPlan,
    options: argparse.Namespace,
    repository: Repository | None,
) -> None:
    """Write and put elsewhere what was asked for, beside the training's own files."""
    files = [report.delta, *report.result.files[1:]]
    if options.as_diffusers or options.no_safe_serialization:
        written = write_for_diffusers(report.delta, report.folder, backend, not options.no_safe_serialization)
        more = [path for path in written if path not in files]  # SDXL's words are in the same files
        print(*(f"wrote {path}" for path in more), sep="\n")
        files += more
    if repository is None:
        return
    delta, prompt = Delta.load(report.delta), report.prompt.rpartition(" <delta:")[0]
    sampling = usual_sampling(backend.architecture)
    drawn = draw(backend, prompt, [(delta, 1.0)], sampling, plan.seed, plan.num_validation_images)
    pictures = [Image.open(io.BytesIO(each.png)) for each in drawn]
    base = options.model if HUB_NAME.fullmatch(options.model) and not given_path(options.model).exists() else None
    text = card(repository.name, report.delta, delta, prompt, base, options.hub_license, len(pictures))
    print(f"put on the Hub: {repository.publish(files, pictures, text)}")


def plan_of(options: argparse.Namespace) -> TrainingPlan:
    """What the flags say, and the model's own recipe where they say nothing. Raises UserError for what is no plan."""
    plan = _plan_of_flags(options)
    if options.max_train_steps is None and options.num_train_epochs is not None:
        plan = replace(plan, max_train_steps=steps_of_epochs(plan, options.num_train_epochs))
    return plan


def _plan_of_flags(options: argparse.Namespace) -> TrainingPlan:
    names = TrainingPlan.__dataclass_fields__
    given = {name: value for name, value in vars(options).items() if name in names and value is not None}
    if options.mixed_precision == AUTO:  # found out when the model is there
        del given["mixed_precision"]
    recipe = plan_settings(TOY) if options.model in TOYS else {}
    if options.concepts_list is not None:
        return TrainingPlan.of({**given, "concepts": load_concepts_list(options.concepts_list)}, recipe, FLAGS)
    if options.instance_data_dir is None and getattr(options, "concepts", None):  # of a file of settings
        return TrainingPlan.of(given, recipe, FLAGS)
    if options.instance_data_dir is not None and not options.instance_prompt:
        raise UserError(
            '--instance_prompt is missing; give the caption of the pictures, such as "photo of a <new1> cat"'
        )
    if options.instance_data_dir is None:
        raise UserError(
            'say what to learn: --instance_data_dir FOLDER --instance_prompt "photo of a <new1> cat",'
            " or --concepts_list FILE.json"
        )
    concept = {name: str(getattr(options, name)) for name in _CONCEPT if getattr(options, name) is not None}
    return TrainingPlan.of({**given, "concepts": [concept]}, recipe, FLAGS)


def run_training(
    backend: DiffusersBackend,
    plan: TrainingPlan,
    output: Path,
    recorder: Callable[[], Recorder] | None = None,
    logging_dir: Path = LOGS,
) -> Report:
    """Train into a folder, with progress bars; `Host` says what the last two are.

    Raises UserError and Interrupted as `TrainingJob` does.
    """
    host = Host(backend, output, recorder=recorder, logging_dir=logging_dir)
    with until_interrupt() as interrupted, Terminal(interrupted) as terminal:
        return TrainingJob(plan, host, terminal).run()


class Terminal:
    """What shows a training in a terminal: a progress bar for each of its parts."""

    wording = FLAGS

    def __init__(self, interrupt: threading.Event) -> None:
        self._interrupt = interrupt
        self._bar: tqdm | None = None
        self._what = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def preparing(self, what: str, done: int, total: int) -> None:
        bar = self._of(what, total, "picture", done if done > 1 else 0)
        bar.update(done - bar.n)

    def progress(self, progress: Progress) -> None:
        bar = self._of("training", progress.total_steps, "step", progress.step - 1)
        bar.update(progress.step - bar.n)
        if progress.loss == progress.loss:
            bar.set_postfix(loss=f"{progress.loss:.4f}")

    def preview(self, picture: Image.Image) -> None:
        """They are in the folder."""

    def copied(self, name: str) -> None:
        """Saves are in the folder."""

    def interrupted(self) -> bool:
        return self._interrupt.is_set()

    def _of(self, what: str, total: int, unit: str, initial: int) -> tqdm:
        """The bar of a part, which is the last one's if that has the same name."""
        if self._bar is None or what != self._what:
            if self._bar is not None:
                self._bar.close()
            self._what = what
            self._bar = tqdm(desc=what, total=total, initial=initial, unit=unit, disable=parallel.rank() > 0)
        return self._bar


def _tell(report: Report, options: argparse.Namespace) -> None:
    """What there is now, and what to do next."""
    print(*report.notes, sep="\n")
    if report.interrupted:
        print(
            f"stopped after step {report.step} and saved; to resume, give the same command with"
            " --resume_from_checkpoint latest"
        )
        return
    print(*(f"wrote {path}" for path in report.result.files), sep="\n")
    prompt = report.prompt.rpartition(" <delta:")[0]
    flags = {name: getattr(options, name) for name in ("model", "vae", "prediction_type")}
    given = [part for name, value in flags.items() if value is not None for part in (f"--{name}", value)]
    print(f"try it: {to_draw(prompt, report.delta, *given)}")


def draw_regularization(
    backend: DiffusersBackend, class_prompt: str, folder: Path, count: int, sampling: Sampling, seed: int
) -> None:
    """Draw the regularization pictures that a folder lacks, with a progress bar."""
    with tqdm(desc=f"drawing {class_prompt}", unit="picture") as bar:
        regularization.generate(backend, class_prompt, folder, count, sampling, seed, _advance(bar))


def _advance(bar: tqdm) -> Callable[[int, int], None]:
    def advance(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return advance


@contextmanager
def until_interrupt() -> Iterator[threading.Event]:
    """Within the block, a first Ctrl-C only sets the event, so that the step is finished and saved; a second stops.

    A request to end, as of `docker stop` and Slurm, and a terminal that is closed only set it however often they come:
    shells and launchers pass on what their processes were told already. What is ignored, as under `nohup`, stays so.
    """
    interrupted = threading.Event()

    def ask(number: int, _frame: object) -> None:
        if interrupted.is_set():
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        interrupted.set()
        with suppress(OSError):  # of a terminal that is gone
            tqdm.write("stopping; press Ctrl-C again to stop at once")

    asking = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, ask) for number in asking if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _join_processes() -> torch.device:
    """Join the other processes if `accelerate launch` or torchrun started several; the device for this one."""
    if "WORLD_SIZE" not in os.environ:
        return best_device()
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available()).device


def known_precision(options: argparse.Namespace, device: torch.device) -> str | None:
    """What `auto` is before the model is loaded: that of the save, or the device's; None if it takes a trial."""
    saved = saved_precision(options.output_dir, options.resume_from_checkpoint)
    if saved is not None:
        return saved
    if device.type == "cpu" and parallel.world_size() == 1:
        return None
    return gpu_precision() if device.type == "cuda" else "no"


def _weight_dtype(mixed_precision: str, device: torch.device) -> torch.dtype:
    """Frozen weights are kept in half precision on a GPU; on the CPU autocast alone is faster."""
    return (PRECISIONS[mixed_precision] if device.type == "cuda" else None) or torch.float32
