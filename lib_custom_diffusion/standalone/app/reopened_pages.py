"""Pages that are opened later, and those whose connection broke, show what goes on and what came of the last job."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr
from gradio.context import Context

from .jobs import Job

_PRESSED_WHEN_LOST = """() => {
    const again = () => document.getElementById('cd_again').click();
    const wait = () => new Promise((goOn) => setTimeout(goOn, 2000));
    let told = null;
    new MutationObserver(async () => {
        const toast = document.querySelector('.toast-body.error');
        if (!toast || toast === told || !toast.textContent.includes('Connection errored out')) return;
        told = toast;
        do await wait();
        while (!(await fetch('./config').catch(() => null))?.ok);
        again();
    }).observe(document.body, {childList: true, subtree: true});
    (async () => {
        for (let over = 0;; await wait()) {
            const shown = document.querySelector('.cd-job, #cd_progress .cd-progress');
            const answer = shown && await fetch('./jobs').catch(() => null);
            over = answer?.ok && !(await answer.json()).busy ? over + 1 : 0;
            if (over == 2) again();
        }
    })();
    document.addEventListener('visibilitychange', () => {
        const running = document.querySelector('.cd-job, #cd_progress .cd-progress');
        if (!document.hidden && !running) document.getElementById('cd_in_sight').click();
    });
}"""
"""Gradio brings nothing more to a page whose connection broke, as on a busy machine or one that has slept. An answer
that the page was too busy to take it drops without a word; so the page asks whether what it shows still goes on."""


class LastJob:
    """The last job of a part of the page that was not refused before anything was done."""

    def __init__(self, outputs: Sequence[Any]) -> None:
        self._outputs = outputs
        self._asked: list[tuple[Job, Callable[[], Iterator[tuple[Any, ...]]]]] = []  # that one, and the last of all

    def watch(self, job: Job, watched: Callable[[], Iterator[tuple[Any, ...]]]) -> Iterator[tuple[Any, ...]]:
        """What to show of a job until it is over; other pages will show it too. watched: begins to show it."""
        self._asked[:] = [*self._others()[-1:], (job, watched)]
        yield from watched()

    def again(self) -> Iterator[tuple[Any, ...]]:
        """What a page shows that did not ask for it, or does not know any more."""
        yield tuple(gr.update() for _ in self._outputs)  # of a generator that yields nothing gradio makes an error
        for _, watched in self._others()[-1:]:
            yield from watched()

    def _others(self) -> list[tuple[Job, Callable[[], Iterator[tuple[Any, ...]]]]]:
        return [each for each in self._asked if not each[0].refused]


class ReopenedPages:
    """Made where gradio is building the page; each part of it that shows jobs gets a `LastJob`.

    in_sight: a button that a page which shows no running job presses when it comes back into sight.
    """

    def __init__(self) -> None:
        self._again = gr.Button(visible=False, elem_id="cd_again")
        self.in_sight = gr.Button(visible=False, elem_id="cd_in_sight", elem_classes=["tool"])
        Context.root_block.load(fn=None, _js=_PRESSED_WHEN_LOST, inputs=[], outputs=[])

    def part(self, outputs: Sequence[Any], when_opened: bool = True) -> LastJob:
        """The last job of the part of the page that consists of these outputs.

        when_opened: whether pages that are opened later show it too, not only those whose connection broke.
        """
        last = LastJob(outputs)
        if when_opened:
            Context.root_block.load(fn=last.again, inputs=[], outputs=list(outputs), show_progress=False)
        self._again.click(fn=last.again, inputs=[], outputs=list(outputs), show_progress=False)
        return last
