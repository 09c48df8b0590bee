"""Gateways of several processes, as in the end-to-end tests."""

from __future__ import annotations

from tests.end_to_end.conftest import new_gateway

__all__ = ["new_gateway"]
