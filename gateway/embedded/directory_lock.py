"""One process at a time in an engine's directory."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

WAIT_S = 15.0


def hold(directory: Path, wait_s: float = WAIT_S) -> int:
    """Own ``directory`` until this process ends, however it ends; a lock file left behind means nothing.

    Waits for a predecessor that is just ending; SystemExit when it does not.
    """
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise SystemExit(f"{directory} is in use; is a second gateway running on it?") from None
            time.sleep(0.02)
        else:
            return descriptor
