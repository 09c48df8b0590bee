"""Loguro's datasets: records of a registered schema, to ``POST /datasets/{id}`` and ``/datasets/{id}/batch``.

Either path takes a record or an array of records, and answers 202 ``{"success":true,"status":"queued"}``.
Without an id, the header ``X-Loguro-Dataset-Id`` says which dataset, else it is the project's default.

    timestamp  RFC 3339, in a string
    context    any object; kept as JSON text
    ...        every declared field, with its type, and nothing else

The documents leave open what follows; we decided:
* A request is accepted or refused whole; 400 names the first record and field that is wrong, such as
  ``[1].amount``. ``null`` is never a value, and numbers are no timestamps.
* Timestamps are kept as sent, of the years 1970 to 2261 (what the decoder holds); others are refused.
* ``X-Request-Id`` is the records' trace id.
* Before the schema is registered it is 404 ``{"error":"Dataset schema not found"}``. A dataset that is
  not there, or another project's, is 404 ``{"error":"Dataset not found"}``.
* Errors are ``{"error": "<text>"}``. A spent quota is 402. Storage trouble is 503, never 500.
* Datasets are made, given a schema and queried with a personal access token: ``/api/datasets/{slug}``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from gateway._native import EntryPlan, entries
from gateway.config import DialectLimits
from gateway.dialects import loguro
from gateway.dialects.dialect import Context, Dialect, Outcome, Reply, Request, Rows
from gateway.errors import Invalid, NotFound

# From 1970 until before 2262: the decoder cannot tell what is beyond the years it holds.
TIME_MIN_NS = 0
TIME_MAX_NS = 9_214_646_400_000_000_000 - 1

_ID_HEADER = "x-loguro-dataset-id"


class Destination(Protocol):
    """Where a dataset's records go; ``gateway.datasets.catalog.Destination``."""

    @property
    def table(self) -> str: ...
    @property
    def plan(self) -> EntryPlan: ...


Find = Callable[[str, str | None], Destination]
"""(project id, dataset id or None for the default one) -> the dataset. Raises NotFound, GatewayError."""


def nowhere(project_id: str, dataset_id: str | None) -> Destination:
    """No dataset at all."""
    raise NotFound("Dataset not found")


def dialect(limits: DialectLimits, find: Find) -> Dialect:
    """``POST /datasets`` and below; ``find`` knows the datasets and waits for nothing."""

    def decode(request: Request, body: bytes, context: Context, rows: Rows) -> Outcome:
        dataset_id = request.path_values.get("id") or request.headers.get(_ID_HEADER)
        return decode_into(find(context.project_id, dataset_id), request, body, context, rows)

    return Dialect(
        name="datasets",
        # The exact paths win: no dataset's id is the word batch.
        routes=(
            ("POST", "/datasets"),
            ("POST", "/datasets/batch"),
            ("POST", "/datasets/{id}"),
            ("POST", "/datasets/{id}/batch"),
        ),
        limits=limits,
        decode=decode,
        accepted=accepted,
        refused=loguro.refused,
    )


def decode_into(dataset: Destination, request: Request, body: bytes, context: Context, rows: Rows) -> Outcome:
    """Raises Malformed, Invalid (naming the record and its field), TooLarge."""
    decoded = entries(
        body,
        dataset.plan,
        [rows.columns(dataset.table)],
        constants={
            "project_id": context.project_id,
            "dialect": "datasets",
            "trace_id": request.request_id if request.request_id_sent else "",
        },
        arrival_ns=request.arrival_ns,
        time_min_ns=TIME_MIN_NS,
        time_max_ns=TIME_MAX_NS,
        column_bytes_max=context.column_bytes_max,
    )
    if decoded.timestamps_clamped:
        raise Invalid("a timestamp is outside the years 1970 to 2261")
    return Outcome.of(decoded)


def accepted(request: Request, outcome: Outcome) -> Reply:
    """202, the same for one record and for many."""
    return loguro.accepted(request, outcome)
