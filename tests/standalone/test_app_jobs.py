"""Jobs of the app's page: one at a time, interrupted when asked, and nothing that goes wrong ends in a traceback."""

from __future__ import annotations

import threading

import pytest

pytest.importorskip("gradio")

from lib_custom_diffusion.errors import Interrupted, UserError
from lib_custom_diffusion.standalone.app.jobs import Job, Jobs


def test_the_second_job_waits_for_the_first() -> None:
    jobs, order, first_may_end = Jobs(threading.Lock()), [], threading.Event()

    def first(_job: Job) -> str:
        assert first_may_end.wait(60)
        order.append("first")
        return "a"

    a = jobs.start("drawing <4>", first)
    while jobs.running is not a:
        pass
    b = jobs.start("", lambda _job: order.append("second") or "b")
    watched = b.watch()
    assert "Waiting for another job to finish: drawing &lt;4&gt;" in next(watched)
    first_may_end.set()
    assert (a.result(), b.result()) == ("a", "b")
    assert order == ["first", "second"]
    assert list(watched) == [] and jobs.running is None


def test_a_job_says_at_once_what_it_begins_with() -> None:
    jobs, may_end = Jobs(threading.Lock()), threading.Event()
    job = jobs.start("loading <sd>", lambda _job: may_end.wait(60), "Loading <sd>…")
    while jobs.running is not job:
        pass
    assert "Loading &lt;sd&gt;…" in next(job.watch())
    may_end.set()
    assert job.result() and list(job.watch()) == []


def test_what_a_job_tells_is_shown() -> None:
    jobs, told, may_end = Jobs(threading.Lock()), threading.Event(), threading.Event()

    def work(job: Job) -> None:
        job(1, 4, "Drawing <pictures>")
        told.set()
        assert may_end.wait(60)

    job = jobs.start("", work)
    assert told.wait(60)
    page = next(job.watch())
    assert "Drawing &lt;pictures&gt;" in page and "width:25.0%" in page
    may_end.set()
    assert job.result() is None


def test_interrupt_stops_the_running_job_and_not_the_next() -> None:
    jobs, running = Jobs(threading.Lock()), threading.Event()

    def endless(job: Job) -> None:
        while True:
            job(0, 1)
            running.set()

    job = jobs.start("", endless)
    assert running.wait(60)
    jobs.interrupt()
    with pytest.raises(Interrupted):
        job.result()
    jobs.interrupt()  # nothing runs
    assert jobs.start("", lambda job: job(1, 1)).result() is None


def test_what_users_cannot_mend_goes_to_the_log_and_a_sentence_to_the_page(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_job: Job) -> None:
        raise ZeroDivisionError("deep inside")

    with pytest.raises(UserError, match=r"an internal error \(ZeroDivisionError\) occurred"):
        Jobs(threading.Lock()).start("", broken).result()
    assert "deep inside" in caplog.text

    def mistaken(_job: Job) -> None:
        raise UserError("choose a delta")

    with pytest.raises(UserError, match=r"^choose a delta$"):
        Jobs(threading.Lock()).start("", mistaken).result()


def test_the_page_is_busy_while_a_job_runs_or_waits() -> None:
    turn = threading.Lock()
    jobs = Jobs(turn)
    assert not jobs.busy
    with turn:
        waiting = jobs.start("", lambda _job: "done")
        assert jobs.busy
    assert waiting.result() == "done"
    while not waiting.finished:
        pass
    assert not jobs.busy


@pytest.mark.parametrize("went_on", [False, True])
def test_only_a_job_that_fails_before_it_went_on_is_refused(went_on: bool) -> None:
    def work(job: Job) -> None:
        if went_on:
            job(1, 4, "Drawing pictures")
        raise UserError("the disk is full")

    job = Jobs(threading.Lock()).start("", work)
    with pytest.raises(UserError):
        job.result()
    while not job.finished:
        pass
    assert job.refused is not went_on
