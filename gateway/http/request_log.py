"""One line in the log for each request to a dialect: refusals at info, the rest at debug.

What the line holds is ours or was checked by us, never a key, a body or a text of the sender's; its
request id is the only thing a sender chooses. A kind of line, of which ``gateway.logs`` lets only some
through, is a dialect and a reason, so that a flood of one does not hide the others.
"""

from __future__ import annotations

import logging
from typing import Protocol

from gateway.dialects.dialect import Dialect, Request

log = logging.getLogger(__name__)


class Sender(Protocol):
    """Whose key it was; ``gateway.tenants.gate.Tenant``."""

    @property
    def project_id(self) -> str: ...
    @property
    def key_id(self) -> str: ...


def tell(
    request: Request,
    dialect: Dialect,
    sender: Sender | None,
    status: int,
    duration_s: float,
    refused: tuple[str, str] | None,
) -> None:
    """Logs a request that was answered. ``refused``: an error's reason and its text for the log.

    ``sender`` is None where the key was not good, or was not looked at.
    """
    level = logging.INFO if refused else logging.DEBUG
    if not log.isEnabledFor(level):
        return
    extra: dict[str, object] = {"request_id": request.request_id, "dialect": dialect.name, "status": status}
    if sender:
        extra |= {"project": sender.project_id, "key_id": sender.key_id}
    extra["duration_ms"] = round(duration_s * 1e3, 3)
    message = f"{dialect.name}: accepted"
    if refused:
        extra["reason"], extra["why"] = refused
        message = f"{dialect.name}: refused, {refused[0]}"
    log.log(level, message, extra=extra)
