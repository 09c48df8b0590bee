"""Is it alive, is it ready, and what has it done: ``/livez``, ``/readyz``, ``/metrics`` and their aliases."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from inspect import isawaitable
from typing import Any

import msgspec
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry

from gateway.dialects.dialect import Reply

_ALIVE = ("/livez", "/-/healthy")
_READY = ("/readyz", "/healthz", "/-/ready")
_METRICS = "/metrics"

Check = Callable[[], Any]
"""Says what is wrong, in a sentence; None, ``""`` or True when nothing is; may be awaitable. Raising is wrong too."""


async def _nothing() -> None:
    """Numbers of this process are always there."""


class Probes:
    """``checks``: what must be well for new requests to be taken, by name. ``metrics``: what is exposed.

    ``gather`` is awaited before each exposition, so that numbers of other processes can be fetched.
    """

    paths = (*_ALIVE, *_READY, _METRICS)

    def __init__(
        self,
        checks: Mapping[str, Check],
        metrics: Collector,
        gather: Callable[[], Awaitable[None]] = _nothing,
    ) -> None:
        self._checks = checks
        self._gather = gather
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(metrics)

    async def answer(self, method: str, path: str, verbose: bool, accept: str) -> Reply | None:
        """The reply to a probe, None when the path is none."""
        if path not in self.paths:
            return None
        if method not in ("GET", "HEAD"):
            return _get_only()
        if path in _ALIVE:
            return alive(method)
        if path in _READY:
            return await self._ready(verbose)
        await self._gather()
        encode, media_type = choose_encoder(accept)
        return Reply(200, encode(self._registry), media_type)

    async def _ready(self, verbose: bool) -> Reply:
        wrong = {name: await _ask(check) for name, check in self._checks.items()}
        ready = not any(wrong.values())
        lines = [f"[+] {name} ok" if not what else f"[-] {name}: {what}" for name, what in wrong.items()]
        text = "\n".join([*(lines if verbose or not ready else ()), "ready" if ready else "not ready", ""])
        return Reply(200 if ready else 503, text.encode(), "text/plain; charset=utf-8")


def alive(method: str) -> Reply:
    """That this process answers at all."""
    if method not in ("GET", "HEAD"):
        return _get_only()
    return Reply(200, b"ok\n", "text/plain; charset=utf-8")


async def _ask(check: Check) -> str:
    """What is wrong, empty when nothing is."""
    try:
        said = check()
        if isawaitable(said):
            said = await said
    except Exception as error:
        return f"the check itself failed ({type(error).__name__})"
    if said is False:
        return "failed"
    return "" if said is None or said is True else str(said)


def _get_only() -> Reply:
    error = {"error": "this path takes GET and HEAD"}
    return Reply(405, msgspec.json.encode(error), "application/json", (("Allow", "GET, HEAD"),))
