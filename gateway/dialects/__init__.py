"""The dialects: one file per wire, and this registry.

A new dialect is one file, one word in ``registry`` and a folder of cases in ``tests/wire/cases``.
"""

from __future__ import annotations

from gateway.config import Limits
from gateway.dialects import brokle, loguro, otlp, signals
from gateway.dialects.dialect import Dialect


def registry(limits: Limits) -> tuple[Dialect, ...]:
    """Every dialect, in the order in which they may claim a request."""
    return (
        loguro.dialect(limits.loguro),
        # Brokle's keys go before everybody's on the paths both answer.
        *brokle.dialects(limits.brokle),
        otlp.dialect(limits.otlp),
        signals.dialect(limits.otlp),
    )
