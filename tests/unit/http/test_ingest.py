"""The story, told over plain values and fakes: whatever comes, one reply, nothing half done, and the sums hold."""

from __future__ import annotations

import asyncio
import gzip
import logging
import threading
from collections.abc import Sequence

import pytest

from gateway.config import DialectLimits, Limits
from gateway.dialects.dialect import Context, Dialect, Outcome, Reply, Request, Rows
from gateway.errors import Disconnected, Draining, GatewayError, Malformed, Overloaded
from gateway.http import idempotency
from gateway.http.body import Incoming
from gateway.http.ingest import ingest
from gateway.http.routes import Routes
from tests.delivery.rig import until
from tests.unit.http.fakes import KEY, House, OneTenant, incoming, lines

GOOD = {"authorization": f"Bearer {KEY}"}


async def tell(
    house: House,
    body: bytes | Incoming,
    headers: dict[str, str] | None = None,
    *,
    dialects: Sequence[Dialect] | None = None,
    method: str = "POST",
    path: str = "/lines",
) -> Reply:
    route = Routes(dialects or [lines()]).find(path)
    assert route is not None
    source = body if isinstance(body, Incoming) else incoming([body] if body else [])
    return await ingest(house.ingest, route, method, path, GOOD if headers is None else headers, source)


def header(reply: Reply, name: str) -> str | None:
    return dict(reply.headers).get(name)


async def test_accepted_records_are_appended_and_acknowledged() -> None:
    house = House()
    reply = await tell(house, b"one\ntwo")
    assert (reply.status, reply.body) == (200, b"2 for project")
    assert house.shelf.texts == ["one", "two"]
    assert house.metrics.records_accepted.values == {("lines",): 2}
    assert house.metrics.body_bytes.values == {("lines",): 7}
    house.check_sums()


async def test_the_reply_waits_for_the_receipt_and_holds_no_body_meanwhile() -> None:
    house = House()
    house.shelf.promise.kept.clear()
    telling = asyncio.create_task(tell(house, b"one"))
    await asyncio.wait_for(house.shelf.promise.waited_for.wait(), 5)
    assert house.shelf.texts == ["one"]
    assert not telling.done()
    assert (house.admission.requests, house.admission.bytes) == (1, 0)
    house.shelf.promise.kept.set()
    assert (await telling).status == 200
    house.check_sums()


@pytest.mark.parametrize(("inline_bytes_max", "apart"), [(7, False), (6, True)])
async def test_a_large_body_is_decoded_by_another_thread(inline_bytes_max: int, apart: bool) -> None:
    threads: list[bool] = []

    def decode(request: Request, body: bytes, context: Context, rows: Rows) -> Outcome:
        threads.append(threading.current_thread() is not threading.main_thread())
        return plain.decode(request, body, context, rows)

    plain = lines()
    house = House(limits=Limits(inline_bytes_max=inline_bytes_max))
    reply = await tell(house, b"one\ntwo", dialects=[lines(decode=decode)])
    assert (reply.status, reply.body) == (200, b"2 for project")
    assert header(reply, "X-Durability") == "disk"
    assert threads == [apart]
    assert house.shelf.texts == ["one", "two"]
    refused = await tell(house, b"one\nbad", dialects=[lines(decode=decode)])
    assert refused.status == 400
    assert house.shelf.texts == ["one", "two"]
    house.check_sums()


async def test_a_bad_record_leaves_nothing_behind_and_the_next_request_works() -> None:
    house = House()
    reply = await tell(house, b"one\nbad")
    assert (reply.status, reply.body) == (400, b"a bad line")
    assert house.shelf.texts == []
    assert (await tell(house, b"one")).status == 200
    assert house.shelf.texts == ["one"]
    assert house.metrics.requests_refused.values == {("lines", "malformed"): 1}
    house.check_sums()


async def test_rejected_records_are_counted_by_reason() -> None:
    house = House()
    assert (await tell(house, b"one\ndrop\ndrop")).status == 200
    assert house.metrics.records_received.values == {("lines",): 3}
    assert house.metrics.records_rejected.values == {("lines", "dropped"): 2}
    house.check_sums()


