"""The senders' own packages, as their vendors publish them, each in an environment of its own.

Made once below ``var/interop`` and used again while its requirements and its Python are the same; made
anew, they need a minute and a half in all, and only pip (npm for the packages from there). Only what a
sender is about is pinned: the rest is what its users would be given today.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SENDERS = Path(__file__).parent / "senders"
KEPT = Path(__file__).resolve().parents[2] / "var" / "interop"

PYTHON: dict[str, tuple[str, ...]] = {
    "streamlogia": ("streamlogia==0.4.0", "flask==3.1.3", "starlette==1.10.0", "httpx==0.28.1"),
    "proliferate-0.2": ("proliferate-ai==0.2.2",),
    "proliferate-0.1": ("proliferate-ai==0.1.0",),
    "brokle": ("brokle==0.4.0", "opentelemetry-sdk==1.45.2", "opentelemetry-exporter-otlp==1.45.2"),
    "brokle-otel-1.30": ("brokle==0.4.0", "opentelemetry-sdk==1.30.0", "opentelemetry-exporter-otlp==1.30.0"),
}
# The newest that run on Node 20; the generation behind them (0.300, 3.0) wants Node 22.
NODE: tuple[str, ...] = (
    "@opentelemetry/api@1.9.1",
    "@opentelemetry/api-logs@0.223.1",
    "@opentelemetry/exporter-logs-otlp-http@0.223.1",
    "@opentelemetry/exporter-logs-otlp-proto@0.223.1",
    "@opentelemetry/resources@2.12.1",
    "@opentelemetry/sdk-logs@0.223.1",
)


def python_with(name: str) -> Path:
    """The interpreter of an environment that holds ``PYTHON[name]``."""
    packages = PYTHON[name]

    def make(directory: Path) -> None:
        run([sys.executable, "-m", "venv", "--without-pip", str(directory)])
        pip = [sys.executable, "-m", "pip", "--python", str(directory / "bin" / "python"), "install"]
        run([*pip, "--quiet", "--disable-pip-version-check", "--no-compile", *packages])

    return kept(name, (sys.version, *packages), make) / "bin" / "python"


def node_modules() -> Path:
    """A ``node_modules`` that holds ``NODE``."""

    def make(directory: Path) -> None:
        directory.mkdir()
        (directory / "package.json").write_text('{"private": true}\n')
        npm = ["npm", "install", "--prefix", str(directory), "--no-audit", "--no-fund", "--loglevel=error"]
        run([*npm, "--save-exact", "--ignore-scripts", *NODE])

    return kept("node", NODE, make) / "node_modules"


def kept(name: str, holds: Sequence[str], make: Callable[[Path], None]) -> Path:
    """A directory that ``make`` filled, now or for an earlier session that asked for the same."""
    digest = hashlib.sha256("\n".join(holds).encode()).hexdigest()[:12]
    directory = KEPT / f"{name}-{digest}"
    complete = directory / ".complete"
    with alone(KEPT / f"{name}.lock"):
        if not complete.exists():
            for older in KEPT.glob(f"{name}-{'?' * len(digest)}"):
                shutil.rmtree(older)
            make(directory)
            complete.touch()
    return directory


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """One session at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run(command: Sequence[str]) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""}, timeout=600, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
