"""Records with a log.record.uid are noted for whoever remembers them, and left out when they are known."""

from __future__ import annotations

import json
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from gateway._native import Columns, Decoded, KeyCells, OtlpPlan, otlp_json, otlp_protobuf
from gateway.schema import GENAI_EVENTS, OTEL_LOGS

PLAN = OtlpPlan(
    [(OTEL_LOGS.layout, OTEL_LOGS.feeds), (GENAI_EVENTS.layout, GENAI_EVENTS.feeds)],
    genai=[1],
)
BODY = [name for name, _ in OTEL_LOGS.layout].index("Body")
ENTRY_BYTES = 32
DEEP: Any = {"stringValue": "deep"}
for _ in range(40):
    DEEP = {"arrayValue": {"values": [DEEP]}}


def record(body: Any, uid: str | None = None, event: str = "") -> dict[str, Any]:
    attributes = [{"key": "log.record.uid", "value": {"stringValue": uid}}] if uid is not None else []
    return {
        "body": body if isinstance(body, dict) else {"stringValue": body},
        "attributes": attributes,
        "eventName": event,
    }


def request(*records: dict[str, Any]) -> bytes:
    return json.dumps({"resourceLogs": [{"scopeLogs": [{"logRecords": list(records)}]}]}).encode()


def decoded(body: bytes, *, known: bytes = b"", seed: str = "s") -> tuple[Decoded, Columns, Columns]:
    logs, events = Columns(OTEL_LOGS.layout), Columns(GENAI_EVENTS.layout)
    constants = {"project_id": "p", "uid_seed": seed}
    return otlp_json(body, PLAN, [logs, events], constants=constants, arrival_ns=1, known=known), logs, events


def numbers(uids: bytes) -> list[int]:
    """The records that they are of."""
    return [int.from_bytes(uids[at + 28 : at + ENTRY_BYTES], "little") for at in range(0, len(uids), ENTRY_BYTES)]


def marked(uids: bytes, *parts: int) -> bytes:
    """The same with what is kept."""
    changed = bytearray(uids)
    for index, part in enumerate(parts):
        changed[index * ENTRY_BYTES + 24] = part
    return bytes(changed)


def test_uids_are_noted_with_their_records_and_nothing_else_is() -> None:
    body = request(
        record("a", "1"), record("b"), record(DEEP, "2"), record("d", ""), record("e", "3"), record("f", "1")
    )
    found, logs, _ = decoded(body)
    assert logs.rows == found.rows == 5
    assert found.rejected == {"depth": 1}
    assert numbers(found.uids) == [0, 4, 5], "not of one that is rejected, nor an empty one"
    digests = [found.uids[at : at + 16] for at in range(0, len(found.uids), ENTRY_BYTES)]
    assert digests[0] == digests[2] != digests[1]
    assert decoded(body, seed="t")[0].uids[:16] != digests[0]
    assert decoded(body, seed="")[0].uids == b""
    message = ExportLogsServiceRequest()
    scope = message.resource_logs.add().scope_logs.add()
    for uid in ("1", "3"):
        attribute = scope.log_records.add().attributes.add(key="log.record.uid")
        attribute.value.string_value = uid
    logs, events = Columns(OTEL_LOGS.layout), Columns(GENAI_EVENTS.layout)
    constants = {"project_id": "p", "uid_seed": "s"}
    same = otlp_protobuf(message.SerializeToString(), PLAN, [logs, events], constants=constants, arrival_ns=1)
    assert [same.uids[at : at + 16] for at in (0, ENTRY_BYTES)] == digests[:2]


@pytest.mark.parametrize(
    ("parts", "logs", "events", "repeated"),
    [
        ((0, 0, 0), 4, 2, 0),
        ((0xFF, 0, 0), 3, 1, 1),
        ((0, 0xFF, 0), 3, 2, 1),
        ((1, 0, 0), 3, 2, 1),
        ((2, 0, 0), 4, 1, 0),
        ((0xFF, 0xFF, 0xFF), 1, 0, 3),
    ],
)
def test_what_an_output_has_is_not_written_again(parts: tuple[int, ...], logs: int, events: int, repeated: int) -> None:
    event = "gen_ai.user.message"
    body = request(record("a", "1", event), record("no uid"), record("b", "2"), record("c", "3", event))
    first, _, _ = decoded(body)
    again, to_logs, to_events = decoded(body, known=marked(first.uids, *parts))
    assert (to_logs.rows, to_events.rows) == (logs, events)
    assert again.rows == first.rows == 4, "the answer is the same"
    assert (again.repeated, again.outputs) == (repeated, (logs, events))
    left = [text for text, part in zip((b"a", b"b", b"c"), parts, strict=True) if not part & 1]
    native = to_logs.native()
    assert all((b"\x01" + text) in native for text in left)
    to_logs.cut(frame=1)
    to_events.cut(frame=1)


