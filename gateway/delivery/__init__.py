"""Rows to ClickHouse, nothing lost on the way."""

from gateway.delivery.delivery import Delivery
from gateway.delivery.settings import Settings

__all__ = ["Delivery", "Settings"]
