"""The records the end-to-end tests send, and the text each attribute is stored as."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def attributes(number: int) -> dict[str, Any]:
    """Every type a value can have."""
    return {
        "number": number,
        "text": f'Grüße {number} \u2713 "quoted"',
        "empty": "",
        "negative": -number,
        "large": 2**63 - 1,
        "real": number + 0.25,
        "yes": True,
        "no": False,
        "raw": bytes((number % 256, 0, 255)),
        "list": ["a", number, 1.5, True, [None, "b"]],
        "map": {"inner": {"n": number}, "list": []},
    }


def stored(number: int) -> Mapping[str, str]:
    """``attributes(number)`` as ClickHouse has them (docs/rows.md)."""
    return {
        "number": str(number),
        "text": f'Grüße {number} \u2713 "quoted"',
        "empty": "",
        "negative": str(-number),
        "large": "9223372036854775807",
        "real": repr(number + 0.25),
        "yes": "true",
        "no": "false",
        "raw": _base64(bytes((number % 256, 0, 255))),
        "list": f'["a",{number},1.5,true,[null,"b"]]',
        "map": f'{{"inner":{{"n":{number}}},"list":[]}}',
    }


def _base64(data: bytes) -> str:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    bits = int.from_bytes(data)
    return "".join(alphabet[bits >> shift & 63] for shift in (18, 12, 6, 0))  # three bytes: no padding
