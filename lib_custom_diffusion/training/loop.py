"""Custom Diffusion training: token vectors and cross-attention deltas, learned together (arXiv 2212.04488, §3.1).

What a step does is in `Trainer._step`; what it needs (latents with their augmentations, conditionings of captions
without a new word) was computed once before the first.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..attention import cross_attentions, projections, refuse_bypassed
from ..backend import Backend
from ..data.concepts import Concept, ConceptExamples
from ..delta import Delta, Provenance
from ..errors import NotSaved, UserError
from ..injection import TrainableDelta
from ..storage import FolderLock
from ..tokens import initial_vectors
from . import checkpoints, parallel
from .batches import Batch, Drawing, batches_of
from .conditionings import Conditionings
from .config import TrainingConfig, autocast, check_precision, rank_of
from .event_file import LOGS, is_for_tensorboard
from .identity import FREE_TO_CHANGE, Identity, refuse_others
from .losslog import LOSS_CSV, NUMBERS, LossLog, LossTable, Recorder
from .objective import masked_errors, prior_preservation_loss
from .optimizers import gradient_scaler, make_optimizer
from .parametrisation import parametrisation
from .previews import draw_previews
from .prior import TextPrior, text_prior
from .state import WORD, put_back, state_taken
from .words import check_said, class_words

logger = logging.getLogger(__name__)

LOG_EVERY = 10
"""Steps between read-backs of the loss: each makes the CPU wait for the GPU."""


@dataclass(frozen=True)
class Progress:
    """How far a training is. `loss` is the mean since the last report, or nan before the first."""

    step: int
    total_steps: int
    loss: float


@dataclass(frozen=True)
class TrainingResult:
    """How a training ended: after all its steps, or interrupted and saved after `step` of them.

    delta: what was learned, on the CPU in float32.
    files: that delta's, and then one of each word; none where no step was taken, and of other processes than the first.
    """

    delta: Delta
    step: int
    interrupted: bool
    files: list[Path]


def _told_of(config: TrainingConfig) -> dict[str, Any]:
    """The settings that a delta's file tells of: those that made it what it is, and no folders of this machine."""
    told = {name: value for name, value in asdict(config).items() if name not in FREE_TO_CHANGE}
    return {**told, "max_train_steps": config.max_train_steps, "prior_captions": Path(config.prior_captions).name}