async def test_a_request_that_is_sent_again_with_its_key_is_appended_once() -> None:
    house, keyed = House(), {**GOOD, "idempotency-key": "k"}
    first, again = await tell(house, b"one\ntwo", keyed), await tell(house, b"one\ntwo", keyed)
    assert (again.status, again.body) == (first.status, first.body)
    assert (header(first, "Idempotent-Replayed"), header(again, "Idempotent-Replayed")) == (None, "true")
    assert house.shelf.texts == ["one", "two"]
    assert (house.metrics.records_accepted.total(), house.metrics.records_repeated.total()) == (2, 2)
    other = await tell(house, b"three", keyed)
    assert (other.status, house.shelf.texts) == (422, ["one", "two"])
    house.check_sums()


async def test_what_is_refused_gives_its_key_back() -> None:
    house, keyed = House(), {**GOOD, "idempotency-key": "k"}
    assert (await tell(house, b"bad", keyed)).status == 400
    assert (await tell(house, b"good", keyed)).status == 200
    assert house.shelf.texts == ["good"]
    house.check_sums()


async def test_while_the_first_is_being_stored_the_next_waits_and_is_answered_as_it_was() -> None:
    house, keyed = House(), {**GOOD, "idempotency-key": "k"}
    with house.shelf.keys.claim("project", "/lines", "k", b"one") as first:
        entries = first.entries(0, 1)
    telling = asyncio.create_task(tell(house, b"one", keyed))
    await until(lambda: house.shelf.asked >= 3, "it has tried again")
    assert not telling.done()
    house.shelf.keys.kept(entries)
    assert header(await telling, "Idempotent-Replayed") == "true"
    assert house.shelf.texts == []
    house.check_sums()


async def test_it_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "WAIT_S", 0.02)
    house, keyed = House(), {**GOOD, "idempotency-key": "k"}
    with house.shelf.keys.claim("project", "/lines", "k", b"one") as first:
        first.entries(0, 1)
    reply = await tell(house, b"one", keyed)
    assert (reply.status, header(reply, "Retry-After")) == (503, "1")
    house.check_sums()


@pytest.mark.parametrize("try_s", [0.0, 1.0])
def test_the_pauses_grow_and_with_the_tries_come_to_what_is_waited(try_s: float) -> None:
    now_s, waited_s = [0.0], [0.0]
    for pause_s in idempotency.pauses_s(lambda: now_s[0]):
        waited_s.append(pause_s)
        now_s[0] += pause_s + try_s
    assert waited_s == sorted(waited_s), "each try may cost a decoding"
    assert idempotency.WAIT_S <= now_s[0] < idempotency.WAIT_S + idempotency.PAUSE_MAX_S + try_s
    assert len(waited_s) < 30


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {KEY}"}])
async def test_no_key_or_an_unknown_one_is_refused_before_the_body_is_read(headers: dict[str, str]) -> None:
    async def chunk() -> bytes:
        raise AssertionError("it was read")

    house = House()
    reply = await tell(house, Incoming(3, chunk), headers)
    assert reply.status == 401
    house.check_sums()


@pytest.mark.parametrize("headers", [{"authorization": f"bearer  {KEY} "}, {"x-api-key": KEY}])
async def test_the_key_may_come_in_either_header(headers: dict[str, str]) -> None:
    assert (await tell(House(), b"one", headers)).status == 200


async def test_an_unexpected_exception_is_503_in_the_dialects_words_and_quotes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    house = House()
    with caplog.at_level(logging.DEBUG):
        reply = await tell(house, b"one\nboom", {**GOOD, "x-request-id": "abc"})
    assert reply.status == 503
    assert header(reply, "Retry-After") == "1"
    assert b"boom" not in reply.body
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert vars(record)["request_id"] == "abc"
    assert vars(record)["exception_type"] == "RuntimeError"
    told = str(vars(record))
    assert "fakes.py" in told
    assert "unforeseen boom" not in told
    assert house.shelf.texts == []
    assert house.metrics.requests_refused.values == {("lines", "internal"): 1}
    house.check_sums()


@pytest.mark.parametrize("trouble", [Overloaded("full", retry_after_s=3), Draining("going", retry_after_s=3)])
async def test_full_buffers_are_503_with_the_time_to_come_back(trouble: GatewayError) -> None:
    house = House()
    house.shelf.full = trouble
    reply = await tell(house, b"one")
    assert (reply.status, header(reply, "Retry-After")) == (503, "3")
    house.check_sums()


