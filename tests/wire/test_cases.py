"""Every case below ``cases/``: a real request over a real socket, its reply, and its rows as ClickHouse has them.

A case is a folder:

    request.http   request line and headers, as sent; {loguro} and the like stand for the demo project's
                   keys, in the body too; Content-Length is added unless it or Transfer-Encoding is there
    body.*         the body as sent: .pb protobuf, .json, .gz and so on; none: no body
    body.make.json instead of it, for bodies too large to keep: {"unit": text, "bytes": size, "encoding": gzip}
    reply.json     status, some headers, and the body: parsed; a protobuf reply by its field names
    rows.json      the rows of otel_logs in order, without empty columns; none: no rows
    genai.json     the same of genai_events
    errors.json    the same of error_events

In a row ``{arrival}`` is the time of the request, ``{latest}`` and ``{oldest}`` are where a time too far
ahead or behind is moved to, and ``{project}`` is the demo project. In a row and in the
reply ``{id 0}``, ``{id 1}``, ... are the ids the gateway made for the rows. In the reply ``{arrival}`` is
also a time in seconds, ``{ulid}`` a ULID of that time, and ``{request id}`` the one the gateway made. After
each case a good request on the same path must be accepted and stored, whatever the case was.
"""

from __future__ import annotations

import calendar
import gzip
import json
import re
import socket
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
import zstandard
from google.protobuf.json_format import MessageToDict
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

from gateway.config import Config
from gateway.dialects import registry
from tests.support.gateway import Gateway

CASES = Path(__file__).parent / "cases"
FOLDERS = sorted(path.parent for path in CASES.glob("*/*/request.http"))
WAIT_S = 20.0
SECOND_NS = 1_000_000_000
RETENTION_DAYS = 20_000
ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstandard.compress,
}
EDGES = {"{arrival}": 0, "{latest}": 3_600, "{oldest}": -(RETENTION_DAYS - 1) * 86_400}
CHUNK = 7
MUTATIONS = 400
# The identity of a row is delivery's business, and different each time.
_ROWS = """
SELECT * EXCEPT (SpoolFrame, SpoolRow) REPLACE ({times})
FROM {table} WHERE SpoolFrame NOT IN (SELECT SpoolFrame FROM seen_frames) ORDER BY SpoolFrame, SpoolRow
"""
_TIMES = {
    "otel_logs": ("Timestamp", "ObservedTimestamp"),
    "error_events": ("Timestamp",),
    "genai_events": ("Timestamp",),
}
_IDS = ("RecordId", "EventId")
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_ULID = re.compile(rf"[0-7][{_CROCKFORD}]{{25}}")
_SECOND = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    running = Gateway(tmp_path_factory.mktemp("wire") / "data", clickhouse__retention_days=str(RETENTION_DAYS))
    try:
        running.start()
        running.query("CREATE TABLE seen_frames (SpoolFrame UInt64) ENGINE = MergeTree ORDER BY SpoolFrame")
        yield running
    finally:
        exit_code = running.stop()
    assert exit_code == 0


class Reply:
    """An answer, taken apart by hand: what a library would forgive is to be seen."""

    def __init__(self, raw: bytes) -> None:
        head, _, rest = raw.partition(b"\r\n\r\n")
        status, *lines = head.decode("ascii").split("\r\n")
        self.status = int(status.split(" ")[1])
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        self.body = rest
        assert len(rest) == int(self.headers["content-length"])

    def content(self) -> Any:
        """The body, parsed by what it is labelled as; of protobuf a dictionary, empty for zero bytes."""
        if self.headers["content-type"] != "application/x-protobuf":
            return json.loads(self.body)
        message = Status() if self.status >= 400 else ExportLogsServiceResponse()
        message.ParseFromString(self.body)
        fields: dict[str, Any] = MessageToDict(message)
        assert bool(fields) == bool(self.body)
        return fields


def exchange(gateway: Gateway, head: str, body: bytes) -> Reply:
    """One request on a connection of its own, and its reply."""
    return Reply(send(gateway, request_bytes(gateway, head, body)))


def request_bytes(gateway: Gateway, head: str, body: bytes) -> bytes:
    """A case's request as it goes over the wire."""
    for name, key in gateway.demo["keys"].items():
        head = head.replace("{" + name + "}", key)
        body = body.replace(b"{%b}" % name.encode(), key.encode())
    lowered = head.lower()
    if "transfer-encoding: chunked" in lowered:
        pieces = [body[at : at + CHUNK] for at in range(0, len(body), CHUNK)]
        body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (*pieces, b""))
    elif "content-length" not in lowered and not lowered.startswith("get "):
        head += f"Content-Length: {len(body)}\n"
    return (head + "Connection: close\n\n").replace("\n", "\r\n").encode("latin-1") + body


