"""``python -m gateway.dialects``: docs/dialects.md, from the registry and the documents of each dialect's module."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from gateway.config import Config, DialectLimits
from gateway.dialects import registry
from gateway.dialects.dialect import Dialect

_HEAD = """# The dialects

Made by `python -m gateway.dialects` from the registry and the documents of the modules; a test holds it to
them. Limits are the defaults; [configuration.md](configuration.md) has their keys, [rows.md](rows.md) what becomes of a
record.

Every key may come as `Authorization: Bearer K` or as `X-API-Key: K`. Bodies may be compressed with gzip,
deflate or zstd.
"""


def document() -> str:
    """The whole of docs/dialects.md."""
    config = Config()
    by_module: dict[str, list[Dialect]] = {}
    for dialect in registry(config.limits, config.ndjson):
        by_module.setdefault(dialect.accepted.__module__, []).append(dialect)
    sections = (_section(module, dialects) for module, dialects in by_module.items())
    return "\n".join((_HEAD, *sections))


def _section(module: str, dialects: list[Dialect]) -> str:
    name, text = module.rpartition(".")[2], sys.modules[module].__doc__ or ""
    routes = [
        f"| `{method} {path}` | {_bytes(dialect.limits.body_bytes_max)} | {_bytes(dialect.limits.inflated_bytes_max)} "
        f"| {_entries(dialect.limits)} |"
        for dialect in dialects
        for method, path in dialect.routes
    ]
    table = ("| path | body | decompressed | entries |", "| --- | --- | --- | --- |", *routes)
    return "\n".join((f"## {name}", "", *table, "", *_markdown(text.strip()), ""))


def _markdown(text: str) -> Iterator[str]:
    """A docstring's lines: a list or an indented block needs an empty line in front of it."""
    before = ""
    for line in text.replace("``", "`").splitlines():
        if line.startswith("* ") and before and not before.startswith(("* ", "  ")):
            yield ""
        yield line
        before = line


def _bytes(size: int) -> str:
    return f"{size >> 20} MiB" if size % (1 << 20) == 0 else f"{size} bytes"


def _entries(limits: DialectLimits) -> str:
    return f"{getattr(limits, 'entries_max', ''):,}" if hasattr(limits, "entries_max") else ""


if __name__ == "__main__":
    sys.stdout.write(document())
