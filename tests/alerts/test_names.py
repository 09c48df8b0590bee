"""Names that nobody answers for keep no other look-up of the process waiting."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress
from typing import Any

import pytest

from gateway.alerts import webhook
from gateway.alerts.webhook import AT_ONCE
from tests.delivery.rig import until_it


async def test_names_that_hang_take_their_own_places_and_give_them_back(monkeypatch: pytest.MonkeyPatch) -> None:
    hanging, answer = threading.Semaphore(0), threading.Event()
    look_up = webhook._looked_up

    def slow(host: str, port: int, family: socket.AddressFamily) -> Any:
        if host == "slow.example":
            hanging.release()
            answer.wait(30)
            raise OSError("nobody knows this name")
        return look_up(host, port, family)

    monkeypatch.setattr(webhook, "_looked_up", slow)
    resolver = webhook._Resolver(["localhost"])
    waiting = [asyncio.create_task(resolver.resolve("slow.example")) for _ in range(AT_ONCE)]
    for _ in range(AT_ONCE):
        assert await asyncio.to_thread(hanging.acquire, timeout=30)
    with pytest.raises(OSError, match="too many names"):
        await resolver.resolve("localhost", 80)
    assert await asyncio.get_running_loop().getaddrinfo("localhost", 80), "others look up as ever"
    waiting[0].cancel()
    answer.set()
    for outcome in await asyncio.gather(*waiting[1:], return_exceptions=True):
        assert isinstance(outcome, OSError)

    async def is_looked_up() -> bool:
        with suppress(OSError):
            return (await resolver.resolve("localhost", 80))[0]["host"] == "127.0.0.1"
        return False

    await until_it(is_looked_up, "the places are given back")


async def test_a_name_inside_is_refused_unless_it_is_on_the_list() -> None:
    with pytest.raises(OSError, match="no public address"):
        await webhook._Resolver(["*"]).resolve("localhost", 80)
    assert await webhook._Resolver(["localhost"]).resolve("localhost", 80)
