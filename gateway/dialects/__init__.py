"""The dialects: one file per wire, and this registry.

A new dialect is one file, one word in ``registry`` and a folder of cases in ``tests/wire/cases``.
"""

from __future__ import annotations

from gateway.config import Limits, Ndjson
from gateway.dialects import brokle, datasets, loguro, ndjson, otlp, proliferate, signals, streamlogia
from gateway.dialects.dialect import Dialect

NEVER_RETRYING = ("proliferate", "streamlogia")
"""Dialects whose clients lose what is refused: none of them ever sends a request again."""


def registry(limits: Limits, names: Ndjson, find: datasets.Find = datasets.nowhere) -> tuple[Dialect, ...]:
    """Every dialect, in the order in which they may claim a request.

    ``names``: what NDJSON calls its members. ``find``: which datasets there are.
    """
    return (
        loguro.dialect(limits.loguro),
        datasets.dialect(limits.datasets, find),
        *proliferate.dialects(limits.proliferate),
        *streamlogia.dialects(limits.streamlogia, limits.streamlogia_bulk),
        ndjson.dialect(limits.ndjson, names),
        # Brokle's keys go before everybody's on the paths both answer.
        *brokle.dialects(limits.brokle),
        otlp.dialect(limits.otlp),
        signals.dialect(limits.otlp),
    )
