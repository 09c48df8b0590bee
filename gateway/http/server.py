"""The servers: ingest, where senders connect, and admin, where operators do."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import replace

import msgspec
from aiohttp import web

from gateway.config import Limits
from gateway.dialects.dialect import Dialect, Reply
from gateway.http import cors, probes
from gateway.http.api import Api
from gateway.http.body import Incoming
from gateway.http.ingest import Ingest, ingest, sent_request_id
from gateway.http.listener import LINGER_S, Listener, Patience, unforeseen
from gateway.http.probes import Probes
from gateway.http.routes import Routes


class IngestServer:
    """Every dialect's paths, ``/healthz`` and the API.

    ``listen``: ``host:port`` (port 0: a free one), or sockets that are bound already.
    """

    def __init__(
        self, listen: Sequence[str | socket.socket], house: Ingest, dialects: Sequence[Dialect], api: Api | None = None
    ) -> None:
        self._house = house
        self._api = api
        self._routes = Routes(dialects)
        self._hint = "POST logs to one of " + ", ".join(self._routes.paths)
        self._listener = Listener(listen, self._answer, _patience(house.limits))

    async def start(self) -> list[str]:
        """The addresses it listens on, in the order asked for. Raises OSError when one is taken."""
        return await self._listener.start()

    def leave(self) -> None:
        """A stop will follow: every answer from now on asks its sender to go elsewhere."""
        self._listener.leave()

    async def stop(self, deadline_s: float, linger_s: float = LINGER_S, *, others_go_on: bool = False) -> None:
        """No new connections; requests are answered, for at most ``deadline_s``; idle connections have ``linger_s``.

        ``others_go_on``: another worker has the sockets too, and takes who comes.
        """
        await self._listener.stop(deadline_s, linger_s, others_go_on=others_go_on)

    def hurry(self, deadline_s: float) -> None:
        """A stop that is under way ends within ``deadline_s``."""
        self._listener.hurry(deadline_s)

    async def _answer(self, request: web.BaseRequest, incoming: Incoming) -> Reply:
        try:
            reply = await self._reply(request, incoming)
        except Exception as surprise:
            # Here and not below, so that a page can read it too.
            reply = unforeseen(surprise)
        origin = request.headers.get("origin")
        if origin is None or request.method != "POST":
            return reply
        return cors.readable(reply, self._house.gate, origin)

    async def _reply(self, request: web.BaseRequest, incoming: Incoming) -> Reply:
        path = request.path
        route = self._routes.find(path)
        if request.method == "OPTIONS":
            options = cors.answer_options(self._house.gate, route, request.headers)
            if options is not None:
                return options
        if route is not None:
            return await ingest(self._house, route, request.method, path, request.headers, incoming)
        reply = await self._other(request, incoming)
        request_id = sent_request_id(request.headers) or self._house.mint_request_id()
        return replace(reply, headers=(*reply.headers, ("X-Request-Id", request_id)))

    async def _other(self, request: web.BaseRequest, incoming: Incoming) -> Reply:
        if request.path == "/healthz":
            return probes.alive(request.method)
        if self._api is not None:
            query = list(request.query.items())
            reply = await self._api.answer(request.method, request.path, query, request.headers, incoming)
            if reply is not None:
                return reply
        return not_found(self._hint)


class AdminServer:
    """Probes and metrics."""

    def __init__(self, listen: Sequence[str], observed: Probes, limits: Limits) -> None:
        self._probes = observed
        self._listener = Listener(listen, self._answer, _patience(limits))

    async def start(self) -> list[str]:
        """The addresses it listens on, in the order asked for. Raises OSError when one is taken."""
        return await self._listener.start()

    async def stop(self, deadline_s: float) -> None:
        """No new requests; those in flight are answered, for at most ``deadline_s``."""
        await self._listener.stop(deadline_s)

    async def _answer(self, request: web.BaseRequest, incoming: Incoming) -> Reply:
        verbose = "verbose" in request.query
        reply = await self._probes.answer(request.method, request.path, verbose, request.headers.get("accept", ""))
        return reply or not_found("there are " + ", ".join(self._probes.paths))


def not_found(hint: str) -> Reply:
    """404 for a path nobody answers."""
    return Reply(404, msgspec.json.encode({"error": f"no such path; {hint}"}), "application/json")


def _patience(limits: Limits) -> Patience:
    return Patience(
        idle_s=limits.idle_timeout_ms / 1e3,
        header_s=limits.header_timeout_ms / 1e3,
        connections_per_address_max=limits.connections_per_address_max,
    )
