"""Webhooks: which addresses are called and which never, what is tried again, and that nothing waits for them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
from yarl import URL

from gateway.alerts import webhook
from gateway.alerts.webhook import ATTEMPTS_MAX, NotAllowed, Webhooks, checked, is_public
from gateway.metrics import Metrics
from tests.alerts.receiver import receiving

PATIENCE_S = 20.0
LOCAL = ("127.0.0.1",)
INSIDE = (
    "http://127.0.0.1/", "http://127.0.0.1./", "http://10.1.2.3/",
    "http://192.168.0.1:8080/", "http://169.254.169.254/latest/meta-data", "http://0.0.0.0/", "http://100.64.0.1/",
    "http://[::1]/", "http://[fd00::1]/", "http://[fe80::1]/", "http://[::ffff:127.0.0.1]/", "http://[64:ff9b::a00:1]/",
    "http://[64:ff9b:1::a00:1]/", "http://[::7f00:1]/", "http://[::ffff:0:7f00:1]/", "http://[fec0::1]/",
    "http://[2002:7f00:1::]/", "http://224.0.0.1/", "http://2130706433/", "http://0177.0.0.1/", "http://127.1/",
    "http://１２７.0.0.1/",
)  # fmt: skip
NO_ADDRESS = (
    "", "example.com/hook", "ftp://example.com/", "file:///etc/passwd", "http://", "http:///x", "//example.com/",
    "http://example.com:0/", "http://example.com:99999/", "http://user@example.com/", "http://u:p@example.com/",
    "http://exa\x00mple.com/", "http://example.com/" + "x" * 2000, "http://[::1/",
)  # fmt: skip


class Rig:
    """Started webhooks, the waits they asked for, and what became of each."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self.metrics = Metrics()
        self.waits: list[float] = []
        self.became: list[str] = []
        self.webhooks = Webhooks(hosts, self.metrics, sleep=self._sleep, jitter=lambda: 0.5)

    def post(self, url: str, body: object = "hello") -> None:
        self.webhooks.post(url, json.dumps(body).encode(), self._hear)

    async def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.005)

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)

    async def _hear(self, outcome: str) -> None:
        self.became.append(outcome)


@asynccontextmanager
async def opened(hosts: Sequence[str] = LOCAL) -> AsyncIterator[Rig]:
    rig = Rig(hosts)
    await rig.webhooks.start()
    try:
        yield rig
    finally:
        await rig.webhooks.stop()


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    """Webhooks that may call this machine."""
    async with opened() as rig:
        yield rig


@pytest.mark.parametrize("url", INSIDE)
def test_addresses_inside_are_refused_unless_they_are_named(url: str) -> None:
    with pytest.raises(NotAllowed, match="public internet"):
        checked(url, ["*"])
    host = checked(url, ["*", URL(url).raw_host or ""]).raw_host
    assert host


@pytest.mark.parametrize("url", NO_ADDRESS)
def test_what_is_no_address_is_refused_though_every_host_may_be_called(url: str) -> None:
    with pytest.raises(NotAllowed):
        checked(url, ["*", "example.com", "::1"])


def test_who_may_be_called_is_a_list() -> None:
    hosts = ["hooks.example.com"]
    assert checked("https://Hooks.Example.com./x?y=z", hosts).path == "/x"
    for url in ("https://example.com/", "https://evil.hooks.example.com/", "https://8.8.8.8/"):
        with pytest.raises(NotAllowed, match=r"alerts\.webhook_hosts"):
            checked(url, hosts)
        assert checked(url, ["*"])
    with pytest.raises(NotAllowed):
        checked("https://example.com/", [])


def test_a_text_that_is_no_ip_address_is_not_public() -> None:
    assert is_public("8.8.8.8")
    assert not is_public("8.8.8")


async def test_a_webhook_is_a_post_of_json(rig: Rig) -> None:
    with receiving() as receiver:
        rig.post(receiver.url + "?a=b", {"count": 1})
        await rig.until(lambda: bool(rig.became))
    [(path, headers, body)] = receiver.got
    assert (path, headers["content-type"], body) == ("/hook?a=b", "application/json", {"count": 1})
    assert "authorization" not in headers
    assert rig.became == ["delivered"]
    assert rig.metrics.alert_webhooks.values == {("delivered",): 1}


