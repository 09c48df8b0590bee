"""What is large is decoded and cut without the GIL, and nobody can touch the columns meanwhile.

No forced switch of threads happens in these tests: whoever holds the GIL keeps it until it lets go by itself. So
what another thread did during a call, it could do only because the call let go of the GIL.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from gateway._native import Columns, EntryPlan, OtlpPlan, crc32c, entries, json_check, otlp_json, otlp_protobuf
from tests.unit.native.test_hostile import message

LAYOUT = (("body", "String"), ("map", "Map(LowCardinality(String), String)"))
OTLP = OtlpPlan([(LAYOUT, {"body": "body", "map": "attributes"})])
ENTRIES = EntryPlan([(LAYOUT, [("m", "text", "body", "")], {})], unknown="map")
ARRIVAL_NS = 1_700_000_000_000_000_000
LARGE, SMALL = 20_000, 20
DEADLINE_S = 60.0


def protobuf(records: int) -> bytes:
    record = message(2, message(5, message(1, b"x" * 60)))
    return message(1, message(2, record * records))


def otlp_text(records: int) -> bytes:
    record = {"body": {"stringValue": "x" * 60}}
    return json.dumps({"resourceLogs": [{"scopeLogs": [{"logRecords": [record] * records}]}]}).encode()


def entry_text(records: int) -> bytes:
    return json.dumps([{"m": "x" * 60, "k": 1}] * records).encode()


def lines_text(records: int) -> bytes:
    return b'{"m":"x","k":[1,2]}\n' * records


def calls(records: int, columns: Columns) -> dict[str, Callable[[], object]]:
    """Each call that lets go of the GIL when it has much to do."""
    bodies = {f.__name__: f(records) for f in (protobuf, otlp_text, entry_text, lines_text)}

    def cleared(decode: Callable[[], object]) -> Callable[[], object]:
        def run() -> None:
            columns.clear()
            decode()

        return run

    def cut() -> None:
        entries(bodies["entry_text"], ENTRIES, [columns], constants={}, arrival_ns=ARRIVAL_NS)
        columns.cut(frame=1, compression="none")

    return {
        "otlp_protobuf": cleared(
            lambda: otlp_protobuf(bodies["protobuf"], OTLP, [columns], constants={}, arrival_ns=ARRIVAL_NS)
        ),
        "otlp_json": cleared(
            lambda: otlp_json(bodies["otlp_text"], OTLP, [columns], constants={}, arrival_ns=ARRIVAL_NS)
        ),
        "entries": cleared(
            lambda: entries(bodies["entry_text"], ENTRIES, [columns], constants={}, arrival_ns=ARRIVAL_NS)
        ),
        "lines": cleared(
            lambda: entries(
                bodies["lines_text"], ENTRIES, [columns], constants={}, arrival_ns=ARRIVAL_NS, lines=True, partial=True
            )
        ),
        "json_check": lambda: json_check(bodies["entry_text"]),
        "cut": cut,
        "crc32c": lambda: crc32c(bodies["entry_text"] if records == LARGE else b"x" * 4096, instruction=False),
    }


@contextmanager
def other_thread(act: Callable[[], None]) -> Iterator[Callable[[Callable[[], object]], int]]:
    """A thread that does ``act`` whenever it gets the GIL; the value counts how often it did during a call."""
    acts = 0
    stop = False

    def run() -> None:
        nonlocal acts
        while not stop:
            act()
            acts += 1
            time.sleep(0)  # lets go of the GIL

    def during(call: Callable[[], object]) -> int:
        before = acts
        call()
        return acts - before

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield during
    finally:
        stop = True
        thread.join()
        sys.setswitchinterval(interval)


@pytest.mark.parametrize("name", calls(1, Columns(LAYOUT)))
def test_another_thread_proceeds_during_a_large_call(name: str) -> None:
    call = calls(LARGE, Columns(LAYOUT))[name]
    with other_thread(lambda: None) as acts_during:
        deadline = time.monotonic() + DEADLINE_S
        # A busy machine may run the other thread too late for one call, but not for all of them.
        while not acts_during(call):
            assert time.monotonic() < deadline


@pytest.mark.parametrize("name", calls(1, Columns(LAYOUT)))
def test_a_small_call_keeps_the_gil(name: str) -> None:
    """Which also shows that the test above can fail."""
    call = calls(SMALL, Columns(LAYOUT))[name]
    with other_thread(lambda: None) as acts_during:
        assert sum(acts_during(call) for _ in range(200)) == 0


def test_a_body_that_can_change_is_decoded_under_the_gil() -> None:
    columns, body = Columns(LAYOUT), bytearray(protobuf(LARGE))
    with other_thread(lambda: None) as acts_during:
        assert acts_during(lambda: otlp_protobuf(body, OTLP, [columns], constants={}, arrival_ns=ARRIVAL_NS)) == 0


@pytest.mark.parametrize("name", ["otlp_protobuf", "entries", "cut"])
def test_columns_in_use_by_another_thread_refuse_everything(name: str) -> None:
    columns = Columns(LAYOUT)
    call = calls(LARGE, columns)[name]
    tries: dict[str, Callable[[], object]] = {
        "rows": lambda: columns.rows,
        "bytes": lambda: columns.bytes,
        "mark": columns.mark,
        "rollback": columns.rollback,
        "clear": columns.clear,
        "native": columns.native,
        "cut": lambda: columns.cut(frame=1),
        "entries": lambda: entries(b"[]", ENTRIES, [columns], constants={}, arrival_ns=ARRIVAL_NS),
    }
    refused, let_in = set(), set()
    in_use = False

    def touch() -> None:
        for what, attempt in tries.items() if in_use else ():
            try:
                attempt()
                let_in.add(what)
            except RuntimeError:
                refused.add(what)

    with other_thread(touch) as acts_during:
        deadline = time.monotonic() + DEADLINE_S
        while not refused and not let_in:
            assert time.monotonic() < deadline
            in_use = True
            acts_during(call)
            in_use = False
    assert (refused, let_in) == (set(tries), set())
    call()
    assert columns.rows == (LARGE if name != "cut" else 0)


def test_columns_that_were_never_laid_out_refuse_everything() -> None:
    columns = Columns.__new__(Columns)
    for attempt in (lambda: columns.rows, lambda: columns.bytes, columns.native, lambda: columns.cut(frame=1)):
        with pytest.raises(RuntimeError, match="never laid out"):
            attempt()
    with pytest.raises(RuntimeError, match="never laid out"):
        otlp_protobuf(b"", OTLP, [columns], constants={}, arrival_ns=ARRIVAL_NS)


def test_threads_that_decode_at_once_by_one_plan_write_what_each_would_alone() -> None:
    bodies = {records: (otlp_text(records), entry_text(records)) for records in (3_000, 4_000, 5_000)}

    def blocks(records: int) -> tuple[bytes, bytes]:
        sent, listed = bodies[records]
        otlp, flat = Columns(LAYOUT), Columns(LAYOUT)
        otlp_json(sent, OTLP, [otlp], constants={}, arrival_ns=ARRIVAL_NS)
        entries(listed, ENTRIES, [flat], constants={}, arrival_ns=ARRIVAL_NS)
        return otlp.cut(frame=1), flat.cut(frame=1)

    expected = {records: blocks(records) for records in bodies}
    with ThreadPoolExecutor(3) as threads:
        turns = [records for _ in range(10) for records in bodies]
        assert list(threads.map(blocks, turns)) == [expected[records] for records in turns]
