"""docs/dialects.md says what the registry and the modules say."""

from __future__ import annotations

from pathlib import Path

from gateway.config import Config
from gateway.dialects import registry
from gateway.dialects.__main__ import document

ROOT = Path(__file__).resolve().parents[2]


def test_the_document_is_what_the_registry_says() -> None:
    written = (ROOT / "docs" / "dialects.md").read_text()
    assert written == document(), "write it anew: python -m gateway.dialects > docs/dialects.md"


def test_every_path_is_in_the_document() -> None:
    routes = {route for dialect in registry(Config().limits, Config().ndjson) for route in dialect.routes}
    assert [route for route in routes if f"| `{route[0]} {route[1]}` |" not in document()] == []
