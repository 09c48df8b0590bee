"""What ClickHouse's answers mean for the rows they are about.

    DeliveryError       an insert or a query that did not succeed
    +-- Busy              the server cannot now, and says so: the same bytes and token later
    +-- Ambiguous         nobody knows whether the rows were stored: the same bytes and token until a
    |                     clean answer, then count them
    +-- Operator          a person has to mend something: keep everything, alarm, try slowly
    +-- Poison            the server will never take these very rows: only this batch waits

No message ever holds a key or a row.
"""

from __future__ import annotations

import re
from typing import ClassVar

ERROR_BYTES_MAX = 4 << 10
"""Of an answer that is an error, as much is looked at."""


class DeliveryError(Exception):
    """An insert or a query that did not succeed. ``code`` is ClickHouse's, 0 when there is none.

    ``detail``: the server's own words, which may quote a row and so have no place in a log.
    """

    outcome: ClassVar[str] = "failed"

    def __init__(self, message: str, *, code: int = 0, detail: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.detail = detail


class Busy(DeliveryError):
    """The server cannot now; nothing is wrong with the rows."""

    outcome = "busy"


class Ambiguous(DeliveryError):
    """The rows may or may not be stored."""

    outcome = "ambiguous"


class TimedOut(Ambiguous):
    """No answer in the time there was for it."""


class Operator(DeliveryError):
    """A person has to mend something at the server, in its rights, or in this program."""

    outcome = "operator"


class AnswerTooLarge(Operator):
    """A query answers more than may be held at once."""


class Poison(DeliveryError):
    """The server will never take these rows."""

    outcome = "poison"


MEMORY_LIMIT = 241
TOO_MANY_PARTS = 252
CHECKSUM_WRONG = 40
UNCOMPRESSIBLE = 271
CUT_SHORT = frozenset({32, 33})
"""The server read less than we sent. Ambiguous, but when it repeats the block itself is short."""

CODES: dict[int, tuple[str, type[DeliveryError]]] = {
    # The answer does not say whether the rows were stored.
    32: ("ATTEMPT_TO_READ_AFTER_EOF", Ambiguous),
    33: ("CANNOT_READ_ALL_DATA", Ambiguous),
    159: ("TIMEOUT_EXCEEDED", Ambiguous),
    209: ("SOCKET_TIMEOUT", Ambiguous),
    210: ("NETWORK_ERROR", Ambiguous),
    236: ("ABORTED", Ambiguous),
    319: ("UNKNOWN_STATUS_OF_INSERT", Ambiguous),
    394: ("QUERY_WAS_CANCELLED", Ambiguous),
    425: ("SYSTEM_ERROR", Ambiguous),
    999: ("KEEPER_EXCEPTION", Ambiguous),
    # Later.
    160: ("TOO_SLOW", Busy),
    202: ("TOO_MANY_SIMULTANEOUS_QUERIES", Busy),
    203: ("NO_FREE_CONNECTION", Busy),
    225: ("NO_ZOOKEEPER", Busy),
    MEMORY_LIMIT: ("MEMORY_LIMIT_EXCEEDED", Busy),
    TOO_MANY_PARTS: ("TOO_MANY_PARTS", Busy),  # or too many partitions, see _classify
    285: ("TOO_FEW_LIVE_REPLICAS", Busy),
    439: ("CANNOT_SCHEDULE_TASK", Busy),
    # A person.
    60: ("UNKNOWN_TABLE", Operator),
    81: ("UNKNOWN_DATABASE", Operator),
    164: ("READONLY", Operator),
    192: ("UNKNOWN_USER", Operator),
    193: ("WRONG_PASSWORD", Operator),
    194: ("REQUIRED_PASSWORD", Operator),
    242: ("TABLE_IS_READ_ONLY", Operator),
    243: ("NOT_ENOUGH_SPACE", Operator),
    497: ("ACCESS_DENIED", Operator),
    516: ("AUTHENTICATION_FAILED", Operator),
    # These rows. Where it is the table after all, that does not fit any row, see ``poison.py``.
    6: ("CANNOT_PARSE_TEXT", Poison),
    25: ("CANNOT_PARSE_ESCAPE_SEQUENCE", Poison),
    26: ("CANNOT_PARSE_QUOTED_STRING", Poison),
    27: ("CANNOT_PARSE_INPUT_ASSERTION_FAILED", Poison),
    38: ("CANNOT_PARSE_DATE", Poison),
    CHECKSUM_WRONG: ("CHECKSUM_DOESNT_MATCH", Poison),
    41: ("CANNOT_PARSE_DATETIME", Poison),
    53: ("TYPE_MISMATCH", Poison),
    69: ("ARGUMENT_OUT_OF_BOUND", Poison),
    70: ("CANNOT_CONVERT_TYPE", Poison),
    72: ("CANNOT_PARSE_NUMBER", Poison),
    117: ("INCORRECT_DATA", Poison),
    128: ("TOO_LARGE_ARRAY_SIZE", Poison),
    131: ("TOO_LARGE_STRING_SIZE", Poison),
    153: ("ILLEGAL_DIVISION", Poison),
    UNCOMPRESSIBLE: ("CANNOT_DECOMPRESS", Poison),
    321: ("VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE", Poison),
    349: ("CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN", Poison),
    376: ("CANNOT_PARSE_UUID", Poison),
    395: ("FUNCTION_THROW_IF_VALUE_IS_NON_ZERO", Poison),
    407: ("DECIMAL_OVERFLOW", Poison),
    441: ("CANNOT_PARSE_DOMAIN_VALUE_FROM_STRING", Poison),
    467: ("CANNOT_PARSE_BOOL", Poison),
    469: ("VIOLATED_CONSTRAINT", Poison),
    632: ("UNEXPECTED_DATA_AFTER_PARSED_VALUE", Poison),
    675: ("CANNOT_PARSE_IPV4", Poison),
    676: ("CANNOT_PARSE_IPV6", Poison),
    691: ("UNKNOWN_ELEMENT_OF_ENUM", Poison),
}
"""What an exception code means for an insert: its name in ``system.errors``, and the error.

A code that is not here (a syntax error, a column that is missing, one that nobody foresaw) is a fault of
this program or of the table, never of a row: a person's.
"""


def check(status: int, code: str | None, body: bytes) -> None:
    """Raise what the answer says went wrong. A 200 can carry an exception as well."""
    if code is not None and code.strip().isdigit():
        raise _classify(int(code), body)
    if status == 200:
        if body.startswith(b"Code: ") or b"__exception__" in body[-ERROR_BYTES_MAX:]:
            found = re.search(rb"Code: (\d+)", body)
            raise _classify(int(found[1]) if found else 0, body)
        return
    if status == 429:
        raise Busy("HTTP 429 from something between us and ClickHouse")
    if status >= 500 or status == 408:
        raise Ambiguous(f"HTTP {status} without an exception code; something between us and ClickHouse answered")
    raise Operator(f"HTTP {status} without an exception code; is the URL ClickHouse's HTTP interface?")


def _classify(code: int, body: bytes) -> DeliveryError:
    name, kind = CODES.get(code, ("unknown to the gateway", Operator))
    if code == TOO_MANY_PARTS and b"Too many partitions" in body:
        name, kind = "TOO_MANY_PARTS (partitions)", Poison
    message = f"ClickHouse error {code} {name}"
    said = re.sub(r"\s+", " ", body[:400].decode(errors="replace")).strip()
    if kind in (Busy, Operator) and code in CODES:
        # These speak of tables and limits. The others may quote a row, which has no place in a log.
        message = f"{message}: {said}"
    return kind(message, code=code, detail=said)