def send(gateway: Gateway, request: bytes, *, half_close: bool = False) -> bytes:
    """All of it is written before the answer is read; what comes until the gateway closes."""
    host, _, port = gateway.ingest[0].rpartition(":")
    received = b""
    with socket.create_connection((host, int(port)), WAIT_S) as connection, suppress(ConnectionError):
        connection.sendall(request)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        while piece := connection.recv(1 << 16):
            received += piece
    return received


def body_of(folder: Path) -> bytes:
    made = folder / "body.make.json"
    if not made.exists():
        files = list(folder.glob("body.*"))
        assert len(files) < 2
        return files[0].read_bytes() if files else b""
    recipe = json.loads(made.read_text())
    unit = recipe["unit"].encode()
    body = (unit * (recipe["bytes"] // len(unit) + 1))[: recipe["bytes"]]
    return ENCODERS[recipe.get("encoding", "")](body)


def good_request(folder: Path) -> tuple[str, bytes, str]:
    """Head, body and message of a request that is accepted on the path of the case's dialect."""
    message = f"after {folder.parent.name}/{folder.name}"
    entry = {"level": "info", "message": message, "source": "test"}
    path, entries = {
        "loguro": ("/", entry),
        "proliferate": ("/api/v1/logs/batch", {"logs": [entry]}),
        "streamlogia": ("/v1/ingest", [entry]),
        "ndjson": ("/v1/ndjson", entry),
    }.get(folder.parent.name, ("", None))
    if path:
        head = f"POST {path} HTTP/1.1\nHost: test\nAuthorization: Bearer {{loguro}}\n"
        return head, json.dumps(entries).encode(), message
    records = {"resourceLogs": [{"scopeLogs": [{"logRecords": [{"body": {"stringValue": message}}]}]}]}
    key = "{brokle}" if folder.parent.name == "brokle" else "{loguro}"
    head = f"POST /v1/logs HTTP/1.1\nHost: test\nX-API-Key: {key}\nContent-Type: application/json\n"
    return head, json.dumps(records).encode(), message


def stored_rows(gateway: Gateway, table: str = "otel_logs") -> list[dict[str, Any]]:
    """The rows that came since the last call, in the order they were accepted in, without empty columns."""
    gateway.wait_until_stored()
    times = ", ".join(f"toString(toUnixTimestamp64Nano({name})) AS {name}" for name in _TIMES[table])
    rows = gateway.query(_ROWS.format(table=table, times=times))
    gateway.query(f"INSERT INTO seen_frames SELECT DISTINCT SpoolFrame FROM {table}")
    return [{name: value for name, value in row.items() if value not in ("", 0, {}, None)} for row in rows]


def readable(row: dict[str, Any], project: str, began_ns: int, ended_ns: int) -> dict[str, Any]:
    """A row as ``rows.json`` writes it: times as RFC 3339 with nanoseconds, or as what they are relative to arrival."""
    row = dict(row)
    for name in row.keys() & {"Timestamp", "ObservedTimestamp"}:
        moment_ns = int(row[name])
        seconds, fraction = divmod(moment_ns, SECOND_NS)
        row[name] = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{fraction:09d}Z"
        for word, offset_s in EDGES.items():
            if began_ns <= moment_ns - offset_s * SECOND_NS <= ended_ns:
                row[name] = word
    if row.get("ProjectId") == project:
        row["ProjectId"] = "{project}"
    return row


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: f"{folder.parent.name}/{folder.name}")
def test_case(gateway: Gateway, folder: Path) -> None:
    began_ns = time.time_ns()
    reply = exchange(gateway, (folder / "request.http").read_text(), body_of(folder))
    head, body, message = good_request(folder)
    after = exchange(gateway, head, body)
    ended_ns = time.time_ns()
    rows, errors, genai = (
        [readable(row, gateway.demo["project_id"], began_ns, ended_ns) for row in stored_rows(gateway, table)]
        for table in _TIMES
    )
    content = with_ids_named(reply.content(), (*rows, *errors), body_of(folder))
    names = {gateway.demo["project_id"]: "{project}"}
    if "\nx-request-id:" not in (folder / "request.http").read_text().lower():
        names[reply.headers["x-request-id"]] = "{request id}"
    content = with_moments_named(content, names, began_ns, ended_ns)

    expected = json.loads((folder / "reply.json").read_text())
    assert {"status": reply.status, "body": content} == {name: expected[name] for name in ("status", "body")}
    assert {name: reply.headers.get(name) for name in expected["headers"]} == expected["headers"]
    assert reply.headers["x-request-id"]
    assert after.status in (200, 202)
    assert rows.pop()["Body"] == message
    assert rows == expected_rows(folder / "rows.json")
    assert errors == expected_rows(folder / "errors.json")
    assert genai == expected_rows(folder / "genai.json")


def with_ids_named(content: Any, rows: Iterable[dict[str, Any]], sent: bytes) -> Any:
    """The reply's content with ``{id 0}`` and so on for ids that were made for the rows; the rows likewise."""
    text = json.dumps(content)
    made = 0
    for row in rows:
        for name in row.keys() & set(_IDS):
            if row[name].encode() not in sent and json.dumps(row[name]) in text:
                text = text.replace(row[name], f"{{id {made}}}")
                row[name] = f"{{id {made}}}"
                made += 1
    return json.loads(text)


def with_moments_named(content: Any, names: dict[str, str], began_ns: int, ended_ns: int) -> Any:
    """The reply's content with what differs each time by its name: a word of ``names``, a ULID, a time."""
    if isinstance(content, dict):
        return {name: with_moments_named(inner, names, began_ns, ended_ns) for name, inner in content.items()}
    if not isinstance(content, str):
        return content
    if content in names:
        return names[content]
    if _ULID.fullmatch(content):
        letters = [_CROCKFORD.index(letter) for letter in content[:10]]
        moment_ms = sum(value << 5 * place for place, value in enumerate(reversed(letters)))
        return "{ulid}" if began_ns // 1_000_000 <= moment_ms <= ended_ns // 1_000_000 else content
    if _SECOND.fullmatch(content):
        moment_s = calendar.timegm(time.strptime(content, "%Y-%m-%dT%H:%M:%SZ"))
        return "{arrival}" if began_ns // SECOND_NS <= moment_s <= ended_ns // SECOND_NS else content
    return content


def expected_rows(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else []


def test_no_mutation_of_a_request_fails_the_gateway(gateway: Gateway) -> None:
    """Bytes flipped, cut, repeated, swapped: an answer below 500, or none where it is no whole request any more."""
    samples = [folder for folder in FOLDERS if not (folder / "body.make.json").exists()]
    statuses = set()
    for seed in range(MUTATIONS):
        random = Random(seed)
        folder = random.choice(samples)
        request = request_bytes(gateway, (folder / "request.http").read_text(), body_of(folder))
        answer = send(gateway, mutated(request, random), half_close=True)
        status = int(answer[9:12]) if answer else 0
        assert status < 500, f"seed {seed}, {folder}: {answer!r}"
        statuses.add(status)
    assert {200, 202, 400} <= statuses
    head, body, message = good_request(FOLDERS[0])
    assert exchange(gateway, head, body).status in (200, 202)
    assert message in [row["Body"] for row in stored_rows(gateway) if "Body" in row]


def mutated(request: bytes, random: Random) -> bytes:
    """The request with one to four changes; half of the time the head is left alone."""
    start = random.choice((0, request.index(b"\r\n\r\n")))
    data = bytearray(request)
    for _ in range(random.randint(1, 4)):
        at = random.randint(start, max(start, len(data) - 1))
        length = random.randint(1, 16)
        change = random.randrange(4)
        if change == 0:
            data[at : at + 1] = bytes((random.randrange(256),))
        elif change == 1:
            del data[at : at + length]
        elif change == 2:
            data[at:at] = data[at : at + length]
        else:
            data[at : at + length] = random.randbytes(length)
    return bytes(data)


def test_the_counts_add_up(gateway: Gateway) -> None:
    """Last in this file: whatever the cases did, every request ended one way and every record is accounted for."""
    gateway.wait_until_stored()
    metrics = gateway.metrics()

    def total(name: str) -> float:
        return sum(value for sample, value in metrics.items() if sample.partition("{")[0] == f"weir_{name}_total")

    assert total("requests_received") == total("requests_accepted") + total("requests_refused") > 0
    assert total("records_received") == total("records_accepted") + total("records_rejected") > 0
    assert total("rows_accepted") == total("rows_stored")
    # A GenAI event is a row of two tables.
    events = metrics['weir_rows_accepted_total{table="genai_events"}']
    assert total("records_accepted") == total("rows_accepted") - events > 0 < events
    assert not [sample for sample in metrics if 'reason="internal"' in sample]


def test_every_dialect_has_cases_and_no_folder_is_forgotten() -> None:
    there = {dialect.name for dialect in registry(Config().limits, Config().ndjson)}
    # A dataset is made first, and its table is its own: tests/datasets has theirs.
    assert {folder.parent.name for folder in FOLDERS} == there - {"datasets"}
    assert [path for path in CASES.glob("*/*") if path not in FOLDERS] == []