async def test_what_there_is_no_room_for_is_refused_before_its_body_is_read() -> None:
    house = House()
    house.shelf.crowded = Overloaded("no room", retry_after_s=3)

    async def never() -> bytes:
        raise AssertionError("the body was read")

    reply = await tell(house, Incoming(declared_bytes=10, chunk=never))
    assert (reply.status, header(reply, "Retry-After")) == (503, "3")
    house.check_sums()


async def test_a_broken_promise_is_503() -> None:
    house = House()
    house.shelf.promise.broken = GatewayError("the disk is gone")
    assert (await tell(house, b"one")).status == 503
    house.check_sums()


async def test_more_requests_than_are_admitted_are_refused_at_once() -> None:
    house = House(limits=Limits(requests_in_flight_max=1))
    house.shelf.promise.kept.clear()
    first = asyncio.create_task(tell(house, b"one"))
    await asyncio.wait_for(house.shelf.promise.waited_for.wait(), 5)
    assert (await tell(house, b"two")).status == 503
    house.shelf.promise.kept.set()
    assert (await first).status == 200
    assert house.shelf.texts == ["one"]
    house.check_sums()


async def test_bodies_are_inflated_under_the_dialects_cap() -> None:
    house = House()
    headers = {**GOOD, "content-encoding": "gzip"}
    assert (await tell(house, gzip.compress(b"x" * 4096), headers)).status == 200
    assert (await tell(house, gzip.compress(b"x" * 4097), headers)).status == 413
    assert (await tell(house, b"x" * 1025)).status == 413
    assert (await tell(house, b"one", {**GOOD, "content-encoding": "br"})).status == 415
    house.check_sums()


async def test_a_method_no_dialect_takes_is_405_with_allow() -> None:
    house = House()
    reply = await tell(house, b"", method="PUT")
    assert (reply.status, header(reply, "Allow")) == (405, "POST")
    house.check_sums()


async def test_the_request_id_is_echoed_or_minted() -> None:
    house = House()
    for sent, echoed in (("abc-1", "abc-1"), ("", "minted"), ("a b", "minted"), ("x" * 129, "minted")):
        assert header(await tell(house, b"one", {**GOOD, "x-request-id": sent}), "X-Request-Id") == echoed
        assert header(await tell(house, b"bad", {**GOOD, "x-request-id": sent}), "X-Request-Id") == echoed


async def test_a_sender_that_goes_away_is_counted_and_leaves_nothing() -> None:
    def gone() -> None:
        raise Disconnected("gone")

    house = House()
    await tell(house, incoming([b"one"], then=gone))
    assert house.shelf.texts == []
    assert house.metrics.requests_refused.values == {("lines", "disconnected"): 1}
    house.check_sums()


def key_of_first_line(body: bytes) -> str | None:
    first = body.partition(b"\n")[0]
    return first.decode().removeprefix("key ") if first.startswith(b"key ") else None


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (f"key {KEY}\none", {}, 200),
        (f"key {KEY}\none", {"x-api-key": "wrong"}, 200),
        ("key wrong\none", {"x-api-key": KEY}, 401),
        ("one", {"x-api-key": KEY}, 200),
        ("one", {}, 401),
    ],
)
async def test_where_the_key_is_in_the_body_it_goes_before_one_in_the_headers(
    body: str, headers: dict[str, str], status: int
) -> None:
    house = House()
    reply = await tell(house, body.encode(), headers, dialects=[lines(body_key=key_of_first_line)])
    assert reply.status == status
    assert bool(house.shelf.texts) == (status == 200)
    house.check_sums()


async def test_senders_nobody_knows_yet_leave_room_for_the_others() -> None:
    house = House(limits=Limits(requests_in_flight_max=2))
    reading, comes = asyncio.Event(), asyncio.Event()

    async def late() -> bytes:
        reading.set()
        await comes.wait()
        return b""

    keyed_within = [lines(body_key=key_of_first_line)]
    first = asyncio.create_task(tell(house, Incoming(1000, late), dialects=keyed_within))
    await asyncio.wait_for(reading.wait(), 5)
    assert (await tell(house, b"one", dialects=keyed_within)).status == 503
    assert (await tell(house, b"one")).status == 200
    comes.set()
    assert (await first).status == 200
    assert (await tell(house, b"one", dialects=keyed_within)).status == 200
    house.check_sums()


async def test_a_body_key_that_cannot_be_read_is_the_dialects_error() -> None:
    def unreadable(body: bytes) -> str | None:
        raise Malformed("no key can be read")

    house = House()
    assert (await tell(house, b"one", {}, dialects=[lines(body_key=unreadable)])).status == 400
    house.check_sums()


