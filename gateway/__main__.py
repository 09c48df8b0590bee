"""``weir``, or ``python -m gateway``.

A start is mostly imports, and a worker has as many as its supervisor. So the workers' processes are begun before ours,
and import beside us.
"""

import argparse
import asyncio
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType

import uvloop

from gateway import config
from gateway.workers.shells import Shells, allow_open_files


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
    """Begin a shell for each worker. Until the supervisor takes over, a signal to end is obeyed at once."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--config", type=Path)
    given, _ = options.parse_known_args(sys.argv[2:])
    with suppress(config.ConfigError):  # the command says what is wrong
        allow_open_files()
        runner.run(shells.start(config.load(given.config, os.environ).workers))


def _end(number: int, frame: FrameType | None) -> None:
    """Nothing is there that would have to be stopped, and a shell ends with us.

    What is raised here might be lost: an import runs callbacks that let no exception out.
    """
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
