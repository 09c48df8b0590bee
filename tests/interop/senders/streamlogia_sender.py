"""Logs by the ``streamlogia`` package; run in its own environment. A task in, a report out."""

import asyncio
import json
import logging
import sys
from typing import Any

import flask  # type: ignore[import-not-found]
import httpx  # type: ignore[import-not-found]
import starlette.applications  # type: ignore[import-not-found]
import starlette.responses  # type: ignore[import-not-found]
import starlette.routing  # type: ignore[import-not-found]
import streamlogia  # type: ignore[import-not-found]

task = json.load(sys.stdin)
errors: list[str] = []
report: dict[str, Any] = {"errors": errors}


def client(**options: Any) -> Any:
    """A client as an application makes it, which tells us of every error."""
    return streamlogia.LogIngestorClient(
        api_key=task["key"],
        project_id=task["project"],
        base_url=task["url"],
        console=False,
        on_error=lambda error: errors.append(f"{type(error).__name__}: {error}"),
        **options,
    )


def by_client() -> None:
    """Batches from the queue; every level, nested meta, tags now and then."""
    sending = client(source="orders", batch_size=task["batch_size"])
    levels = (sending.debug, sending.info, sending.warn, sending.error)
    for number in range(task["count"]):
        meta = {"number": number, "order": {"id": f"o-{number}", "lines": [1, number]}, "paid": number % 2 == 0}
        levels[number % 4](f"record {number} ✓", meta=meta, tags=["orders", str(number)] if number % 3 else None)
    sending.close()


def by_handler() -> None:
    """The standard library's logging, wired by ``init``; an exception, an unknown level, a second logger."""
    sending = streamlogia.init(
        api_key=task["key"],
        project_id=task["project"],
        base_url=task["url"],
        source="worker",
        console=False,
        batch_size=10,
        log_level=logging.DEBUG,
        on_error=lambda error: errors.append(str(error)),
    )
    shop, stock = logging.getLogger("shop"), logging.getLogger("shop.stock")
    shop.debug("looking for %s", "bolts", extra={"meta": {"sku": 7}})
    stock.warning("few left")
    shop.critical("none left")
    shop.log(25, "between the levels")
    try:
        int("no price for ünïcode")
    except ValueError:
        shop.exception("could not sell")
    sending.close()


def by_flask() -> None:
    app = flask.Flask("payments")
    sending = client(source="payments")
    sending.flask_middleware(app)
    app.add_url_rule("/pay", view_func=lambda: ("paid", 201), methods=["POST"])
    app.add_url_rule("/broken", "broken", lambda: ("", 503))
    browser = app.test_client()
    browser.post("/pay", headers={"User-Agent": "interop/1", "X-Request-Id": "req-1"})
    browser.get("/nowhere", headers={"User-Agent": "interop/1"})
    browser.get("/broken", headers={"User-Agent": "interop/1"})
    sending.close()


def by_asgi() -> None:
    def answer(status: int) -> Any:
        return lambda request: starlette.responses.PlainTextResponse("", status)

    app = starlette.applications.Starlette(
        routes=[
            starlette.routing.Route("/pay", answer(201), methods=["POST"]),
            starlette.routing.Route("/broken", answer(503)),
        ]
    )
    sending = client(source="payments")
    app.add_middleware(sending.asgi_middleware())

    async def browse() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://shop", headers={"User-Agent": "interop/1"}
        ) as browser:
            await browser.post("/pay", headers={"X-Request-Id": "req-1"})
            await browser.get("/nowhere")
            await browser.get("/broken")

    asyncio.run(browse())
    sending.close()


def by_hand() -> None:
    """``ingest`` itself, with entries that the task holds; what it answers is reported."""
    try:
        report["answer"] = client().ingest(task["entries"])
    except OSError as error:
        errors.append(f"{type(error).__name__}: {error}")


def odd() -> None:
    """Values that only Python would put into JSON."""
    sending = client(source="odd", batch_size=100)
    meta = {
        "nan": float("nan"),
        "infinity": float("inf"),
        "below": [float("-inf"), -0.0],
        "huge": 2**80,
        "tiny": 1e-300,
        "none": None,
        "surrogate": "\ud800",
        "nul": "a\0b",
        "": "no name",
    }
    sending.info("odd \ud800 and \0", meta=meta, tags=["\udfff"])
    sending.info("after")
    sending.close()


def large() -> None:
    """One message over the limit of a request, then one that is not."""
    sending = client(source="large")
    sending.info("x" * task["bytes"])
    sending.close()


scenarios = (by_client, by_handler, by_flask, by_asgi, by_hand, odd, large)
{scenario.__name__: scenario for scenario in scenarios}[task["scenario"]]()
print(json.dumps(report))