def answers(name: str, **changed: object) -> Dialect:
    return lines(name=name, accepted=lambda request, outcome: Reply(200, name.encode()), **changed)


async def test_of_two_dialects_on_one_path_the_key_decides() -> None:
    house = House()
    both = [answers("special", claims=lambda key: key is not None and key.startswith("sp_")), answers("plain")]
    assert (await tell(house, b"one", dialects=both)).body == b"plain"
    assert (await tell(house, b"one", {"x-api-key": "sp_1"}, dialects=both)).status == 401
    assert house.metrics.requests_refused.values == {("special", "unauthorized"): 1}


async def test_path_segments_in_braces_reach_the_dialect() -> None:
    seen: list[Request] = []

    def accepted(request: Request, outcome: object) -> Reply:
        seen.append(request)
        return Reply(202)

    dialect = lines(accepted=accepted, routes=(("POST", "/sets/{id}/batch"), ("POST", "/sets/all/batch")))
    house = House()
    assert (await tell(house, b"one", dialects=[dialect], path="/sets/42/batch")).status == 202
    assert (await tell(house, b"one", dialects=[dialect], path="/sets/all/batch")).status == 202
    assert [request.path_values for request in seen] == [{"id": "42"}, {}]
    routes = Routes([dialect])
    for path in ("/sets//batch", "/sets/1/2/batch", "/sets/1", "/sets/1/batch/", "sets/1/batch"):
        assert routes.find(path) is None


async def test_one_project_cannot_take_every_place_and_gives_its_own_back() -> None:
    house = House(limits=Limits(requests_in_flight_max=4))
    house.shelf.promise.kept.clear()
    busy = [asyncio.create_task(tell(house, b"one")) for _ in range(2)]
    await asyncio.wait_for(house.shelf.promise.waited_for.wait(), 5)
    refused = await tell(house, b"two")
    assert (refused.status, header(refused, "Retry-After")) == (503, "1")
    assert house.metrics.requests_refused.values == {("lines", "project_busy"): 1}
    # The control: it is this project that is refused, and the gateway has places.
    house.gate.tenant = OneTenant("other")
    others = asyncio.create_task(tell(house, b"three"))
    house.shelf.promise.kept.set()
    assert {reply.status for reply in await asyncio.gather(*busy, others)} == {200}
    house.gate.tenant = OneTenant()
    assert (await tell(house, b"four")).status == 200
    house.check_sums()


async def test_a_project_may_be_given_every_place() -> None:
    house = House(limits=Limits(requests_in_flight_max=4, project_requests_in_flight_max=4))
    house.shelf.promise.kept.clear()
    busy = [asyncio.create_task(tell(house, b"one")) for _ in range(4)]
    await asyncio.wait_for(house.shelf.promise.waited_for.wait(), 5)
    assert house.admission.requests == 4
    house.shelf.promise.kept.set()
    assert {reply.status for reply in await asyncio.gather(*busy)} == {200}
    house.check_sums()


async def test_a_project_is_counted_too_where_its_key_is_in_the_body() -> None:
    house = House(limits=Limits(requests_in_flight_max=4, project_requests_in_flight_max=1))
    house.shelf.promise.kept.clear()
    keyed_within = [lines(body_key=key_of_first_line)]
    body = f"key {KEY}\none".encode()
    first = asyncio.create_task(tell(house, body, {}, dialects=keyed_within))
    await asyncio.wait_for(house.shelf.promise.waited_for.wait(), 5)
    assert (await tell(house, body, {}, dialects=keyed_within)).status == 503
    house.shelf.promise.kept.set()
    assert (await first).status == 200
    house.check_sums()


async def test_a_small_body_may_come_to_eight_mib_of_rows_and_a_large_one_to_a_multiple_of_itself() -> None:
    given: list[int] = []

    def decode(request: Request, body: bytes, context: Context, rows: Rows) -> Outcome:
        given.append(context.column_bytes_max)
        return Outcome(rows=0)

    roomy = DialectLimits(body_bytes_max=1 << 20, inflated_bytes_max=1 << 20)
    house = House(limits=Limits(column_bytes_max=20 << 20))
    for size in (1, 300_000, 600_000, 900_000):
        await tell(house, b"x" * size, dialects=[lines(decode=decode, limits=roomy)])
    assert given == [8 << 20, 28 * 300_000, 28 * 600_000, 20 << 20]