class Trainer:
    """Trains one delta on one backend, and leaves the backend as it was, however the training ends.

    examples:         what `concepts.encode_concept` made of each concept.
    output_dir, name: where results and checkpoints go, see `checkpoints`.
    resume:           a checkpoint folder to go on from.
    loss_table:       the CSV file of the losses.
    identity:         what the training's saves belong to, see `identity`; of its settings alone if not given.
    allow_changes:    go on although the checkpoint belongs to something else.
    on_save:          called with the step whenever a save is on the disk; `saves` counts them.
    recorder:         told of losses and pictures as well.
    logging_dir:      of TensorBoard's logs, from output_dir.

    Raises UserError for settings or tokens that cannot be trained, or a checkpoint that belongs to something else.
    """

    def __init__(
        self,
        backend: Backend,
        concepts: Sequence[Concept],
        examples: Sequence[ConceptExamples],
        config: TrainingConfig,
        output_dir: Path,
        name: str,
        resume: Path | None = None,
        loss_table: LossTable = LOSS_CSV,
        identity: Identity | None = None,
        allow_changes: bool = False,
        on_save: Callable[[int], None] = lambda step: None,
        recorder: Recorder | None = None,
        logging_dir: Path = LOGS,
    ) -> None:
        config.check()
        check_precision(config.mixed_precision, backend.device)
        self.backend, self.config, self.output_dir, self.name = backend, config, output_dir, name
        self.loss_table = loss_table
        self.examples = examples
        captions = [[example.caption for example in own.instance] for own in examples]
        check_said(config.modifier_token, captions)
        self.class_words = class_words(config.modifier_token, concepts, captions)
        self.class_prompts = [concept.class_prompt for concept in concepts]
        refuse_bypassed(cross_attentions(backend.unet))
        self.layers = projections(backend.unet, config.freeze_model, config.train_blocks)
        self.parametrisation = parametrisation(backend)
        self.drawing = Drawing(examples, config, self.parametrisation.timesteps)
        self.vectors = {
            token: nn.Parameter(vectors.to(backend.device))
            for token, vectors in initial_vectors(
                backend, config.modifier_token, config.initializer_token, config.vectors_per_token
            ).items()
        }
        self._autocast = partial(autocast, config.mixed_precision, backend.device)
        self.conditionings = Conditionings(backend, self.vectors, self._autocast)
        self.schedules = config.schedules()
        self.identity = identity or Identity(settings=asdict(config))
        self.on_save = on_save
        self.recorder, self.logging_dir = recorder, logging_dir
        self.resume = resume
        self.state = None if resume is None else checkpoints.load_state(resume)
        if self.state is not None and resume is not None and not allow_changes:
            refuse_others(resume, self.state.identity, self.identity)
        self.step = self.state.step if self.state else 0
        self.saves = 0
        self.unseen = ""
        """What pictures were not kept, and why: those of the last step that had none."""

    def run(
        self,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        on_pictures: Callable[[int, list[Image.Image]], None] = lambda step, pictures: None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> TrainingResult:
        """Train to the last step, or until `interrupted` says so, saving on the way.

        Raises UserError when the loss is no longer a number: the last save stands, and the message says what to lower;
        and when another process trains into the same folder.
        """
        with FolderLock(self.output_dir) if parallel.rank() == 0 else nullcontext():
            return self.run_locked(on_progress, on_pictures, interrupted)

    def run_locked(
        self,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        on_pictures: Callable[[int, list[Image.Image]], None] = lambda step, pictures: None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> TrainingResult:
        """As `run`, for a caller that holds the folder's lock. Interrupted before the first step, it writes nothing."""
        main = parallel.rank() == 0
        log = self._log() if main else None
        try:
            with self._prepared():
                self._take_steps(log, on_progress, on_pictures, interrupted)
                delta = self.learned()
                files = checkpoints.save_result(self.output_dir, self.name, delta) if main and self.step else []
                return TrainingResult(delta, self.step, self.step < self.config.max_train_steps, files)
        except NotSaved as error:
            told = checkpoints.rescue(self.output_dir, self.name, self.step, self.learned)
            raise UserError(f"{error}. {told}") from error
        finally:
            if log is not None:
                log.close()

    @contextmanager
    def _prepared(self) -> Iterator[None]:
        """Within the block the delta acts on the backend and can be learned; the backend is then as it was before."""
        config = self.config
        self.text_prior = self._text_prior()
        rank = rank_of(config, self.backend.architecture)
        self.delta = TrainableDelta(self.layers, self.backend.device, rank, config.seed)
        try:
            self.backend.gradient_checkpointing(config.gradient_checkpointing)
            self.optimizer = self._optimizer()
            self.scaler = gradient_scaler(config.mixed_precision, self.backend.device)
            self._restore()
            self.backend.autoencoder_aside(True)
            self.conditionings.keep([example for concept in self.examples for example in concept.prior])
            yield
        finally:
            self.delta.remove()
            self.backend.gradient_checkpointing(False)
            self.backend.autoencoder_aside(False)

    def _take_steps(
        self,
        log: LossLog | None,
        on_progress: Callable[[Progress], None],
        on_pictures: Callable[[int, list[Image.Image]], None],
        interrupted: Callable[[], bool],
    ) -> None:
        config, total, main = self.config, self.config.max_train_steps, parallel.rank() == 0
        pending: list[Tensor] = []
        stop = parallel.any_process(interrupted(), self.backend.device)
        while self.step < total and not stop:
            pending.append(self._step())
            self.step += 1
            stop = parallel.any_process(interrupted(), self.backend.device)
            at_end = self.step == total
            save = self.step % config.checkpointing_steps == 0 or at_end or stop
            validate = config.validation_prompt and (self.step % config.validation_steps == 0 or at_end) and not stop
            if self.step % LOG_EVERY == 0 or save or validate:
                on_progress(Progress(self.step, total, self._record(pending, log)))
                pending.clear()
            else:
                on_progress(Progress(self.step, total, math.nan))
            if save and main:
                self._save_checkpoint(log)
            if validate and main:
                self._validate(log, on_pictures)
            if save or validate:  # which take long, so that the person may have asked meanwhile
                stop = parallel.any_process(stop or interrupted(), self.backend.device)
                if stop and not save and main:
                    self._save_checkpoint(log)
                parallel.wait_for_all()

    def _log(self) -> LossLog:
        logs = self.output_dir / self.logging_dir if is_for_tensorboard(self.config.report_to) else None
        before = self.output_dir if self.resume is None else self.resume.parent
        return LossLog(self.output_dir, self.step, logs, self.loss_table, self.recorder, before)

    def learned(self) -> Delta:
        """What has been learned so far, on the CPU in float32."""
        return Delta(
            self.delta.entries(),
            {token: vectors.detach().cpu().clone() for token, vectors in self.vectors.items()},
            Provenance(
                self.backend.architecture, self.backend.checkpoint_hash, self.class_words, self.step,
                _told_of(self.config),
            ),
        )  # fmt: skip

    def _step(self) -> Tensor:
        """One optimizer step; returns the first four of losslog.NUMBERS without waiting for the device."""
        config, losses = self.config, []
        for batches in self._draw():
            errors = [self._errors(batch).tensor_split([batch.instances]) for batch in batches]
            instance, prior = (torch.cat(parts) for parts in zip(*errors))
            loss, parts = prior_preservation_loss(torch.cat([instance, prior]), len(instance), config.prior_loss_weight)
            self.scaler.scale(loss / config.gradient_accumulation_steps).backward()
            losses.append(torch.stack([loss.detach(), *parts]))
        penalty = self._update()
        loss, instance, prior = torch.stack(losses).mean(dim=0)
        return torch.stack([loss + penalty, instance, prior, penalty])

    def _errors(self, batch: Batch) -> Tensor:
        """The weighted squared error of each sample (batch,): noise, predict, compare."""
        with self._autocast():
            conditioning = self.conditionings.of(batch.examples)
            noisy = self.parametrisation.add_noise(batch.latents, batch.noise, batch.timesteps)
            prediction = self.backend.predict(noisy, batch.timesteps, conditioning)
        target = self.parametrisation.target(batch.latents, batch.noise, batch.timesteps)
        errors = masked_errors(prediction, target, batch.mask)
        if self.config.snr_gamma is None:
            return errors
        return errors * self.parametrisation.min_snr_weights(batch.timesteps, self.config.snr_gamma)

    def _text_prior(self) -> TextPrior | None:
        """The prior in text space, if there is to be one; its attention is measured on latents of one size."""
        config = self.config
        if config.prior == "none":
            return None
        latents = [example.mean for concept in self.examples for example in concept.instance]
        same_size = [each for each in latents if each.shape == latents[0].shape]
        captions = Path(config.prior_captions) if config.prior_captions else None
        with self._autocast():
            return text_prior(
                self.backend, self.layers, self.class_prompts, same_size, config.text_prior_weight, captions
            )

    def _update(self) -> Tensor:
        """Bring the gradients of all processes and the prior's together, clip them, and step; returns the prior's form.

        Clipping sees both, unscaled. The form (text_prior_loss) is a scalar on the device, 0 without a prior.
        """
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for parameter in parameters:
            if parameter.grad is None:  # a word that this process's part does not have, though another's may
                parameter.grad = torch.zeros_like(parameter)
        parallel.average_([parameter.grad for parameter in parameters])
        self.scaler.unscale_(self.optimizer)
        penalty = torch.zeros((), device=self.backend.device)
        if self.text_prior is not None:
            penalty = self.text_prior.add_gradients(self.delta.parameters)
        if self.config.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)
        if self.config.max_grad_value is not None:
            nn.utils.clip_grad_value_(parameters, self.config.max_grad_value)
        for group, rate in zip(self.optimizer.param_groups, self._rates(self.step)):
            group["lr"] = rate
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return penalty

    def _draw(self) -> list[list[Batch]]:
        """The micro-batches of this step for this process, each parted as a pass of the UNet needs it."""
        drawn = self.drawing.micro_batches(self.step)
        return [batches_of(each, self.conditionings.more_positions, self.backend.device) for each in drawn]

    def _rates(self, step: int) -> list[float]:
        """The learning rates of deltas and of vectors."""
        return [schedule.rate_at(step, self.config.max_train_steps) for schedule in self.schedules]

    def _optimizer(self) -> torch.optim.Optimizer:
        config = self.config
        groups = [
            {"params": list(self.delta.parameters.values()), "weight_decay": config.adam_weight_decay},
            {"params": list(self.vectors.values()), "weight_decay": 0.0},
        ]
        return make_optimizer(config.optimizer, groups, (config.adam_beta1, config.adam_beta2), config.adam_epsilon)

    def _record(self, pending: Sequence[Tensor], log: LossLog | None) -> float:
        """Read the losses of the last steps back and write them down; returns their mean.

        Raises UserError if one is no number.
        """
        losses = torch.stack(list(pending))
        parallel.average_([losses])
        first = self.step - len(pending)
        for step, values in enumerate(losses.tolist(), start=first):
            if not math.isfinite(values[0]):
                if step == 0:  # what was learned so far is nothing
                    raise UserError(
                        f"the loss is {values[0]} at the first step: the model or its VAE is damaged, or its numbers"
                        " are beyond this precision; use --mixed_precision no, another VAE, or get the model again"
                    )
                raise self._diverged(f"the loss became {values[0]} at step {step + 1}")
            if log is not None:
                log.add(step + 1, dict(zip(NUMBERS, [*values, *self._rates(step)])))
        if log is not None:
            log.flush()
        return losses[:, 0].mean().item()

    def _diverged(self, what: str) -> UserError:
        return UserError(
            f"{what}; lower the learning rates (now {self.config.learning_rate} and"
            f" {self.config.embedding_learning_rate}) or use --mixed_precision no. What was saved before is kept"
        )

    def _validate(self, log: LossLog | None, on_pictures: Callable[[int, list[Image.Image]], None]) -> None:
        """Draw the validation pictures; one that cannot be drawn or kept costs no training."""
        try:
            pictures = draw_previews(self.backend, self.config, self.vectors)
            if not pictures:  # a person has stopped the host meanwhile
                return
            if log is not None:
                log.add_pictures(self.step, pictures)
            on_pictures(self.step, pictures)
        except (OSError, UserError, torch.cuda.OutOfMemoryError) as error:
            self.unseen = f"the pictures of step {self.step} are not kept: {error}"
            logger.warning("%s. The training continues", self.unseen)

    def _parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter by a name for the state file, in the optimizer's order."""
        return {**self.delta.parameters, **{f"{WORD}{token}": vectors for token, vectors in self.vectors.items()}}

    def _save_checkpoint(self, log: LossLog | None) -> None:
        """Save all that there is. Raises NotSaved where that cannot be, but for the last one."""
        parameters = self._parameters()
        if not all(torch.isfinite(parameter.half()).all() for parameter in parameters.values()):
            raise self._diverged(f"what was learned by step {self.step} is too large for a file")
        state = state_taken(self.step, parameters, self.optimizer, self.scaler, self.identity)
        keep = self.config.checkpoints_total_limit
        try:
            checkpoints.save_checkpoint(self.output_dir, self.name, self.learned(), state, keep)
        except NotSaved as error:
            if self.step < self.config.max_train_steps:
                raise
            logger.warning("%s. The delta, which is smaller, may still be saved", error)
            return
        self.saves += 1
        if log is not None:
            log.replace_old()
        self.on_save(self.step)

    def _restore(self) -> None:
        """Bring all to the save's state, which then is let go: it is as large as what is trained."""
        if self.state is not None:
            put_back(self.state, self._parameters(), self.optimizer, self.scaler)
        self.state = None
