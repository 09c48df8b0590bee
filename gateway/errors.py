"""Everything that can go wrong with a request, by whose fault it is and what to do next.

    WeirError
    +-- SenderError             the sender must change something; sending the same again fails again
    |   +-- Malformed             400  the bytes are not what the content type says
    |   +-- Invalid               400  well-formed, but a field is not acceptable
    |   +-- Unauthorized          401  no key, or a key nobody issued, or a revoked one
    |   +-- SubscriptionRequired  402  the month's quota is spent or the subscription is inactive
    |   +-- OriginRefused         403  a browser key used from an origin that is not on its list
    |   +-- NotFound              404  no such path
    |   +-- MethodNotAllowed      405  the path exists, the method does not
    |   +-- TooSlow               408  the body did not arrive in time
    |   +-- Conflict              409  what is to be made is there already and does not change
    |   +-- TooLarge              413  over a size limit, on the wire or once decompressed or decoded
    |   +-- UnsupportedMedia      415  a content type or encoding this path does not take
    |   +-- KeyReused             422  an Idempotency-Key that was used for another body
    |   +-- RateLimited           429  too many requests with this key
    |   +-- Disconnected               the sender went away; nobody is left to read a reply
    +-- GatewayError            our side; the sender should send the same again later
        +-- Overloaded            503  buffers are full
        +-- ProjectBusy           503  the project has its share of requests in flight
        +-- Draining              503  this process is shutting down
        +-- KeysUnavailable       503  the key is not known and the key store is away: never a 401
        +-- Failed                503  what nobody foresaw; not 500, because senders drop on 500

Every error has two texts: ``str(error)`` is for the sender (where, and what to change) and
``error.log`` is for our log. Neither ever holds a key or a body. A dialect turns an error into its
own reply; nothing else does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one record: its number from 0, the path of the field, what it must be."""

    index: int
    field: str
    message: str


class WeirError(Exception):
    """A request that could not be accepted.

    ``status`` is the HTTP status where the dialect has no other word for it, ``reason`` the metric
    label, ``retryable`` whether the same request may succeed later, ``retry_after_s`` how long to
    wait when that is known. ``notices`` are headers for the reply, in any dialect.
    """

    status: ClassVar[int] = 500
    reason: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, log: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.log = log or message
        self.retry_after_s = retry_after_s
        self.notices: tuple[tuple[str, str], ...] = ()


class SenderError(WeirError):
    """The sender must change something."""

    status = 400
    reason = "refused"


class Malformed(SenderError):
    """The bytes are not what the content type says. ``offset`` is in bytes of the decompressed body."""

    reason = "malformed"

    def __init__(self, message: str, *, offset: int | None = None, log: str | None = None) -> None:
        super().__init__(message, log=log)
        self.offset = offset


class Invalid(SenderError):
    """Well-formed, but not acceptable. ``field`` is a path such as ``[3].level``, ``index`` its record.

    ``problems`` lists what is wrong, the first of each record, as many as the dialect asked for.
    """

    reason = "invalid"

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        index: int | None = None,
        problems: Sequence[Problem] = (),
        log: str | None = None,
    ) -> None:
        super().__init__(message, log=log)
        self.field = field
        self.index = index
        self.problems = tuple(problems)


class Unauthorized(SenderError):
    """No key, a key nobody issued, or a revoked one."""

    status = 401
    reason = "unauthorized"


class SubscriptionRequired(SenderError):
    """The month's quota is spent or the subscription is inactive."""

    status = 402
    reason = "quota"


class OriginRefused(SenderError):
    """A browser key used from an origin that is not on its list."""

    status = 403
    reason = "origin"


class NotFound(SenderError):
    """No such path."""

    status = 404
    reason = "not_found"


class MethodNotAllowed(SenderError):
    """The path exists, the method does not. ``allow`` lists the methods that do."""

    status = 405
    reason = "method"

    def __init__(self, message: str, *, allow: tuple[str, ...]) -> None:
        super().__init__(message)
        self.allow = allow


class TooSlow(SenderError):
    """The body did not arrive in time."""

    status = 408
    reason = "slow"
    retryable = True


class Conflict(SenderError):
    """What is to be made is there already and does not change."""

    status = 409
    reason = "conflict"


class TooLarge(SenderError):
    """Over a size limit, on the wire or once decompressed or decoded."""

    status = 413
    reason = "too_large"


class UnsupportedMedia(SenderError):
    """A content type or content encoding this path does not take."""

    status = 415
    reason = "media_type"


class KeyReused(SenderError):
    """An Idempotency-Key that was used for another body."""

    status = 422
    reason = "idempotency_key"


class RateLimited(SenderError):
    """Too many requests with this key."""

    status = 429
    reason = "rate"
    retryable = True


class Disconnected(SenderError):
    """The sender went away before its body was here. Nobody is left to read the reply."""

    reason = "disconnected"


class GatewayError(WeirError):
    """Our side: the sender should send the same again later."""

    status = 503
    reason = "unavailable"
    retryable = True


class Overloaded(GatewayError):
    """Buffers are full: nothing more can be accepted without risking what was accepted."""

    reason = "overloaded"


class ProjectBusy(GatewayError):
    """The project has as many requests in flight as one may: the other places are for others."""

    reason = "project_busy"


class Draining(GatewayError):
    """This process is shutting down."""

    reason = "draining"


class KeysUnavailable(GatewayError):
    """The key is not known here and the key store cannot be asked. Never a 401: senders drop on 401."""

    reason = "keys_unavailable"


class Failed(GatewayError):
    """Something that nobody foresaw. 503: senders drop what was answered with 500."""

    reason = "internal"
