"""Streamlogia's reads: whatever is asked for, the answer is that of a model in Python."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import urllib.error
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import Message
from random import Random
from typing import Any

import pytest

from tests.reading.rig import House, Project

TRIES = int(os.environ.get("WEIR_EXAMPLES", "60"))
NOON_NS = 1_736_942_400 * 10**9
SECOND_NS = 10**9
LEVELS = ("DEBUG", "INFO", "WARN", "ERROR")
WINDOW = (("from", "2025-01-15T00:00:00Z"), ("to", "2025-01-16T00:00:00Z"))
INFRA = {"host": "web-1", "pod": "pod-7", "namespace": "shop", "region": "eu", "cloudResourceId": "i-1"}


@dataclass(frozen=True)
class Row:
    """What is known of a row that was sent."""

    message: str
    level: str
    source: str
    time_ns: int
    tags: tuple[str, ...] = ()
    meta: Mapping[str, str] = field(default_factory=dict)
    source_type: str = "app"

    def is_found(self, parameters: Iterable[tuple[str, str]]) -> bool:
        """Whether all of the filters find it."""
        return all(self._is_found_by(name, value) for name, value in parameters)

    def _is_found_by(self, name: str, value: str) -> bool:
        words = [word.strip() for word in value.split(",") if word.strip()]
        match name:
            case "level":
                return self.level in words
            case "q" | "search":
                return value.lower() in self.message.lower() or value.lower() in self.source.lower()
            case "source":
                return value in ("", self.source)
            case "tag":
                return set(words) <= set(self.tags)
            case "source_type":
                return value == self.source_type
            case "from":
                return self.time_ns >= nanoseconds(value)
            case "to":
                return self.time_ns <= nanoseconds(value)
        return value in ("", self.meta.get(name.removeprefix("meta.")))


def nanoseconds(text: str) -> int:
    """Of a time in UTC, as the model has it."""
    whole, _, fraction = (text[:-1] if "." in text else text[:-1] + ".").partition(".")
    seconds = int(datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp())
    return seconds * SECOND_NS + int(fraction.ljust(9, "0"))


def written(time_ns: int) -> str:
    """A time as answers have it: no more digits than it takes."""
    seconds, fraction = divmod(time_ns, SECOND_NS)
    digits = f".{fraction:09d}".rstrip("0") if fraction else ""
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:19] + digits + "Z"


def path(project: Project, rest: str = "") -> str:
    return f"/v1/projects/{project.id}/logs{rest}"


def read(project: Project, *parameters: tuple[str, object], rest: str = "") -> Any:
    """What is answered, which has to be a 200."""
    sent = [(name, str(value)) for name, value in parameters]
    status, answer = project.house.get(path(project, rest), *sent)
    assert status == 200, (parameters, answer)
    return answer


def pages(project: Project, *parameters: tuple[str, object]) -> list[dict[str, Any]]:
    """The entries of all pages."""
    entries: list[dict[str, Any]] = []
    cursor: str | None = ""
    while cursor is not None:
        more = [("cursor", cursor)] if cursor else []
        page = read(project, *parameters, *more)
        entries += page["logs"]
        cursor = page["nextCursor"]
        assert cursor is None or page["logs"]
    return entries


def messages(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    return [entry["message"] for entry in entries]


def fetch(house: House, address: str) -> tuple[int, bytes, Message]:
    """Status, body and headers, whatever the body is."""
    request = urllib.request.Request(
        f"http://{house.gateway.ingest[0]}{address}", headers={"Authorization": f"Bearer {house.token}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), error.headers


def send(project: Project, rows: Sequence[Row]) -> list[str]:
    """Sends rows of the source type ``app``; their ids."""
    entries = [
        {
            "projectId": "7d3c1c0e-5a39-4f0e-9a57-6a3b2d5d9f11",
            "level": row.level,
            "message": row.message,
            "source": row.source,
            "timestamp": written(row.time_ns),
            "tags": list(row.tags),
            "meta": dict(row.meta),
        }
        for row in rows
    ]
    reply = project.house.post("/v1/ingest", json.dumps(entries).encode(), project.key)
    ids: list[str] = reply["ids"]
    return ids


def send_bulk(project: Project, rows: Sequence[Row]) -> None:
    """Sends rows of the source type ``infra``."""
    lines = [
        {"ts": written(row.time_ns), "level": row.level, "message": row.message, "source": row.source,
         "tags": list(row.tags), "attributes": dict(row.meta), **INFRA}
        for row in rows
    ]  # fmt: skip
    project.house.post("/v1/ingest/bulk", json.dumps(lines).encode(), project.key)


def send_from_elsewhere(project: Project, rows: Sequence[Row]) -> None:
    """Sends rows without tags and sources as Proliferate does, in its words for levels."""
    words = {"DEBUG": "trace", "INFO": "info", "WARN": "warn", "ERROR": "fatal"}
    project.send(
        [
            {"timestamp": written(row.time_ns), "level": words[row.level], "message": row.message,
             "attributes": dict(row.meta)}
            for row in rows
        ]
    )  # fmt: skip


def invented(random: Random, count: int, name: str, source_type: str = "app", *, bare: bool = False) -> list[Row]:
    """Rows that have much in common, so that filters find some; many have the very same time."""
    return [
        Row(
            message=f"{name} {number} {random.choice(('Order created', 'order FAILED', 'cache miss', ''))}".strip(),
            level=random.choice(LEVELS),
            source="" if bare else random.choice(("checkout", "cart", "Orders")),
            time_ns=NOON_NS + random.choice((0, 0, 1, 999_999_999, SECOND_NS, 90 * SECOND_NS, 4000 * SECOND_NS)),
            tags=() if bare else tuple(random.sample(("a", "b", "c d", "ünï"), random.randint(0, 3))),
            meta={
                key: random.choice(("1", "2", "x y", "true"))
                for key in random.sample(("n", "o.p", "straße"), random.randint(0, 3))
            },
            source_type=source_type,
        )
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def model(house: House) -> tuple[Project, list[Row]]:
    """A project, and its rows; another has rows like them."""
    random = Random(28)
    project, twin = house.project("streamlogia"), house.project("streamlogia-twin")
    app, infra = invented(random, 120, "app"), invented(random, 60, "infra", "infra")
    elsewhere = invented(random, 60, "elsewhere", bare=True)
    for owner in (twin, project):
        send(owner, app)
        send_bulk(owner, infra)
        send_from_elsewhere(owner, elsewhere)
    return project, [*app, *infra, *elsewhere]


def some_filters(random: Random) -> list[tuple[str, str]]:
    """A few filters, that may contradict each other."""
    chosen = {
        "level": ",".join(random.sample(LEVELS, random.randint(1, 3))),
        "q": random.choice(("order", "FAILED", "CHECK", "elsewhere", "7", "nothing")),
        "source": random.choice(("checkout", "Orders", "orders", "")),
        "tag": random.choice(("a", "a, b", "c d", "ünï", "d")),
        "meta.n": random.choice(("1", "2", "x y", "3", "")),
        "meta.o.p": "true",
        "meta.straße": "x y",
        "source_type": random.choice(("app", "infra")),
        "from": written(NOON_NS + random.choice((0, 1))),
        "to": written(NOON_NS + random.choice((1, SECOND_NS - 1, 90 * SECOND_NS))),
    }
    return [(name, chosen[name]) for name in random.sample(sorted(chosen), random.randint(0, 3))]


def test_pages_and_totals_are_those_of_the_model(model: tuple[Project, list[Row]]) -> None:
    project, rows = model
    found = 0
    for seed in range(TRIES // 2):
        random = Random(seed)
        parameters = some_filters(random)
        entries = pages(project, *parameters, ("limit", random.choice((29, 1000))), ("total", "none"))
        wanted = [row for row in rows if row.is_found(parameters)]
        assert sorted(messages(entries)) == sorted(row.message for row in wanted), parameters
        times = [nanoseconds(entry["ts"]) for entry in entries]
        assert times == sorted(times, reverse=True)
        for total in ("bounded", "exact"):
            page = read(project, *parameters, ("total", total), ("limit", 1))
            assert (page["total"], page["totalIsExact"]) == (len(wanted), True), parameters
        found += len(wanted)
    assert found > 5 * TRIES, "the model has to find something, or nothing was claimed"


def test_counts_over_time_and_by_value_are_those_of_the_model(model: tuple[Project, list[Row]]) -> None:
    project, rows = model
    for seed in range(TRIES // 2):
        random = Random(seed)
        filters = [pair for pair in some_filters(random) if pair[0] in ("level", "source_type")]
        wanted = [row for row in rows if row.is_found(filters)]
        stats = [pair for pair in filters if pair[0] == "source_type"]
        assert read(project, *stats, rest="/stats") == {
            level: sum(row.level == level for row in rows if row.is_found(stats)) for level in LEVELS
        }
        interval, step_s = random.choice((("1h", 3600), ("6h", 21_600), ("1d", 86_400)))
        series = read(project, *filters, *WINDOW, ("interval", interval), rest="/timeseries")
        counted = Counter((row.time_ns // SECOND_NS // step_s * step_s, row.level) for row in wanted)
        assert {
            (nanoseconds(bucket["ts"]) // SECOND_NS, level): count
            for bucket in series["buckets"]
            for level, count in bucket["counts"].items()
            if count
        } == counted
        group_by = random.choice(("level", "source", "source_type", "meta.n", "meta.straße", "meta.nothing"))
        groups = read(project, *filters, *WINDOW, ("groupBy", group_by), rest="/aggregate")["groups"]
        keys = Counter(value_of(row, group_by) for row in wanted)
        assert groups == [
            {"key": key, "count": count}
            for key, count in sorted(keys.items(), key=lambda pair: (-pair[1], pair[0].encode()))
        ]


def value_of(row: Row, group_by: str) -> str:
    if group_by.startswith("meta."):
        return row.meta.get(group_by[5:], "")
    return str(getattr(row, group_by))


def test_an_export_holds_what_the_pages_hold(model: tuple[Project, list[Row]]) -> None:
    project, rows = model
    status, body, headers = fetch(project.house, path(project, "/export?level=ERROR,WARN&limit=3"))
    lines = [json.loads(line) for line in body.splitlines()]
    assert (status, headers["Content-Type"], headers["X-Export-Row-Limit"]) == (200, "application/x-ndjson", "100000")
    assert headers["Content-Disposition"] == f'attachment; filename="logs-{project.id}.ndjson"'
    assert lines == pages(project, ("level", "ERROR,WARN")) != []
    status, body, headers = fetch(project.house, path(project, "/export?format=csv&maxRows=200"))
    assert (headers["Content-Type"], headers["X-Export-Row-Limit"]) == ("text/csv; charset=utf-8", "200")
    table = list(csv.DictReader(io.StringIO(body.decode(), newline="")))
    assert list(table[0]) == [
        "id",
        "timestamp",
        "level",
        "source",
        "message",
        "projectId",
        "sourceType",
        "tags",
        "meta",
    ]
    entries = pages(project, ("limit", 200))[:200]
    assert [(line["id"], line["message"], line["tags"]) for line in table] == [
        (entry["id"], entry["message"], ",".join(entry["tags"])) for entry in entries
    ]
    assert [json.loads(line["meta"] or "{}") for line in table] == [entry["meta"] for entry in entries]
    assert len(rows) > 200


def test_every_entry_is_found_by_its_id(model: tuple[Project, list[Row]]) -> None:
    project, rows = model
    entries = pages(project)
    assert len({entry["id"] for entry in entries}) == len(rows)
    for entry in entries[:: len(entries) // 12]:
        assert read(project, rest=f"/{entry['id']}") == entry
        assert read(project, rest=f"/{entry['id'].upper()}") == entry
        assert project.house.get(f"/v1/query/logs/{entry['id']}") == (200, entry)


def test_an_entry_of_ingest_comes_back_as_it_was_sent(project: Project) -> None:
    sent = {
        "projectId": "7d3c1c0e-5a39-4f0e-9a57-6a3b2d5d9f11", "level": "INFO", "message": "Hello, Streamlogia!",
        "source": "my-service", "timestamp": "2025-01-15T12:00:00.123456789+01:00", "tags": ["orders", "b"],
        "meta": {"order_id": "o_456", "amount": 12.5, "nested": {"yes": True}},
    }  # fmt: skip
    reply = project.house.post("/v1/ingest", json.dumps([sent]).encode(), project.key)
    (entry,) = read(project)["logs"]
    time = "2025-01-15T11:00:00.123456789Z"
    assert entry == {
        "id": reply["ids"][0], "pid": project.id, "projectId": project.id, "level": "INFO",
        "message": "Hello, Streamlogia!", "source": "my-service", "timestamp": time, "ts": time,
        "tags": ["orders", "b"], "meta": {"order_id": "o_456", "amount": 12.5, "nested.yes": True},
        "sourceType": "app", "sourceId": None, "attributes": {},
    }  # fmt: skip
    assert read(project, rest=f"/{entry['id']}") == entry


def test_an_entry_of_bulk_has_its_attributes_and_where_it_came_from(project: Project) -> None:
    send_bulk(project, [Row("m", "WARN", "s", NOON_NS, meta={"a": "b"})])
    (entry,) = read(project)["logs"]
    assert {name: entry[name] for name in INFRA} == INFRA
    assert (entry["attributes"], entry["sourceType"]) == ({"a": "b"}, "infra")
    assert uuid.UUID(entry["id"]).version == 8


def test_rows_of_every_dialect_have_one_of_the_four_levels(house: House, project: Project) -> None:
    records = [
        {"severityNumber": number, "severityText": text, "body": {"stringValue": f"{number} {text}"},
         "traceId": "0af7651916cd43dd8448eb211c80319c"}
        for number, text in ((1, ""), (8, ""), (9, "Severe"), (13, ""), (17, ""), (24, ""), (0, "Fatal"), (0, "odd"))
    ]  # fmt: skip
    otlp = {"resourceLogs": [{"resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "shop"}}]},
                              "scopeLogs": [{"logRecords": records}]}]}  # fmt: skip
    house.post("/v1/logs", json.dumps(otlp).encode(), project.key)
    house.post("/", b'{"level":"heartbeat","message":"loguro"}', project.key)
    entries = {entry["message"]: entry for entry in read(project)["logs"]}
    assert {message: entry["level"] for message, entry in entries.items()} == {
        "1 ": "DEBUG", "8 ": "DEBUG", "9 Severe": "INFO", "13 ": "WARN", "17 ": "ERROR", "24 ": "ERROR",
        "0 Fatal": "ERROR", "0 odd": "INFO", "loguro": "INFO",
    }  # fmt: skip
    entry = entries["1 "]
    assert (entry["source"], entry["sourceType"]) == ("shop", "app")
    assert entry["attributes"] == {"service.name": "shop", "trace_id": "0af7651916cd43dd8448eb211c80319c"}
    for level in LEVELS:
        found = messages(read(project, ("level", level.lower()))["logs"])
        assert sorted(found) == sorted(message for message in entries if entries[message]["level"] == level)


def test_pages_meet_without_gap_or_overlap_though_all_rows_have_one_time_and_some_no_id(project: Project) -> None:
    send(project, [Row(f"app {number}", "INFO", "s", NOON_NS) for number in range(130)])
    send_from_elsewhere(project, [Row(f"elsewhere {number}", "INFO", "", NOON_NS) for number in range(130)])
    whole = read(project, ("limit", 1000))["logs"]
    for limit in (7, 26, 260):
        assert pages(project, ("limit", limit), ("total", "none")) == whole
    assert sorted(messages(whole)) == sorted(f"{name} {at}" for name in ("app", "elsewhere") for at in range(130))


def test_rows_that_arrive_meanwhile_move_no_page(project: Project) -> None:
    send(project, [Row(f"old {number}", "INFO", "s", NOON_NS) for number in range(6)])
    whole = read(project)["logs"]
    first = read(project, ("limit", 3))
    send(project, [Row("new", "INFO", "s", NOON_NS + 1)])
    assert read(project, ("limit", 3), ("cursor", first["nextCursor"]))["logs"] == whole[3:]


def test_a_full_page_has_a_cursor_and_the_last_may_lead_to_nothing(project: Project) -> None:
    send(project, [Row(str(number), "INFO", "s", NOON_NS + number) for number in range(4)])
    page = read(project, ("limit", 4))
    assert (len(page["logs"]), page["nextCursor"] is None) == (4, False)
    behind = read(project, ("limit", 4), ("cursor", page["nextCursor"]))
    assert behind == {"logs": [], "nextCursor": None, "total": 4, "totalIsExact": True}
    assert read(project, ("limit", 5))["nextCursor"] is None
    decoded = json.loads(base64.urlsafe_b64decode(page["nextCursor"] + "=="))
    assert list(decoded) == ["ts", "id"]
    padded = page["nextCursor"] + "=" * (-len(page["nextCursor"]) % 4)
    assert read(project, ("limit", 4), ("cursor", padded)) == behind


def test_a_bounded_total_stops_at_ten_thousand(project: Project) -> None:
    for _ in range(3):
        send(project, [Row("m", "INFO", "s", NOON_NS)] * 3334)
    page = read(project)
    assert (len(page["logs"]), page["total"], page["totalIsExact"]) == (100, 10_000, False)
    page = read(project, ("total", "exact"), ("limit", 5000))
    assert (len(page["logs"]), page["total"], page["totalIsExact"]) == (1000, 10_002, True)
    page = read(project, ("total", "none"))
    assert ("total" in page, page["totalIsExact"]) == (False, False)
    _, body, _ = fetch(project.house, path(project, "/export"))
    assert len({json.loads(line)["id"] for line in body.splitlines()}) == 10_002


def test_a_time_that_was_shown_finds_its_row_again(project: Project) -> None:
    send(project, [Row(str(number), "INFO", "s", NOON_NS + number) for number in range(3)])
    shown = read(project)["logs"][1]["timestamp"]
    assert messages(read(project, ("from", shown), ("to", shown))["logs"]) == ["1"]
    assert messages(read(project, ("from", shown.replace("Z", "+00:00")))["logs"]) == ["2", "1"]
    status, page, _ = project.house.ask(path(project, "?to=2025-01-15T13:00:00.000000001+01:00"))
    assert (status, messages(page["logs"])) == (200, ["1", "0"])


def test_the_first_bucket_begins_before_the_window_and_every_level_is_in_each(project: Project) -> None:
    send(project, [Row("m", "ERROR", "s", NOON_NS + 90 * SECOND_NS)])
    window = (("from", "2025-01-15T11:59:30Z"), ("to", "2025-01-15T12:02:00Z"))
    answer = read(project, *window, ("interval", "1m"), rest="/timeseries")
    none = dict.fromkeys(LEVELS, 0)
    assert answer == {
        "interval": "1m",
        "from": "2025-01-15T11:59:30Z",
        "to": "2025-01-15T12:02:00Z",
        "buckets": [
            {"ts": "2025-01-15T11:59:00Z", "counts": none},
            {"ts": "2025-01-15T12:00:00Z", "counts": none},
            {"ts": "2025-01-15T12:01:00Z", "counts": {**none, "ERROR": 1}},
        ],
    }
    to_the_row = (("from", "2025-01-15T12:00:00Z"), ("to", "2025-01-15T12:01:30Z"), ("interval", "1m"))
    counts = [bucket["counts"]["ERROR"] for bucket in read(project, *to_the_row, rest="/timeseries")["buckets"]]
    assert counts == [0, 0], "to is not included"


def test_without_a_window_it_is_the_last_day_by_the_hour(project: Project) -> None:
    project.house.post("/v1/ingest", b'{"level":"INFO","message":"now","source":"s"}', project.key)
    answer = read(project, rest="/timeseries")
    assert (answer["interval"], len(answer["buckets"])) == ("1h", 25)
    assert nanoseconds(answer["to"]) - nanoseconds(answer["from"]) == 86_400 * SECOND_NS
    assert answer["buckets"][-1]["counts"]["INFO"] + answer["buckets"][-2]["counts"]["INFO"] == 1
    groups = read(project, rest="/aggregate")
    assert (groups["groupBy"], groups["groups"]) == ("level", [{"key": "INFO", "count": 1}])


def test_groups_are_as_many_as_asked_for(project: Project) -> None:
    send(project, [Row("m", "INFO", f"source {number % 60:02}", NOON_NS) for number in range(90)])
    answer = read(project, *WINDOW, ("groupBy", "source"), rest="/aggregate")
    assert len(answer["groups"]) == 50
    assert answer["groups"][0] == {"key": "source 00", "count": 2}
    for limit, count in (("3", 3), ("501", 60)):
        answer = read(project, *WINDOW, ("groupBy", "source"), ("limit", limit), rest="/aggregate")
        assert len(answer["groups"]) == count


def test_cells_that_a_spreadsheet_would_compute_are_made_harmless(project: Project) -> None:
    formulas = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "＝1", 'a "b", c\nd', "plain = 1"]
    send(project, [Row(text, "INFO", text, NOON_NS, tags=(text,)) for text in formulas])
    _, body, _ = fetch(project.house, path(project, "/export?format=csv"))
    table = list(csv.DictReader(io.StringIO(body.decode(), newline="")))
    shown = {text if text in formulas[-2:] else f"'{text}" for text in formulas}
    for column in ("message", "source", "tags"):
        assert {line[column] for line in table} == shown


def test_an_export_of_nothing_is_one_all_the_same(project: Project) -> None:
    assert fetch(project.house, path(project, "/export"))[:2] == (200, b"")
    status, body, _ = fetch(project.house, path(project, "/export?format=csv"))
    assert (status, body.count(b"\n")) == (200, 1)


def test_an_export_of_logs_too_large_for_one_page_comes_all_the_same(project: Project) -> None:
    for number in range(20):
        send(project, [Row(f"{number} " + "x" * 1_000_000, "INFO", "s", NOON_NS + number)])
    status, answer = project.house.get(path(project))
    assert (status, answer["details"][0]["field"]) == (400, "limit")
    status, body, _ = fetch(project.house, path(project, "/export"))
    assert [json.loads(line)["message"].split()[0] for line in body.splitlines()] == [
        str(number) for number in reversed(range(20))
    ]


def test_the_query_api_reads_the_projects_it_is_asked_for(house: House, project: Project, other: Project) -> None:
    for owner in (project, other):
        send(owner, [Row(f"of {owner.slug}", "INFO", "query-api", NOON_NS)])

    def found(*parameters: tuple[str, str]) -> list[str]:
        status, page = house.get("/v1/query/logs", ("source", "query-api"), *parameters)
        assert status == 200, page
        return sorted(messages(page["logs"]))

    both = sorted(f"of {owner.slug}" for owner in (project, other))
    assert set(both) <= set(found())
    assert found(("projectId", project.id)) == [f"of {project.slug}"]
    assert found(("projectId", project.id), ("projectId", other.slug)) == both
    assert found(("projectId", f"{project.id},{other.id},{project.slug}")) == both
    assert house.get("/v1/query/stats", ("projectId", project.id)) == (200, {**dict.fromkeys(LEVELS, 0), "INFO": 1})
    _, projects = house.get("/v1/query/projects")
    assert {"id": project.id, "name": project.slug} in projects["projects"]
    _, body, headers = fetch(house, f"/v1/query/logs/export?projectId={project.id}")
    assert (messages([json.loads(line) for line in body.splitlines()]), headers["X-RateLimit-Limit"]) == (
        [f"of {project.slug}"],
        "120",
    )


@pytest.mark.parametrize(
    ("rest", "parameters", "name"),
    [
        ("", {"level": "loud"}, "level"),
        ("", {"limit": "0"}, "limit"),
        ("", {"limit": "-1"}, "limit"),
        ("", {"limit": "1.5"}, "limit"),
        ("", {"limit": "٣"}, "limit"),
        ("", {"cursor": "garbage"}, "cursor"),
        ("", {"cursor": "e30"}, "cursor"),
        ("", {"cursor": "x" * 5000}, "cursor"),
        ("", {"total": "all"}, "total"),
        ("", {"from": "yesterday"}, "from"),
        ("", {"to": "2025-02-30T00:00:00Z"}, "to"),
        ("", {"to": "2025-01-15T12:00:00"}, "to"),
        ("", {"from": "2025-01-15T12:00:01Z", "to": "2025-01-15T12:00:00Z"}, "from"),
        ("", {"source_type": "other"}, "source_type"),
        ("", {"q": "a", "search": "b"}, "q"),
        ("", {"search": "x" * 1001}, "search"),
        ("", {"meta.": "x"}, "meta."),
        ("", {"levels": "INFO"}, "levels"),
        ("", {f"meta.{number}": "x" for number in range(21)}, "meta."),
        ("", {"tag": ",".join(map(str, range(21)))}, "tag"),
        ("/stats", {"level": "INFO"}, "level"),
        ("/timeseries", {"interval": "2m"}, "interval"),
        ("/timeseries", {"interval": "15m"}, "interval"),
        ("/timeseries", {"from": "2020-01-01T00:00:00Z"}, "interval"),
        ("/timeseries", {"from": "2025-01-15T12:00:00Z", "to": "2025-01-15T12:00:00Z"}, "from"),
        ("/timeseries", {"from": "0001-01-01T00:00:00+23:59", "to": "0001-01-02T00:00:00Z"}, "from"),
        ("/aggregate", {"groupBy": "message"}, "groupBy"),
        ("/aggregate", {"groupBy": "meta."}, "groupBy"),
        ("/aggregate", {"groupBy": "level.x"}, "groupBy"),
        ("/aggregate", {"limit": "0"}, "limit"),
        ("/export", {"format": "xml"}, "format"),
        ("/export", {"maxRows": "0"}, "maxRows"),
        ("/export", {"cursor": "garbage"}, "cursor"),
        ("/not-a-uuid", {}, "log_id"),
    ],
)
def test_a_value_that_is_not_acceptable_is_named(
    model: tuple[Project, list[Row]], rest: str, parameters: dict[str, str], name: str
) -> None:
    project, _ = model
    status, reply = project.house.get(path(project, rest), *parameters.items())
    assert (status, reply["error"], reply["code"]) == (400, "invalid_argument", "invalid_argument")
    assert (reply["details"], name) == ([{"field": name, "message": reply["message"]}], name)


def test_bounds_themselves_are_acceptable(model: tuple[Project, list[Row]]) -> None:
    project, _ = model
    assert len(read(project, ("limit", "9" * 19))["logs"]) == 240
    two_hours = (("from", "2025-01-15T11:00:00Z"), ("to", "2025-01-15T13:00:00Z"))
    assert len(read(project, *two_hours, ("interval", "1m"), rest="/timeseries")["buckets"]) == 120
    days = (("from", "2021-01-01T00:00:00Z"), ("to", "2025-02-09T00:00:00Z"), ("interval", "1d"))
    assert len(read(project, *days, rest="/timeseries")["buckets"]) == 1500
    assert len(read(project, ("from", "0001-01-01T00:00:00+23:59"), ("to", "9999-12-31T23:59:59Z"))["logs"]) == 100
    read(project, ("search", "x" * 1000))
    read(project, *(("tag", str(number)) for number in range(20)))


def test_what_is_not_there_is_404_and_who_has_no_token_learns_nothing(house: House, project: Project) -> None:
    nobody = "7d3c1c0e-5a39-4f0e-9a57-6a3b2d5d9f11"
    paths = [f"/v1/projects/nobody/logs{rest}" for rest in ("", "/stats", "/timeseries", "/aggregate", "/export")]
    paths += [f"{path(project)}/{nobody}", f"/v1/query/logs/{nobody}", "/v1/query/logs?projectId=nobody"]
    for address in paths:
        status, reply, _ = house.ask(address)
        assert (status, reply["code"]) == (404, "not_found"), address
        status, reply, _ = house.ask(address, token="pat_unknown")
        assert (status, reply["code"]) == (401, "unauthenticated"), address
    assert house.get(path(project), token=project.key)[0] == 401


def test_a_log_of_another_project_is_not_shown(project: Project, other: Project) -> None:
    (log_id,) = send(other, [Row("m", "INFO", "s", NOON_NS)])
    assert read(other, rest=f"/{log_id}")["message"] == "m"
    assert project.house.get(path(project, f"/{log_id}"))[0] == 404
