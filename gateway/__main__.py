"""``weir``, or ``python -m gateway``.

A start is mostly imports, and a worker has as many as its supervisor. So the first worker's process is begun before
ours, and imports beside us.
"""

import asyncio
import os
import signal
import sys
from types import FrameType

import uvloop

from gateway.workers.shells import Shells


def main() -> int:
    """Runs the command that was called; returns the exit code."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        shells = Shells()
        try:
            if sys.argv[1:2] == ["serve"]:
                _begin(runner, shells)

            from gateway import cli

            return cli.main(runner, shells)
        finally:
            runner.run(shells.discard())


def _begin(runner: asyncio.Runner, shells: Shells) -> None:
    """Begin the first shell. Until the supervisor takes over, a signal to end is obeyed at once."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    runner.run(shells.start())


def _end(number: int, frame: FrameType | None) -> None:
    """Nothing is there that would have to be stopped, and a shell ends with us.

    What is raised here might be lost: an import runs callbacks that let no exception out.
    """
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
