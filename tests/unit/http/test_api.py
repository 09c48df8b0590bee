"""The query and control API: what those who ask may take from those who send."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from gateway.config import Limits
from gateway.dialects.dialect import Reply
from gateway.http.admission import Admission
from gateway.http.api import Api, ApiRequest, ApiRoute, json_reply
from gateway.tenants.records import PatRecord
from tests.unit.http.fakes import incoming

PAT = PatRecord("id", "name", datetime.fromtimestamp(0, UTC))


class SlowTokens:
    """Every token is good, once ``answers`` is set."""

    def __init__(self) -> None:
        self.asked, self.answers = asyncio.Event(), asyncio.Event()

    async def check(self, token: str | None) -> PatRecord:
        self.asked.set()
        await self.answers.wait()
        return PAT


async def hello(request: ApiRequest) -> Reply:
    return json_reply(200, request.pat.name)


async def test_those_whose_token_is_being_looked_up_leave_room_for_senders() -> None:
    tokens = SlowTokens()
    admission = Admission(requests_max=2, bytes_max=1 << 20)
    route = ApiRoute("GET", "/hello", hello, lambda error: {"error": str(error)})
    api = Api([route], tokens, limits=Limits(), admission=admission)

    async def ask() -> int:
        reply = await api.answer("GET", "/hello", (), {}, incoming([]))
        assert reply is not None
        return reply.status

    first = asyncio.create_task(ask())
    await asyncio.wait_for(tokens.asked.wait(), 5)
    assert await ask() == 503
    with admission.admit(1 << 20):
        pass
    tokens.answers.set()
    assert await first == 200
    assert await ask() == 200
    assert (admission.requests, admission.strangers) == (0, 0)
