"""Runs a command that ends with whoever started it, however that ends: ``python leash.py PARENT COMMAND...``.

A test that is interrupted ends what it started; one that is killed cannot. This process asks the kernel to
be killed when process ``PARENT`` is, and becomes the command. Where there is no such request (only Linux has
it) the command runs without.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1


def leashed(*command: str, parent: int | None = None) -> list[str]:
    """The command on a leash. It is held by this process; with ``parent`` 0 by whoever runs the command."""
    return [sys.executable, "-I", "-S", str(Path(__file__)), str(os.getpid() if parent is None else parent), *command]


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if parent and os.getppid() != parent:
            sys.exit("whoever started this is gone")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
