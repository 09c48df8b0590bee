"""Every case below ``cases/``: a real request over a real socket, its reply, and its rows as ClickHouse has them.

A case is a folder:

    request.http   request line and headers, as sent; Content-Length is added unless it or
                   Transfer-Encoding is there. {loguro} and the like stand for the demo project's keys,
                   {pat} for its token, {project} and {slug} for it, {now} and {8 days ago} for times;
                   in the body too
    before/        requests that come first, 1.http with its body 1.json and so on, each of which must be
                   accepted and stored. They and the case are then in a project of their own, whose only
                   key all the keys' names stand for; {dataset} is the dataset that was made, {cursor} what
                   they were told to go on from
    body.*         the body as sent: .pb protobuf, .json, .gz and so on; none: no body
    body.make.json instead of it, for bodies too large to keep: {"unit": text, "bytes": size, "encoding": gzip}
    reply.json     status, some headers, and the body: parsed; a protobuf reply by its field names
    rows.json      the rows of otel_logs in order, without empty columns; none: no rows
    genai.json     the same of genai_events
    errors.json    the same of error_events
    dataset.json   the rows of {dataset}

In a row ``{arrival}`` is the time of the request, ``{latest}`` and ``{oldest}`` are where a time too far
ahead or behind is moved to, and ``{project}`` is the demo project. In a row and in the
reply ``{id 0}``, ``{id 1}``, ... are the ids the gateway made for the rows. In the reply ``{arrival}`` is
also a time of the case, ``{ulid}`` a ULID of that time, ``{request id}`` the one the gateway made, and
``{cursor}`` one to go on from. After
each case a good request on the same path must be accepted and stored, whatever the case was.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import pytest

from gateway.config import Config
from gateway.dialects import registry
from tests.support.gateway import Gateway
from tests.support.projects import make_project
from tests.wire.exchange import UID, Names, body_of, exchange, request_bytes, send

CASES = Path(__file__).parent / "cases"
FOLDERS = sorted(path.parent for path in CASES.glob("*/*/request.http"))
SECOND_NS = 1_000_000_000
RETENTION_DAYS = 20_000
EDGES = {"{arrival}": 0, "{latest}": 3_600, "{oldest}": -(RETENTION_DAYS - 1) * 86_400}
MUTATIONS = 400
# The identity of a row is delivery's business, and different each time.
_ROWS = """
SELECT * EXCEPT (SpoolFrame, SpoolRow) REPLACE ({times})
FROM {table} WHERE SpoolFrame NOT IN (SELECT SpoolFrame FROM seen_frames) ORDER BY SpoolFrame, SpoolRow
"""
_DATASET_ROWS = "SELECT * EXCEPT (SpoolFrame, SpoolRow) FROM dataset_{dataset} ORDER BY SpoolFrame, SpoolRow"
_TIMES = {
    "otel_logs": ("Timestamp", "ObservedTimestamp"),
    "error_events": ("Timestamp",),
    "genai_events": ("Timestamp",),
}
_IDS = ("RecordId", "EventId")
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_ULID = re.compile(rf"[0-7][{_CROCKFORD}]{{25}}")
_MOMENT = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z")
_NUMBERS = count(1)


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


def good_request(folder: Path) -> tuple[str, bytes, str]:
    """Head, body and message of a request that is accepted on the path of the case's dialect."""
    message = f"after {folder.parent.name}/{folder.name}"
    entry = {"level": "info", "message": message, "source": "test"}
    path, entries = {
        "loguro": ("/", entry),
        "datasets": ("/", entry),
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


def names_of(gateway: Gateway) -> dict[str, str]:
    """The words of a case in the demo project."""
    demo, now = gateway.demo, datetime.now(UTC)
    times = {"now": now, "8 days ago": now - timedelta(days=8)}
    return {
        **demo["keys"],
        **{name: moment.isoformat(timespec="milliseconds")[:-6] + "Z" for name, moment in times.items()},
        "pat": demo["pat"],
        "project": demo["project_id"],
        "slug": demo["project"],
        "dataset": "1",
        "cursor": "",
    }


def prepared(gateway: Gateway, folder: Path) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """The words of a case, and the log records that were there before it, when what is to be before it is stored."""
    names = names_of(gateway)
    if not (folder / "before").exists():
        return names, []
    made = make_project(gateway, f"case-{next(_NUMBERS)}", "loguro")
    names |= {**dict.fromkeys(gateway.demo["keys"], made.key), "project": made.id, "slug": made.slug, "dataset": ""}
    for head in sorted((folder / "before").glob("*.http"), key=lambda path: int(path.stem)):
        body = head.with_suffix(".json")
        reply = exchange(gateway, head.read_text(), body.read_bytes() if body.exists() else b"", names)
        assert reply.status < 300, (head, reply.body)
        gateway.wait_until_stored()
        content = reply.content()
        if "dataset" in content:
            names["dataset"] = str(content["dataset"]["id"])
        names["cursor"] = content.get("nextCursor") or ""
    # Seen now, and so no rows of the case.
    return names, [row for table in _TIMES for row in stored_rows(gateway, table)]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: f"{folder.parent.name}/{folder.name}")
