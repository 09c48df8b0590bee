"""One line for each request: whose it was and how it ended; of accepted ones only where that was asked for."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from io import StringIO

import pytest

from gateway import logs
from gateway.dialects.dialect import Reply
from gateway.http.ingest import ingest
from gateway.http.routes import Routes
from tests.unit.http.fakes import KEY, House, incoming, lines


async def tell(house: House, body: bytes, key: str = KEY) -> Reply:
    route = Routes([lines()]).find("/lines")
    assert route is not None
    headers = {"authorization": f"Bearer {key}", "x-request-id": "abc"}
    return await ingest(house.ingest, route, "POST", "/lines", headers, incoming([body]))


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    return [(record.levelno, record.getMessage()) for record in caplog.records]


async def test_a_refusal_says_who_sent_it_what_was_wrong_and_how_it_ended(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await tell(House(), b"secret text\nbad")
    [record] = caplog.records
    line = json.loads(logs.JsonLines().format(record))
    line.pop("time")
    assert line == {
        "level": "info",
        "logger": "gateway.http.request_log",
        "message": "lines: refused, malformed",
        "request_id": "abc",
        "dialect": "lines",
        "status": 400,
        "project": "project",
        "key_id": "key",
        "duration_ms": 0.0,
        "reason": "malformed",
        "why": "a bad line",
    }


async def test_nothing_of_a_key_or_a_body_is_in_a_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await tell(House(), b"secret text\nbad", "a-key-nobody-issued")
    await tell(House(), b"secret text\nboom")
    await tell(House(), b"secret text")
    assert len(caplog.records) == 4  # what nobody foresaw has a line of its own, with its stack
    told = "".join(str(vars(record)) for record in caplog.records)
    assert "secret text" not in told
    assert "a-key-nobody-issued" not in told
    assert "'project': 'project'" in told


async def test_accepted_requests_are_told_at_debug_only(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert (await tell(House(), b"one")).status == 200
    assert said(caplog) == []
    caplog.set_level(logging.DEBUG)
    assert (await tell(House(), b"one")).status == 200
    assert said(caplog) == [(logging.DEBUG, "lines: accepted")]


@pytest.fixture
def written() -> Iterator[StringIO]:
    """What the gateway's own log writes during one test."""
    root, stream = logging.getLogger(), StringIO()
    handlers, level = root.handlers[:], root.level
    logs.configure("info", "json", stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


async def test_a_flood_of_one_kind_hides_no_other(written: StringIO) -> None:
    for _ in range(3 * logs.REPEATS_MAX):
        await tell(House(), b"one", "wrong")
    await tell(House(), b"bad")
    messages = [json.loads(line)["message"] for line in written.getvalue().splitlines()]
    assert messages == ["lines: refused, unauthorized"] * logs.REPEATS_MAX + ["lines: refused, malformed"]
