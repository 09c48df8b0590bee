"""What wire cases cannot show of Brokle: errors that are ours, its ids, and whose key it is."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from google.rpc.status_pb2 import Status

from gateway.dialects import brokle
from gateway.dialects.dialect import Request
from gateway.dialects.ulid import ulid
from gateway.errors import (
    Draining,
    Failed,
    Invalid,
    KeysUnavailable,
    Malformed,
    NotFound,
    OriginRefused,
    Overloaded,
    RateLimited,
    SubscriptionRequired,
    TooSlow,
    WeirError,
)

REQUEST = Request("POST", "/v1/logs", {}, {}, "application/json", 1_705_314_600_999_999_999, "req-1", True)
ERRORS = (
    (Malformed("m"), 400, 3, "BAD_REQUEST_ERROR"),
    (Invalid("m"), 400, 3, "VALIDATION_ERROR"),
    (SubscriptionRequired("m"), 429, 8, "QUOTA_EXCEEDED_ERROR"),
    (OriginRefused("m"), 403, 7, "FORBIDDEN_ERROR"),
    (NotFound("m"), 404, 5, "NOT_FOUND_ERROR"),
    (TooSlow("m"), 408, 4, "REQUEST_TIMEOUT_ERROR"),
    (RateLimited("m", retry_after_s=7), 429, 8, "RATE_LIMIT_ERROR"),
    (Overloaded("m", retry_after_s=3), 503, 14, "SERVICE_UNAVAILABLE_ERROR"),
    (Draining("m"), 503, 14, "SERVICE_UNAVAILABLE_ERROR"),
    (KeysUnavailable("m"), 503, 14, "SERVICE_UNAVAILABLE_ERROR"),
    (Failed("m"), 503, 14, "SERVICE_UNAVAILABLE_ERROR"),
)


@pytest.mark.parametrize(("error", "status", "rpc_code", "code"), ERRORS, ids=lambda value: type(value).__name__)
def test_every_error_is_an_envelope_in_json_and_a_status_in_protobuf(
    error: WeirError, status: int, rpc_code: int, code: str
) -> None:
    in_json = brokle.refused(REQUEST, error)
    assert json.loads(in_json.body) == {
        "error": {"code": code, "message": "m"},
        "meta": {"request_id": "req-1", "timestamp": "2024-01-15T10:30:00Z", "version": "v1"},
        "success": False,
    }
    in_protobuf = brokle.refused(replace(REQUEST, media_type="application/x-protobuf"), error)
    assert Status.FromString(in_protobuf.body) == Status(code=rpc_code, message="m")
    assert in_json.status == in_protobuf.status == status
    assert in_json.headers == in_protobuf.headers


@pytest.mark.parametrize(("error", "wait_s"), [(RateLimited("m", retry_after_s=7), "7"), (Draining("m"), "1")])
def test_who_should_come_back_is_told_when(error: WeirError, wait_s: str) -> None:
    assert brokle.refused(REQUEST, error).headers == (("Retry-After", wait_s),)


def test_a_spent_quota_does_not_invite_another_try() -> None:
    assert brokle.refused(REQUEST, SubscriptionRequired("m")).headers == ()


@pytest.mark.parametrize(
    ("key", "claimed"), [("bk_x", True), ("lg_x", False), ("BK_x", False), ("", False), (None, False)]
)
def test_a_key_is_brokles_by_its_prefix(key: str | None, claimed: bool) -> None:
    assert brokle.claims(key) == claimed


def test_a_ulid_is_its_milliseconds_and_then_random_letters() -> None:
    # The example of the specification.
    assert ulid(1_469_918_176_385_999_999, bytes).startswith("01ARYZ6S41")
    assert ulid(1_469_922_850_259_000_000, bytes) == "01ARZ3NDEK" + "0" * 16
    assert ulid(0, lambda size: b"\xff" * size) == "0" * 10 + "Z" * 16
    assert ulid(((1 << 48) - 1) * 1_000_000, bytes) == "7ZZZZZZZZZ" + "0" * 16


def test_ulids_sort_by_time_and_differ() -> None:
    made = [ulid(moment_ns) for moment_ns in range(1_700_000_000_000_000_000, 1_700_000_000_100_000_000, 1_000_000)]
    assert made == sorted(made)
    assert len({ulid(0) for _ in range(100)}) == 100
