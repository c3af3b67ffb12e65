"""Jobs of the page: one at a time, each in a thread of its own, so that a closed browser ends none of them."""

from __future__ import annotations

import html
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import torch

from ...errors import Interrupted, UserError
from ...ui.training_page import OUT_OF_MEMORY

logger = logging.getLogger(__name__)

T = TypeVar("T")
_SECONDS_BETWEEN_LOOKS = 0.25


class Jobs:
    """Whoever computes on the model holds `turn`; the next waits."""

    def __init__(self, turn: threading.Lock) -> None:
        self.turn = turn
        self.running: Job | None = None
        self._begun: list[Job] = []

    @property
    def busy(self) -> bool:
        """Whether a job runs or waits for its turn."""
        self._begun[:] = [job for job in self._begun if not job.finished]
        return bool(self._begun)

    def start(self, name: str, work: Callable[[Job[T]], T], first: str = "Starting") -> Job[T]:
        """Have the work done as soon as it is its turn; it gets the job, to show how far it is.

        name: what is being done, for whoever waits for it. first: what is shown until the work shows something.
        """
        job = Job(self, name, work, first)
        self._begun.append(job)
        return job

    def interrupt(self) -> None:
        """Ask the running job to stop, if there is one."""
        if self.running is not None:
            self.running.interrupted.set()


class Job(Generic[T]):
    """Work being done. Called with (done, total, what) it takes note of how far it is, and raises Interrupted."""

    def __init__(self, jobs: Jobs, name: str, work: Callable[[Job[T]], T], first: str) -> None:
        self.name, self.interrupted, self._first = name, threading.Event(), first
        self._jobs, self._work = jobs, work
        self._progress: tuple[int, int, str] | None = None
        self._started = time.monotonic()
        self._finished = threading.Event()
        self._result: T | None = None
        self._error: UserError | None = None
        self._told = False
        threading.Thread(target=self._run, daemon=True).start()

    def __call__(self, done: int, total: int, what: str = "") -> None:
        self._progress = done, total, what
        self.went_on()
        self.check()

    def went_on(self) -> None:
        """Take note of that: see `begun`."""
        self._told = True

    @property
    def finished(self) -> bool:
        """Whether it is over, however it ended."""
        return self._finished.is_set()

    @property
    def begun(self) -> bool:
        """Whether it is past all that can be refused."""
        return self._told

    @property
    def refused(self) -> bool:
        """Whether it ended by an error before anything was done."""
        return self.finished and self._error is not None and not self._told

    def check(self) -> None:
        """Raise Interrupted if that was asked for."""
        if self.interrupted.is_set():
            raise Interrupted("Interrupted. What was finished is kept.")

    def watch(self) -> Iterator[str]:
        """How far it is, as HTML, at once, and again and again until it is finished."""
        while not self.finished:
            yield _progress_html(*(self._progress or (0, 0, self._waiting())), time.monotonic() - self._started)
            self._finished.wait(_SECONDS_BETWEEN_LOOKS)

    def result(self) -> T:
        """What came of it. Raises UserError if it failed, whatever the reason; the log has what users can't mend."""
        self._finished.wait()
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]

    def _waiting(self) -> str:
        first = self._jobs.running
        return self._first if first in (self, None) else f"Waiting for another job to finish: {first.name}"

    def _run(self) -> None:
        with self._jobs.turn:
            self._jobs.running, self._started = self, time.monotonic()
            try:
                self._result = self._work(self)
            except UserError as error:
                self._error = error
            except torch.cuda.OutOfMemoryError:
                self._error = UserError(OUT_OF_MEMORY)
            except Exception as error:
                logger.exception("a job failed")
                self._error = UserError(
                    f"an internal error ({type(error).__name__}) occurred; see the terminal for details"
                )
            finally:
                self._jobs.running = None
                self._finished.set()


def _progress_html(done: int, total: int, what: str, seconds: float) -> str:
    share = min(1.0, done / total) if total else 0.0
    left = f", about {seconds / share - seconds:.0f} s left" if 0 < share < 1 and seconds > 2 else ""
    return (
        f'<div class="cd-job"><span>{html.escape(what)}{left}</span>'
        f'<span class="cd-job-bar"><span style="width:{100 * share:.1f}%"></span></span></div>'
    )