@pytest.mark.parametrize("status", [408, 429, 500, 503])
async def test_what_may_work_later_is_tried_again_later_and_later(rig: Rig, status: int) -> None:
    with receiving([status, status]) as receiver:
        rig.post(receiver.url)
        await rig.until(lambda: bool(rig.became))
    assert len(receiver.got) == 3
    assert rig.waits == [1.0, 4.0]
    assert rig.became == ["delivered"]
    assert rig.metrics.alert_webhook_retries.total() == 2


async def test_it_is_tried_so_often_and_not_more(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    with receiving([500] * 99) as receiver:
        rig.post(receiver.url + "/secret-token")
        await rig.until(lambda: bool(rig.became))
    assert len(receiver.got) == ATTEMPTS_MAX
    assert rig.became == ["answered 500"]
    assert rig.metrics.alert_webhooks.values == {("failed",): 1}
    assert "answered 500" in caplog.text
    assert "secret-token" not in caplog.text


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 401, 404])
async def test_what_will_not_work_later_is_not_tried_again_and_no_redirect_is_followed(rig: Rig, status: int) -> None:
    with receiving([status]) as receiver:
        rig.post(receiver.url)
        await rig.until(lambda: bool(rig.became))
    assert [path for path, _, _ in receiver.got] == ["/hook"]
    assert rig.became == [f"answered {status}"]


async def test_nobody_there_is_tried_again(rig: Rig) -> None:
    with receiving() as receiver:
        url = receiver.url
    rig.post(url)
    await rig.until(lambda: bool(rig.became))
    assert (len(rig.waits), rig.became[0].partition(" (")[0]) == (ATTEMPTS_MAX - 1, "no answer")


async def test_an_answer_that_does_not_come_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "TIMEOUT_S", 0.05)
    async with opened() as hasty:
        with receiving([0] * 9) as receiver:
            hasty.post(receiver.url)
            await hasty.until(lambda: bool(hasty.became))
            assert len(hasty.waits) == ATTEMPTS_MAX - 1
            assert hasty.became[0].startswith("no answer")


async def test_a_name_that_leads_inside_is_not_called_and_one_that_is_listed_is() -> None:
    with receiving() as receiver:
        url = f"http://localhost:{receiver.port}/"
        async with opened(["*"]) as public:
            public.post(url)
            await public.until(lambda: bool(public.became))
            assert public.became == ["not called: its name leads to no address of the public internet"]
            assert (receiver.got, public.waits) == ([], [])
        async with opened(["localhost"]) as listed:
            listed.post(url)
            await listed.until(lambda: bool(listed.became))
            assert listed.became == ["delivered"]


async def test_what_is_listed_no_longer_is_not_called(rig: Rig) -> None:
    rig.post("http://10.0.0.1/")
    await rig.until(lambda: bool(rig.became))
    assert rig.became[0].startswith("not called: ")


async def test_a_few_are_called_at_once_and_so_many_may_wait(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "WAITING_MAX", 10)
    with receiving([0] * webhook.AT_ONCE) as receiver:
        for _ in range(12):
            rig.post(receiver.url)
        await rig.until(lambda: len(receiver.got) == webhook.AT_ONCE)
        assert rig.metrics.alert_webhooks.values == {("dropped",): 2}
        receiver.release.set()
        await rig.until(lambda: len(rig.became) == 10)
    assert receiver.open_most == webhook.AT_ONCE


async def test_an_outcome_that_cannot_be_kept_matters_to_nobody(rig: Rig) -> None:
    async def lost(outcome: str) -> None:
        raise ConnectionError

    with receiving() as receiver:
        rig.webhooks.post(receiver.url, b"1", lost)
        await rig.until(lambda: rig.metrics.alert_webhooks.total() == 1)
        rig.post(receiver.url)
        await rig.until(lambda: bool(rig.became))
    assert rig.became == ["delivered"]
    assert rig.metrics.alert_webhooks.values == {("delivered",): 2}


async def test_a_stop_gives_up_what_is_under_way() -> None:
    with receiving([0]) as receiver:
        async with opened() as rig:
            rig.post(receiver.url)
            await rig.until(lambda: bool(receiver.got))
        assert rig.metrics.alert_webhooks.values == {("dropped",): 1}