def test_case(gateway: Gateway, folder: Path) -> None:
    began_ns = time.time_ns()
    names, earlier = prepared(gateway, folder)
    request = (folder / "request.http").read_text()
    # A record that was there already would be left out.
    uid = f"u{next(_NUMBERS):04x}"
    sent = body_of(folder, uid)
    reply = exchange(gateway, request, sent, names)
    head, body, message = good_request(folder)
    after = exchange(gateway, head, body, names_of(gateway))
    ended_ns = time.time_ns()
    rows, errors, genai = (
        [
            json.loads(json.dumps(readable(row, names["project"], began_ns, ended_ns)).replace(uid, UID))
            for row in stored_rows(gateway, table)
        ]
        for table in _TIMES
    )
    content = with_ids_named(reply.content(), (*earlier, *rows, *errors), sent)
    dataset = int(names["dataset"] or content.get("dataset", {}).get("id", 0))
    words: dict[object, str] = {names["project"]: "{project}", dataset: "{dataset}"}
    if "\nx-request-id:" not in request.lower():
        words[reply.headers["x-request-id"]] = "{request id}"
    content = with_moments_named(content, words, began_ns, ended_ns)

    expected = json.loads((folder / "reply.json").read_text())
    assert {"status": reply.status, "body": content} == {name: expected[name] for name in ("status", "body")}
    assert {name: reply.headers.get(name) for name in expected["headers"]} == expected["headers"]
    assert reply.headers["x-request-id"]
    assert after.status in (200, 202)
    assert rows.pop()["Body"] == message
    assert rows == expected_rows(folder / "rows.json")
    assert errors == expected_rows(folder / "errors.json")
    assert genai == expected_rows(folder / "genai.json")
    if (folder / "dataset.json").exists():
        assert dataset_rows(gateway, names) == expected_rows(folder / "dataset.json")


def dataset_rows(gateway: Gateway, names: Names) -> list[dict[str, Any]]:
    """All rows of the case's dataset, without empty columns."""
    rows = gateway.query(_DATASET_ROWS.format(dataset=int(names["dataset"])))
    return [{name: value for name, value in row.items() if value != ""} for row in rows]


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


def with_moments_named(content: Any, names: dict[object, str], began_ns: int, ended_ns: int) -> Any:
    """The reply's content with what differs each time by its name: a word of ``names``, a ULID, a time."""
    if isinstance(content, list):
        return [with_moments_named(inner, names, began_ns, ended_ns) for inner in content]
    if isinstance(content, dict):
        if isinstance(content.get("id"), int):
            content["id"] = names.get(content["id"], content["id"])
        if content.get("nextCursor"):
            content["nextCursor"] = "{cursor}"
        return {name: with_moments_named(inner, names, began_ns, ended_ns) for name, inner in content.items()}
    if not isinstance(content, str):
        return content
    if content in names:
        return names[content]
    if _ULID.fullmatch(content):
        letters = [_CROCKFORD.index(letter) for letter in content[:10]]
        moment_ms = sum(value << 5 * place for place, value in enumerate(reversed(letters)))
        return "{ulid}" if began_ns // 1_000_000 <= moment_ms <= ended_ns // 1_000_000 else content
    if moment := _MOMENT.fullmatch(content):
        digits = moment[2] or ""
        unit_ns = 10 ** (9 - len(digits))
        seconds = int(datetime.fromisoformat(moment[1] + "+00:00").timestamp())
        moment_ns = seconds * SECOND_NS + int(digits.ljust(9, "0"))
        return "{arrival}" if began_ns // unit_ns * unit_ns <= moment_ns <= ended_ns else content
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
        request = request_bytes((folder / "request.http").read_text(), body_of(folder), names_of(gateway))
        answer = send(gateway, mutated(request, random), half_close=True)
        status = int(answer[9:12]) if answer else 0
        assert status < 500, f"seed {seed}, {folder}: {answer!r}"
        statuses.add(status)
    assert {200, 202, 400} <= statuses
    head, body, message = good_request(FOLDERS[0])
    assert exchange(gateway, head, body, names_of(gateway)).status in (200, 202)
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
    ended = [total(f"records_{how}") for how in ("accepted", "rejected", "repeated")]
    assert total("records_received") == sum(ended) > 0
    assert total("rows_accepted") == total("rows_stored")
    # A GenAI event is a row of two tables.
    events = metrics['weir_rows_accepted_total{table="genai_events"}']
    assert total("records_accepted") == total("rows_accepted") - events > 0 < events
    assert not [sample for sample in metrics if 'reason="internal"' in sample]


def test_every_dialect_has_cases_and_no_folder_is_forgotten() -> None:
    there = {dialect.name for dialect in registry(Config().limits, Config().ndjson)}
    assert {folder.parent.name for folder in FOLDERS} == there
    assert [path for path in CASES.glob("*/*") if path not in FOLDERS] == []
