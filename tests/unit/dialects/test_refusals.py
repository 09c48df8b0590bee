"""Every error has a reply in every dialect: its status, its words, and never more than the error itself says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from google.rpc.status_pb2 import Status

from gateway.config import Config
from gateway.dialects import registry
from gateway.dialects.dialect import Dialect, Request
from gateway.errors import (
    Invalid,
    Malformed,
    MethodNotAllowed,
    Overloaded,
    Problem,
    RateLimited,
    SenderError,
    SubscriptionRequired,
    TooLarge,
    Unauthorized,
    WeirError,
)
from gateway.http import alerts, datasets, reads, streamlogia_reads

ERROR_BODIES = [alerts.error_body, datasets.error_body, reads.error_body, streamlogia_reads.error_body]
DIALECTS = [(route[1], dialect) for dialect in registry(Config().limits, Config().ndjson) for route in dialect.routes]


def below(at: type[WeirError]) -> Iterator[type[WeirError]]:
    """Every error there is: the general ones are raised too, and whoever went away gets an answer all the same."""
    for error in at.__subclasses__():
        yield error
        yield from below(error)


ERRORS = list(below(WeirError))


def made(error: type[WeirError]) -> WeirError:
    return MethodNotAllowed("say POST", allow=("POST",)) if error is MethodNotAllowed else error("what to change")


def request_to(path: str, media_type: str = "application/json") -> Request:
    return Request("POST", path, {}, {}, media_type, 0, "id", False)


def dialect_of(path: str) -> Dialect:
    return next(dialect for there, dialect in DIALECTS if there == path)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
@pytest.mark.parametrize("media_type", ["application/json", "application/x-protobuf", ""])
@pytest.mark.parametrize(("path", "dialect"), DIALECTS, ids=lambda value: value if isinstance(value, str) else "")
def test_every_error_has_a_reply_in_every_dialect(
    path: str, dialect: Dialect, media_type: str, error: type[WeirError]
) -> None:
    reply = dialect.refused(request_to(path, media_type), made(error))
    assert 400 <= reply.status <= 499 if issubclass(error, SenderError) else reply.status == 503
    if reply.media_type == "application/x-protobuf":
        assert media_type == "application/x-protobuf"
        assert Status.FromString(reply.body).message
    else:
        assert reply.media_type == "application/json"
        assert json.loads(reply.body)
    if reply.status == 503 or error is RateLimited:
        assert int(dict(reply.headers)["Retry-After"]) >= 1


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
@pytest.mark.parametrize("error_body", ERROR_BODIES, ids=lambda error_body: error_body.__module__)
def test_every_error_has_words_in_every_family_of_the_api(
    error_body: Callable[[WeirError], dict[str, Any]], error: type[WeirError]
) -> None:
    said = error_body(made(error))
    assert msgspec.json.encode(said)
    assert set(said) in ({"error"}, {"detail"}, {"error", "code", "message"})
    assert all(said.values())


@pytest.mark.parametrize(
    ("path", "error", "status", "body"),
    [
        ("/api/v1/logs/batch", Unauthorized("no"), 401, {"detail": "Invalid API key"}),
        ("/api/v1/logs/batch", Overloaded("no"), 503, {"detail": "Log storage temporarily unavailable"}),
        ("/api/v1/logs/batch", RateLimited("slower"), 429, {"detail": "slower"}),
        ("/api/v1/logs/batch", SubscriptionRequired("spent"), 402, {"detail": "spent"}),
        (
            "/v1/errors",
            Malformed("not JSON", offset=3),
            422,
            {"detail": [{"type": "json_invalid", "loc": ["body", 3], "msg": "not JSON"}]},
        ),
        ("/v1/ingest", RateLimited("slower"), 429, {"error": "too_many_requests", "message": "slower"}),
        ("/v1/ingest", SubscriptionRequired("spent"), 429, {"error": "too_many_requests", "message": "spent"}),
        ("/v1/ingest", TooLarge("big"), 413, {"error": "payload_too_large", "message": "big"}),
        ("/v1/ingest", Overloaded("full"), 503, {"error": "unavailable", "message": "full"}),
        ("/v1/ingest/bulk", RateLimited("slower"), 429, {"error": "resource_exhausted", "message": "slower"}),
        ("/v1/ingest/bulk", SubscriptionRequired("spent"), 429, {"error": "resource_exhausted", "message": "spent"}),
        ("/v1/ingest/otlp", TooLarge("big"), 400, {"error": "invalid_argument", "message": "big"}),
        ("/v1/ndjson", RateLimited("slower"), 429, {"error": "slower"}),
        ("/v1/ndjson", SubscriptionRequired("spent"), 402, {"error": "spent"}),
    ],
)
def test_errors_are_worded_as_the_vendor_words_them(
    path: str, error: WeirError, status: int, body: dict[str, object]
) -> None:
    reply = dialect_of(path).refused(request_to(path), error)
    said = json.loads(reply.body)
    assert (reply.status, said | {"code": said["error"]} if "code" in said else said) == (
        status,
        body | {"code": body["error"]} if "message" in body else body,
    )


def test_problems_of_streamlogia_are_told_by_entry_and_member() -> None:
    problems = [Problem(3, "[3].level", "is required"), Problem(4, "[4]", "must be an object")]
    error = Invalid("[3].level is required", field="[3].level", index=3, problems=problems)
    said = json.loads(dialect_of("/v1/ingest").refused(request_to("/v1/ingest"), error).body)
    assert said["message"] == "validation failed"
    assert said["details"] == [
        {"field": "[3].level", "message": "level is required"},
        {"field": "[4]", "message": "entry must be an object"},
    ]
