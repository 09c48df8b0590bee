"""The child's side of ``child.py``: notice that the gateway is gone.

A thread waits for the end of standard input (a pipe only the gateway holds) and looks at the parent's
process id now and then, for the case that another process inherited the pipe. It is a thread, not a
task, so that a busy event loop does not delay it.
"""

from __future__ import annotations

import os
import select
import sys
import threading
from collections.abc import Callable

PARENT_CHECK_S = 0.5


def wait_for_the_end_of(parent: int) -> None:
    """Return when standard input ends or the process ``parent`` is no longer our parent."""
    descriptor = sys.stdin.fileno()
    while os.getppid() == parent:
        readable, _, _ = select.select([descriptor], [], [], PARENT_CHECK_S)
        if readable and not os.read(descriptor, 4096):
            return


def watch(parent: int, gone: Callable[[], None]) -> None:
    """Call ``gone`` in a thread of its own once the gateway, process ``parent``, is no more."""

    def run() -> None:
        wait_for_the_end_of(parent)
        gone()

    threading.Thread(target=run, name="lifeline", daemon=True).start()
