"""JSON by the standard library, held to RFC 8259 and to our rules: what stays of a document is its text.

Numbers keep their digits, of duplicate members the last one counts at its own place, lone surrogates
and bytes that are no UTF-8 become U+FFFD.
"""

from __future__ import annotations

import json
import re
from fractions import Fraction
from typing import Any

from gateway.errors import Malformed

NUMBER = re.compile(r"(-?(?:0|[1-9][0-9]*))(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]+))?", re.ASCII)
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"?', re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")


class Number(str):
    """A JSON number as it was spelt; also NaN, Infinity and -Infinity where they are allowed."""

    __slots__ = ()


class Members(dict[str, Any]):
    """A JSON object: of duplicates the last one. ``sent`` holds all its members, in order."""

    def __init__(self, sent: list[tuple[str, Any]]) -> None:
        super().__init__()
        self.sent = sent
        for name, value in sent:
            self.pop(name, None)
            self[name] = value


def parse(body: bytes, *, nesting_max: int, nan_literals: bool = False) -> Any:
    """The document: Members, list, str, Number, bool or None. Raises Malformed."""
    document = body.decode("utf-8", errors="replace")
    if nesting(document) > nesting_max:
        raise Malformed("nested too deep")

    def literal(word: str) -> Number:
        if not nan_literals:
            raise ValueError(word)
        return Number(word)

    try:
        value = json.loads(
            document, object_pairs_hook=Members, parse_int=Number, parse_float=Number, parse_constant=literal
        )
    except ValueError as error:
        raise Malformed("not JSON") from error
    return _repaired(value)


def exact(digits: str) -> Fraction | None:
    """The number that a JSON number is; None where it is far beyond anything we store."""
    match = NUMBER.fullmatch(digits)
    assert match is not None
    whole, fraction, exponent = match[1], match[2] or "", match[3] or "0"
    if not (whole + fraction).strip("-0"):
        return Fraction(0)
    if len(exponent) > 5 or len(whole) + len(fraction) > 4000:
        return None
    return Fraction(int(whole + fraction)) * Fraction(10) ** (int(exponent) - len(fraction))


def nesting(document: str) -> int:
    """How many arrays and objects are open at the deepest place; text in strings does not count."""
    depth = deepest = 0
    for character in _STRING.sub("", document):
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def _repaired(value: Any) -> Any:
    # Names are repaired before they are compared.
    if isinstance(value, Members):
        return Members([(_SURROGATE.sub("\ufffd", name), _repaired(inner)) for name, inner in value.sent])
    if isinstance(value, list):
        return [_repaired(inner) for inner in value]
    if isinstance(value, str) and not isinstance(value, Number):
        return _SURROGATE.sub("\ufffd", value)
    return value
