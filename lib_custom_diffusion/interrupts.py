"""Ctrl-C while libraries are imported, of which they make a traceback, or an error of their own."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

INTERRUPTED = 130
"""Exit status of what Ctrl-C ended, as shells have it."""


@contextmanager
def ended_at_once() -> Iterator[None]:
    """Within the block Ctrl-C ends the program with one line, and nothing of it runs on to be undone."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # as under nohup, or in a page
        yield
        return
    signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(*_: object) -> None:
    with suppress(Exception):  # of an output that is closed, or was being written
        sys.stdout.flush()
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)
