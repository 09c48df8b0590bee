"""What is to become a worker waits for it: a worker that dies is replaced by one that is there already."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
from pathlib import Path

import pytest

from gateway.workers.shells import DESCRIPTORS_MAX, Shell, Shells
from tests.end_to_end.conftest import NewGateway
from tests.end_to_end.gateway_process import GatewayProcess, command_line, name_of, poll

FEW_FILES = 1024

pytestmark = pytest.mark.skipif(not Path("/proc/self/comm").exists(), reason="looks at processes through /proc")


def shells(gateway: GatewayProcess) -> set[int]:
    """The processes that wait to become a worker."""
    return {pid for pid in gateway.descendants() if name_of(pid) == "weir-shell"}


def one_waits(gateway: GatewayProcess) -> set[int]:
    """The shell that waits, once it does."""
    found: set[int] = poll(lambda: shells(gateway), within_s=20, what="one waits")
    assert len(found) == 1
    return found


def test_a_dead_worker_is_replaced_by_what_waited_and_the_next_one_waits(new_gateway: NewGateway) -> None:
    gateway = new_gateway().start()
    for _ in range(3):
        waiting, [worker] = one_waits(gateway), gateway.workers()
        os.kill(worker, signal.SIGKILL)
        poll(lambda worker=worker: gateway.workers() not in ([worker], []), within_s=20, what="another one serves")  # type: ignore[misc]
        assert set(gateway.workers()) == waiting
        assert gateway.post("/", b'{"message":"a"}', gateway.demo["keys"]["loguro"]) == 202


def test_a_shell_that_dies_is_missed_by_nobody(new_gateway: NewGateway) -> None:
    gateway = new_gateway().start()
    [shell], [worker] = one_waits(gateway), gateway.workers()
    os.kill(shell, signal.SIGKILL)
    os.kill(worker, signal.SIGKILL)
    poll(lambda: gateway.workers() not in ([worker], []), within_s=20, what="another one serves")
    assert gateway.stop()[0] == 0


def test_every_worker_may_open_as_many_files_as_the_system_lets_it(new_gateway: NewGateway) -> None:
    """A connection is a file, and what shells and services begin with is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEW_FILES, hard))
    try:
        gateway = new_gateway().start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for pid in (gateway.pid, *gateway.workers(), *one_waits(gateway)):
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert re.search(rf"^Max open files +{hard} +{hard} ", limits, re.MULTILINE), limits


def test_a_roll_is_with_new_processes(new_gateway: NewGateway) -> None:
    """Those that waited may run what was there before an update."""
    gateway = new_gateway().start()
    waiting, before = one_waits(gateway), gateway.workers()
    os.kill(gateway.pid, signal.SIGUSR2)
    poll(lambda: not set(before) & set(gateway.workers()) and gateway.workers(), within_s=30, what="the worker is new")
    assert not waiting & set(gateway.workers())
    poll(lambda: not [pid for pid in waiting if command_line(pid)], within_s=20, what="what waited is gone")


def test_shells_end_with_their_gateway_however_it_ends(new_gateway: NewGateway) -> None:
    gateway = new_gateway().start()
    [shell] = one_waits(gateway)
    gateway.kill()
    poll(lambda: not command_line(shell), within_s=20, what="it has ended")
    (gateway.data_dir / "listen.json").unlink()
    gateway.start()
    [shell] = one_waits(gateway)
    assert gateway.stop()[0] == 0
    assert not command_line(shell)


async def test_a_shell_is_given_no_more_than_the_system_takes() -> None:
    shells_ = Shells()
    shell = await shells_.take()
    try:
        with pytest.raises(OSError, match="descriptors"):
            shell.give([0] * (DESCRIPTORS_MAX + 1))
    finally:
        await shell.kill()


async def test_what_died_while_it_waited_is_not_taken() -> None:
    shells_ = Shells()
    shells_.prepare(2)
    first = await shells_.take()
    await first.kill()
    shells_._waiting.appendleft(first)
    second = await shells_.take()
    try:
        assert isinstance(second, Shell)
        assert second.process.returncode is None
        with socket.socket() as given:
            second.give([given.fileno()])
    finally:
        await second.kill()
        await shells_.discard()
