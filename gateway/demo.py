"""The first start: a project with a key for each dialect, and the lines to try them with.

Made when Weir runs its own Postgres and that has no project yet. The secrets are printed once and
kept in ``demo.json`` (0600); the control store has their digests only. Should the start fail before
they could be printed, the file says so, and the next start begins again with fresh keys.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from gateway.data_dir import DataDir
from gateway.tenants.pat_store import PatStore
from gateway.tenants.postgres import ControlStore

SLUG = "demo"
KEYS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    # name, kind, dialect, origins
    ("loguro", "server", "loguro", ()),
    ("browser", "browser", "loguro", ("http://localhost:3000",)),
    ("proliferate", "server", "proliferate", ()),
    ("streamlogia", "server", "streamlogia", ()),
    ("brokle", "server", "brokle", ()),
)
_UNFINISHED: dict[str, Any] = {}

EXAMPLES: Mapping[str, tuple[str, str, str, str]] = {
    # dialect: (what it is, path, key of demo.json, body; KEY in it is the key)
    "otlp": (
        "OTLP/HTTP: any OpenTelemetry SDK or collector",
        "/v1/logs",
        "loguro",
        '{"resourceLogs":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"checkout"}}]},'
        '"scopeLogs":[{"logRecords":[{"severityNumber":9,"body":{"stringValue":"Hello from OTLP"},'
        '"attributes":[{"key":"order.id","value":{"intValue":"42"}}]}]}]}]}',
    ),
    "loguro": (
        "Loguro",
        "/",
        "loguro",
        '{"level":"info","message":"Hello from Loguro","context":{"order":{"id":42}}}',
    ),
    "proliferate": (
        "Proliferate",
        "/api/v1/logs/batch",
        "proliferate",
        '{"api_key":"KEY","environment":"production","logs":[{"level":"info","message":"Hello from Proliferate",'
        '"attributes":{"order_id":42}}]}',
    ),
    "streamlogia": (
        "Streamlogia",
        "/v1/ingest",
        "streamlogia",
        '[{"level":"INFO","message":"Hello from Streamlogia","source":"checkout","tags":["orders"],'
        '"meta":{"order_id":42}}]',
    ),
    "brokle": (
        "Brokle",
        "/v1/logs",
        "brokle",
        '{"resourceLogs":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"my-ai-app"}}]},'
        '"scopeLogs":[{"logRecords":[{"severityNumber":9,"body":{"stringValue":"Hello from Brokle"},'
        '"attributes":[{"key":"gen_ai.request.model","value":{"stringValue":"gpt-4"}}]}]}]}]}',
    ),
    "ndjson": (
        "NDJSON: one JSON object a line",
        "/v1/ndjson",
        "loguro",
        '{"level":"info","message":"Hello from NDJSON","order":{"id":42}}',
    ),
}


async def create(store: ControlStore, directory: DataDir, admin_token: str) -> dict[str, Any] | None:
    """The demo project's secrets when this is the first start, else None. ``keep`` comes when they are printed."""
    begun = directory.read_json(directory.demo)
    projects = await store.list_projects()
    project = next((project for project in projects if project.slug == SLUG), None)
    if projects and not (begun == _UNFINISHED and project):
        return None
    directory.write(directory.demo, json.dumps(_UNFINISHED))
    if project is None:
        project = await store.create_project(SLUG, "Demo")
    else:
        for key in await store.list_keys(SLUG):
            await store.revoke_key(key.id)
    keys = {}
    for name, kind, dialect, origins in KEYS:
        _, keys[name] = await store.create_key(SLUG, kind=kind, dialect=dialect, name=f"demo {name}", origins=origins)
    _, pat = await PatStore(store).create("demo")
    return {"project": SLUG, "project_id": project.id, "keys": keys, "pat": pat, "admin_token": admin_token}


def keep(demo: Mapping[str, Any], directory: DataDir) -> None:
    """Writes ``demo.json``: from now on this was the first start."""
    directory.write(directory.demo, json.dumps(demo, indent=2) + "\n")


def banner(listen: Mapping[str, Any], directory: DataDir, *, database: str) -> str:
    """Where everything is, in a few lines."""
    return "\n".join(
        (
            "Weir is ready.",
            f"  logs in     {'  '.join('http://' + address for address in listen['ingest'])}",
            f"  admin       {'  '.join('http://' + address for address in listen['admin'])}",
            f"  ClickHouse  {listen['clickhouse']}  (database {database}, table otel_logs)",
            f"  data        {directory.path}",
        )
    )


def lessons(demo: Mapping[str, Any], listen: Mapping[str, Any], dialects: Collection[str], *, database: str) -> str:
    """What a new user pastes next: a curl for each of ``dialects``, and the query that shows the result."""
    lines = [
        f"First start: made the project {SLUG} with a key for each dialect. They are shown once here, and kept in",
        "demo.json of the data directory. Paste any of these:",
    ]
    for title, path, key, body in (example for name, example in EXAMPLES.items() if name in dialects):
        secret = demo["keys"][key]
        lines += ["", f"# {title}", curl(listen["ingest"][0], path, secret, body.replace("KEY", secret))]
    lines += ["", "# and see what arrived", query_curl(listen["clickhouse"], database)]
    lines += ["", "Keys:"]
    lines += [f"  {name:<12} {secret}" for name, secret in demo["keys"].items()]
    lines += [f"  {'pat':<12} {demo['pat']}", f"  {'admin':<12} {demo['admin_token']}"]
    lines += ["", f"An OpenTelemetry SDK needs only: {_sdk(listen['ingest'], demo['keys']['loguro'])}"]
    return "\n".join(lines)


def curl(address: str, path: str, key: str, body: str) -> str:
    """One line for a shell that sends ``body`` as JSON; it has no single quote in it."""
    return (
        f"curl -sS -i http://{address}{path} -H 'Authorization: Bearer {key}' "
        f"-H 'Content-Type: application/json' -w '\\n' -d '{body}'"
    )


def query_curl(url: str, database: str) -> str:
    """One line for a shell that shows the newest rows."""
    sql = (
        "SELECT Timestamp, Dialect, ServiceName, SeverityText, Body, LogAttributes "
        "FROM otel_logs ORDER BY Timestamp DESC LIMIT 10 FORMAT PrettyCompactMonoBlock"
    )
    return f"curl -sS '{url}/?database={database}' --data-binary \"{sql}\""


def _sdk(addresses: Sequence[str], key: str) -> str:
    headers = f"OTEL_EXPORTER_OTLP_HEADERS=x-api-key={key}"
    if any(address.endswith(":4318") for address in addresses):
        return headers
    return f"OTEL_EXPORTER_OTLP_ENDPOINT=http://{addresses[0]} {headers}"
