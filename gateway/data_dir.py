"""The data directory: one gateway at a time, and the small files by which people and commands find it.

lock           held by whoever uses the embedded engines; the kernel lets go of it when they die
listen.json    where the running gateway listens, once it is ready; gone when it stops
postgres.dsn   how to reach the embedded Postgres of the running gateway (0600)
admin_token    the token of the admin interface, unless one is configured (0600)
demo.json      the demo project's keys (0600)
spool/         what was accepted and is not in ClickHouse yet, and the identities of rows
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from pathlib import Path
from typing import Any


class DataDirBusy(Exception):
    """Another process uses this directory."""


class DataDir:
    """A data directory, made if it is not there. Raises OSError when it cannot be."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listen = path / "listen.json"
        self.dsn = path / "postgres.dsn"
        self.keys = path / "keys.snapshot"
        self.demo = path / "demo.json"
        self.spool = path / "spool"
        self._lock_descriptor = -1

    def lock(self) -> None:
        """Takes the directory for this process. Raises DataDirBusy, naming who has it."""
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            who = f"process {holder}" if holder else "another process"
            raise DataDirBusy(
                f"{self.path} is in use by {who}. Stop that one, or give this one a directory of its own: "
                "WEIR__DATA_DIR=/another/directory"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        self._lock_descriptor = descriptor

    def unlock(self) -> None:
        """Lets go of the directory; without effect when it is not held."""
        if self._lock_descriptor >= 0:
            os.close(self._lock_descriptor)
            self._lock_descriptor = -1

    def write(self, path: Path, text: str, *, mode: int = 0o600) -> None:
        """Writes a file whole or not at all; unless ``mode`` says otherwise only its owner may read it."""
        draft = path.with_name(f".{path.name}.new")
        draft.unlink(missing_ok=True)  # one left by a crash would keep its mode
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123  (a descriptor has no path)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)

    def read_json(self, path: Path) -> Any:
        """What a JSON file of this directory holds; None when there is no such file."""
        try:
            return json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            return None

    def forget_addresses(self) -> None:
        """Removes what says where a running gateway is."""
        for path in (self.listen, self.dsn):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()

    def admin_token(self) -> str:
        """The token of this directory, made at the first call."""
        path = self.path / "admin_token"
        try:
            return path.read_text("utf-8").strip()
        except FileNotFoundError:
            token = secrets.token_urlsafe(32)
            self.write(path, token + "\n")
            return token
