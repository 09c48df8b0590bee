"""What the gate has to say to a sender is in the reply, whatever that is: accepted, refused, in any dialect."""

from __future__ import annotations

from gateway.dialects.dialect import Reply
from gateway.errors import Overloaded, RateLimited
from gateway.http.ingest import ingest
from gateway.http.routes import Routes
from tests.unit.http.fakes import KEY, House, OneTenant, incoming, lines

LITTLE_LEFT = (("RateLimit-Policy", '"key";q=10;w=60'), ("RateLimit", '"key";r=1;t=54'))
WARNING = ("X-Quota-Warning", "80")


async def tell(house: House, body: bytes) -> Reply:
    route = Routes([lines()]).find("/lines")
    assert route is not None
    return await ingest(house.ingest, route, "POST", "/lines", {"authorization": f"Bearer {KEY}"}, incoming([body]))


async def test_accepted_records_are_counted_and_the_reply_says_what_is_left() -> None:
    house = House()
    house.gate.tenant, house.gate.warning = OneTenant(notices=LITTLE_LEFT), (WARNING,)
    reply = await tell(house, b"one\ntwo")
    assert reply.status == 200
    assert {*LITTLE_LEFT, WARNING} <= set(reply.headers)
    assert house.gate.counted == {"project": 2}


async def test_a_refusal_says_it_too_and_counts_no_record() -> None:
    house = House()
    house.gate.tenant, house.gate.warning = OneTenant(notices=LITTLE_LEFT), (WARNING,)
    house.shelf.promise.broken = Overloaded("full", retry_after_s=1)
    reply = await tell(house, b"one")
    assert reply.status == 503
    assert set(LITTLE_LEFT) <= set(reply.headers)
    assert WARNING not in reply.headers
    assert house.gate.counted == {}


async def test_one_request_too_many_is_refused_unread_with_the_wait_and_the_policy() -> None:
    house = House()
    error = RateLimited("too many", retry_after_s=7)
    error.notices = LITTLE_LEFT
    house.gate.refusal = error
    reply = await tell(house, b"one")
    assert reply.status == 429
    assert {*LITTLE_LEFT, ("Retry-After", "7")} <= set(reply.headers)
    assert house.metrics.requests_refused.values == {("lines", "rate"): 1}
    assert house.metrics.body_bytes.values == {}
    assert house.shelf.texts == []
    house.check_sums()
