"""What a schema and a record must be, and that nothing else gets in."""

from __future__ import annotations

import json

import pytest

from gateway.datasets.fields import FIELDS_MAX
from tests.datasets.rig import Project

FIELDS = {"word": "string", "amount": "number", "active": "boolean", "at": "timestamp"}
RECORD = {
    "timestamp": "2026-06-10T10:58:00Z",
    "context": {},
    "word": "a",
    "amount": 1,
    "active": False,
    "at": "2026-06-10T10:58:00.123456789+02:00",
}
NEVER: dict[str, tuple[object, ...]] = {
    "timestamp": (None, 0, 1.5, "", "now", "2026-06-10", "2026-13-01T00:00:00Z", [], {}, True, "1969-12-31T23:59:59Z",
                  "9999-01-01T00:00:00Z"),
    "context": (None, 0, "", "{}", [], [{}], True),
    "word": (None, 0, 1.5, [], {}, True),
    "amount": (None, "", "1", [], {}, True),
    "active": (None, 0, 1, "", "true", [], {}),
    "at": (None, 0, 1.5, "", "now", [], {}, True, "1969-12-31T23:59:59Z", "9999-01-01T00:00:00Z"),
}  # fmt: skip
WRONG = [(name, value) for name, values in NEVER.items() for value in values]
SCHEMAS = [
    b"", b"{", b"[]", b"null", b'"x"', b"{}", b'{"fields":{}}', b'{"fields":[]}', b'{"fields":null}',
    b'{"fields":{"a":"string"},"more":1}', b'{"a":"text"}', b'{"a":"String"}', b'{"a":null}', b'{"a":5}',
    b'{"a":["string"]}', b'{"a":{"type":"string"}}', b'{"timestamp":"timestamp"}', b'{"context":"string"}',
    b'{"SpoolFrame":"number"}', b'{"SpoolRow":"number"}', b'{"__traceId":"string"}', b'{"_part":"string"}',
    b'{"":"string"}', b'{"1a":"string"}', b'{"a b":"string"}', b'{"a.b":"string"}', b'{"a-b":"string"}',
    b'{"a`":"string"}', b'{"a\\n":"string"}', b'{"a\\u0000":"string"}', b'{"\\ud800":"string"}', b'{"\xff":"string"}',
    '{"\u0430":"string"}'.encode(), b'{"' + b"a" * 64 + b'":"string"}',
    b'{"a` String) ENGINE=Memory; DROP TABLE otel_logs; --":"string"}',
    b'{"a":"string) ENGINE=Memory; DROP TABLE otel_logs; --"}',
]  # fmt: skip


@pytest.fixture(scope="module")
def number(strict: Project) -> int:
    return strict.dataset(FIELDS)


@pytest.mark.parametrize(("name", "value"), WRONG, ids=[f"{name}={value!r}" for name, value in WRONG])
def test_a_wrong_value_refuses_the_request_and_is_named(strict: Project, number: int, name: str, value: object) -> None:
    status, answer = strict.send(f"/datasets/{number}/batch", [RECORD, {**RECORD, name: value}])
    assert status == 400
    assert f"[1].{name}" in answer["error"] or "outside the years" in answer["error"]


@pytest.mark.parametrize("name", RECORD)
def test_a_missing_member_refuses_the_request_and_is_named(strict: Project, number: int, name: str) -> None:
    lacking = {key: value for key, value in RECORD.items() if key != name}
    status, answer = strict.send(f"/datasets/{number}/batch", [RECORD, lacking])
    assert (status, answer["error"]) == (400, f"[1].{name} is required")
    assert strict.send(f"/datasets/{number}", lacking)[0] == 400


@pytest.mark.parametrize("name", ["extra", "Word", "SpoolFrame", "__traceId", "", "word`", "ProjectId"])
def test_a_member_nobody_declared_refuses_the_request(strict: Project, number: int, name: str) -> None:
    status, answer = strict.send(f"/datasets/{number}", [RECORD, {**RECORD, name: "x"}])
    assert (status, list(answer)) == (400, ["error"])


