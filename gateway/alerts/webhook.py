"""Word of an alert, sent as a POST of JSON to the address its owner gave.

The address is called from the gateway's network, so it is looked at twice: when it is given (``checked``) and when
it is called, with the addresses its name then has, which are those connected to. ``hosts`` are the names that may be
called, wherever they are; ``*`` among them is every name on the public internet. Redirects are not followed,
answers not read.

A call that gets no answer, or 408, 429 or 5xx, is tried again a few times, each time later; what then was not
delivered is counted, logged without the address (which often holds a secret), and not tried again. So it is with
what waits when the gateway stops.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import random
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from gateway.metrics import Metrics

logger = logging.getLogger(__name__)

ANY_PUBLIC = "*"
URL_CHARS_MAX = 2000
TIMEOUT_S = 5.0
ATTEMPTS_MAX = 4
RETRY_FIRST_S = 1.0
AT_ONCE, WAITING_MAX = 4, 1000
DELIVERED = "delivered"
_STOP_S = 0.5
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_IPV6_INTERNET = ipaddress.IPv6Network("2000::/3")
"""All that was ever given out of it. What lies beside it may be a wrapping that a network inside unwraps."""
_RETRYABLE = frozenset((408, 429))

Outcome = Callable[[str], Awaitable[None]]
"""Hears what became of it: ``delivered``, or why not. May raise."""


class NotAllowed(Exception):
    """The address must not be called; the text says why."""


def checked(url: str, hosts: Sequence[str]) -> URL:
    """The address, when it may be called as far as its text tells. Raises NotAllowed."""
    try:
        address = URL(url)
        host, port = _plain(address.raw_host or ""), address.port
    except ValueError:
        raise NotAllowed("it is no address, such as https://example.com/hook") from None
    if address.scheme not in ("http", "https") or not host or not port:
        raise NotAllowed("it must begin with https:// or http:// and name a host")
    if address.user is not None or address.password is not None:
        raise NotAllowed("it must not hold a user name or a password")
    if len(url) > URL_CHARS_MAX or not url.isprintable():
        raise NotAllowed(f"it must be at most {URL_CHARS_MAX} printable characters")
    if host in _names(hosts):
        return address
    if ANY_PUBLIC not in hosts:
        raise NotAllowed("this gateway may not call that host; alerts.webhook_hosts has those it may")
    # What consists of digits is taken for an address when it is called, 2130706433 for 127.0.0.1.
    if (":" in host or host.replace(".", "").isdigit()) and not is_public(host):
        raise NotAllowed("that address is not on the public internet; alerts.webhook_hosts may name it all the same")
    return address


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, also when it is wrapped in another; False: it is none."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo and found.teredo[1])
        if found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner:
            return is_public(str(inner))
        if found not in _IPV6_INTERNET:
            return False
    return found.is_global and not found.is_multicast


class Webhooks:
    """Calls webhooks, a few at once. ``post`` never waits and never raises."""

    def __init__(
        self,
        hosts: Sequence[str],
        metrics: Metrics,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._hosts = hosts
        self._metrics = metrics
        self._sleep, self._jitter = sleep, jitter
        self._places = asyncio.Semaphore(AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Binds resources; connects to nothing."""
        connector = aiohttp.TCPConnector(
            limit=AT_ONCE, resolver=_Resolver(self._hosts), use_dns_cache=False, force_close=True
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            headers={"User-Agent": "weir"},
        )

    async def stop(self) -> None:
        """Gives what is under way half a second, and then up."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_STOP_S)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def post(self, url: str, body: bytes, outcome: Outcome) -> None:
        """Calls ``url`` with JSON, as soon as there is a place."""
        if len(self._tasks) >= WAITING_MAX:
            self._metrics.alert_webhooks.add(1, "dropped")
            logger.warning("too many webhooks wait: one is not called")
            return
        task = asyncio.create_task(self._deliver(url, body, outcome), name="webhook")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, url: str, body: bytes, outcome: Outcome) -> None:
        try:
            became = await self._try(url, body)
        except asyncio.CancelledError:
            self._metrics.alert_webhooks.add(1, "dropped")
            logger.warning("a webhook was not delivered: the gateway stops")
            raise
        self._metrics.alert_webhooks.add(1, "delivered" if became == DELIVERED else "failed")
        if became != DELIVERED:
            logger.warning("a webhook was not delivered: %s", became)
        with suppress(Exception):  # it is for people to look at, and may be lost
            await outcome(became)

    async def _try(self, url: str, body: bytes) -> str:
        """``delivered``, or what went wrong the last time."""
        try:
            address = checked(url, self._hosts)
        except NotAllowed as error:
            return f"not called: {error}"
        wait_s = RETRY_FIRST_S
        for attempt in range(ATTEMPTS_MAX):
            if attempt:
                self._metrics.alert_webhook_retries.add(1)
                await self._sleep(wait_s * (0.5 + self._jitter()))
                wait_s *= 4
            async with self._places:
                became, again = await self._call(address, body)
            if not again:
                break
        return became

    async def _call(self, address: URL, body: bytes) -> tuple[str, bool]:
        """What became of one call, and whether another may do better."""
        if self._session is None:
            raise RuntimeError("Webhooks.start() comes first")
        try:
            async with self._session.post(
                address, data=body, headers={"Content-Type": "application/json"}, allow_redirects=False
            ) as answer:
                status = answer.status
                # Its body is nobody's to read.
                answer.close()
        except aiohttp.ClientConnectorDNSError as error:
            if isinstance(error.os_error, _NotPublic):
                return "not called: its name leads to no address of the public internet", False
            return "its name is not known", True
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return f"no answer ({type(error).__name__})", True
        if 200 <= status < 300:
            return DELIVERED, False
        return f"answered {status}", status >= 500 or status in _RETRYABLE


class _NotPublic(OSError):
    """A name has no address that may be called."""


class _Resolver(AbstractResolver):
    """Finds the addresses of a name, and of names that are not on the list only public ones.

    In threads of its own, at most AT_ONCE: name servers that answer nothing keep no other look-up of this
    process waiting, nor its end.
    """

    def __init__(self, hosts: Sequence[str]) -> None:
        self._names = _names(hosts)
        self._places = threading.BoundedSemaphore(AT_ONCE)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        if not self._places.acquire(blocking=False):
            raise OSError("too many names are being looked up and not found")
        loop = asyncio.get_running_loop()
        looking: asyncio.Future[list[ResolveResult]] = loop.create_future()

        def tell(found: list[ResolveResult], error: OSError | None) -> None:
            if looking.done():  # nobody waits any more
                return
            if error is None:
                looking.set_result(found)
            else:
                looking.set_exception(error)

        def look() -> None:
            found: list[ResolveResult] = []
            failure = None
            try:
                found = _looked_up(host, port, family)
            except OSError as error:
                failure = error
            finally:
                self._places.release()
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(tell, found, failure)

        threading.Thread(target=look, name="webhook-name", daemon=True).start()
        found = await looking
        if _plain(host) in self._names:
            return found
        public = [address for address in found if is_public(address["host"])]
        if not public:
            raise _NotPublic("no public address")
        return public

    async def close(self) -> None:
        """Look-ups under way end by themselves."""


def _looked_up(host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
    return [
        ResolveResult(
            hostname=host,
            host=str(where[0]),
            port=port,
            family=kind,
            proto=protocol,
            flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
        )
        for kind, _, protocol, _, where in socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
    ]


def _names(hosts: Sequence[str]) -> frozenset[str]:
    return frozenset(map(_plain, hosts))


def _plain(host: str) -> str:
    return host.rstrip(".").lower()