def test_what_is_known_must_be_whole() -> None:
    with pytest.raises(ValueError, match="whole"):
        decoded(request(record("a", "1")), known=bytes(31))


def test_of_a_request_s_equal_uids_the_first_counts() -> None:
    cells = KeyCells(bytearray(4096 + 512))
    now = {"who": 1 << 6, "now_s": 1_000, "keep_s": 100}
    uids = decoded(request(record("a", "1"), record("b", "2"), record("c", "1")))[0].uids
    what, known = cells.claim(uids, parts=1, **now)
    assert what == "ours"
    assert list(known[24::ENTRY_BYTES]) == [0, 0, 0xFF]
    assert numbers(known) == [0, 1, 2]
    assert cells.claim(uids, parts=1, **now) == ("claimed", b"")
    entries = cells.missing(known, part=0, parts=1)
    assert len(entries) == 2 * ENTRY_BYTES
    assert not any(numbers(entries)), "a number is of one request only"
    cells.keep(entries, **now)
    assert list(cells.claim(uids, parts=1, **now)[1][24::ENTRY_BYTES]) == [0xFF] * 3


def test_what_was_kept_whole_is_known_whole_and_of_the_rest_what_is_wanted() -> None:
    cells = KeyCells(bytearray(4096 + 512))
    now = {"who": 1 << 6, "now_s": 1_000, "keep_s": 100}
    uids = decoded(request(record("a", "1"), record("b", "2"), record("c", "3")))[0].uids
    _, known = cells.claim(uids, parts=2, **now)
    whole, half, none = (known[at : at + ENTRY_BYTES] for at in (0, ENTRY_BYTES, 2 * ENTRY_BYTES))
    cells.keep(cells.missing(whole, part=0, parts=1), **now)
    cells.keep(cells.missing(half, part=0, parts=2), **now)
    cells.release(half + none, who=now["who"])
    what, known = cells.claim(uids, parts=2, **now)
    assert (what, list(known[24::ENTRY_BYTES])) == ("ours", [0xFF, 1, 0])
    assert len(cells.missing(known, part=1, parts=2)) == 2 * ENTRY_BYTES
    cells.release(known, who=now["who"])
    what, known = cells.claim(uids, parts=1, **now)
    assert (what, list(known[24::ENTRY_BYTES])) == ("ours", [0xFF, 0xFF, 0])
    assert cells.missing(known, part=0, parts=1)[:16] == none[:16]


def test_where_there_is_no_room_requests_wait_and_records_are_not_remembered() -> None:
    cells = KeyCells(bytearray(4096 + 512))
    now = {"who": 1 << 6, "now_s": 1_000, "keep_s": 100}
    many = decoded(request(*(record("a", str(number)) for number in range(17))))[0].uids
    assert cells.claim(many, **now) == ("claimed", b"")
    what, known = cells.claim(many, parts=1, **now)
    assert (what, set(known[24::ENTRY_BYTES]), cells.displaced) == ("ours", {0}, 1)
    cells.keep(cells.missing(known, part=0, parts=1), **now)
    again = list(cells.claim(many, parts=1, **now)[1][24::ENTRY_BYTES])
    assert again.count(0xFF) == 16


def test_entries_that_a_disk_has_changed_name_no_part() -> None:
    cells = KeyCells(bytearray(4096 + 512))
    now = {"who": 1 << 6, "now_s": 1_000, "keep_s": 100}
    for part, parts in ((8, 9), (255, 255), (1, 1), (0, 0)):
        cells.keep(bytes(24) + bytes((part, parts)) + bytes(6), **now)
        assert cells.still_kept(bytes(24) + bytes((part, parts)) + bytes(6), now_s=1_000, keep_s=100) == b""
    with pytest.raises(ValueError, match="whole"):
        cells.keep(bytes(33), **now)