@pytest.mark.parametrize(
    "body", [b"", b"{", b"5", b"null", b'"x"', b"[5]", b"[[]]", b"[{},]", b'{"word":"\xff"}', b"NaN"]
)
def test_what_is_no_record_is_refused(strict: Project, number: int, body: bytes) -> None:
    for path in (f"/datasets/{number}", f"/datasets/{number}/batch"):
        status, answer = strict.send(path, body)
        assert (status, list(answer)) == (400, ["error"])


def test_what_was_refused_left_nothing_behind_and_what_is_right_is_kept_exactly(project: Project) -> None:
    number = project.dataset(FIELDS)
    for name, value in WRONG:
        assert project.send(f"/datasets/{number}/batch", [RECORD, {**RECORD, name: value}])[0] == 400
    nasty = "Robert'); DROP TABLE x;-- \\ \" ` \t\n\r\x00 東京 \U0001f600"
    kept = {**RECORD, "word": nasty, "amount": -0.1, "active": True}
    assert project.send(f"/datasets/{number}", kept)[0] == 202
    query = {
        "range": {"from": "2026-06-10T00:00:00Z", "to": "2026-06-11T00:00:00Z"},
        "select": [{"field": name} for name in ("timestamp", *FIELDS)],
        "where": [{"field": "word", "op": "=", "value": nasty}],
    }
    row = {"timestamp": RECORD["timestamp"], "word": nasty, "amount": -0.1, "active": True,
           "at": "2026-06-10T08:58:00.123456789Z"}  # fmt: skip
    assert project.rows(number, query) == [row]
    assert project.rows(number, {**query, "where": []}) == [row]


def test_old_records_stay_as_they_are(project: Project) -> None:
    number = project.dataset({"word": "string"})
    times = ("1970-01-01T00:00:00Z", "1999-12-31T23:59:59.5Z", "2100-01-01T00:00:00Z", "2261-12-31T23:59:59Z")
    assert project.send(f"/datasets/{number}", [{"timestamp": t, "context": {}, "word": "x"} for t in times])[0] == 202
    query = {
        "range": {"from": times[0], "to": times[-1]},
        "select": [{"field": "timestamp"}],
        "orderBy": [{"field": "timestamp"}],
    }
    assert [row["timestamp"] for row in project.rows(number, query)] == list(times)


@pytest.mark.parametrize("body", SCHEMAS)
def test_a_schema_that_is_none_is_refused_and_nothing_is_registered(strict: Project, body: bytes) -> None:
    pending = strict.control("GET", "/schema")
    status, answer = strict.control("POST", "/schema", body)
    assert (status, list(answer)) == (400, ["error"])
    assert pending == strict.control("GET", "/schema") == (404, {"error": "Dataset schema not found"})


def test_as_many_fields_as_there_may_be(project: Project) -> None:
    fields = {f"f{place}": "number" for place in range(FIELDS_MAX)}
    created = project.control("POST", "", {"name": "wide"})[1]["dataset"]["id"]
    assert project.control("POST", f"/{created}/schema", fields | {"more": "number"})[0] == 400
    assert project.control("POST", f"/{created}/schema", fields)[0] == 201
    record = {"timestamp": RECORD["timestamp"], "context": {}, **dict.fromkeys(fields, 1)}
    assert project.send(f"/datasets/{created}", record)[0] == 202
    project.house.gateway.wait_until_stored()
    assert project.house.gateway.query(f"SELECT f61 FROM dataset_{created}") == [{"f61": 1}]


@pytest.mark.parametrize(
    "name", ["fields", "select", "SELECT", "from", "Timestamp", "count", "null", "p0", "frame", "version"]
)
def test_words_of_other_languages_are_names_like_any(project: Project, name: str) -> None:
    number = project.dataset({name: "string", "a" * 63: "number"})
    record = {"timestamp": RECORD["timestamp"], "context": {}, name: "x", "a" * 63: 1}
    assert project.send(f"/datasets/{number}", json.dumps(record).encode())[0] == 202
    query = {
        "range": {"from": "2026-06-10T00:00:00Z", "to": "2026-06-11T00:00:00Z"},
        "select": [{"field": name}, {"aggregate": "count", "as": "records"}],
        "where": [{"field": name, "op": "=", "value": "x"}],
        "groupBy": [name],
        "orderBy": [{"field": name, "direction": "desc"}],
    }
    assert project.rows(number, query) == [{name: "x", "records": "1"}]
