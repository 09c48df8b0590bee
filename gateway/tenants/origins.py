"""Web origins in one spelling, so that two can be compared as text (RFC 6454 section 4, 6.2).

An origin is a scheme, a host and a port and nothing else. Lower case, a scheme's default port left
out, internationalised names as browsers send them (``xn--``), IPv6 addresses compressed in brackets.
"""

from __future__ import annotations

import ipaddress
import re

ORIGIN_CHARS_MAX = 512
_DEFAULT_PORTS = {"http": 80, "https": 443}
_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://"
    r"(?:\[(?P<ipv6>[0-9a-f:.]+)\]|(?P<host>[^\s/?#@:\[\]\\,]+))"
    r"(?::(?P<port>[0-9]{1,5}))?/?",
    re.IGNORECASE | re.ASCII,
)
_HOST = re.compile(r"[a-z0-9._-]+", re.ASCII)


def normal_origin(text: str) -> str | None:
    """The one spelling of an origin, or None when the text is not one: ``null``, ``*``, a path, a list."""
    parts = _ORIGIN.fullmatch(text) if len(text) <= ORIGIN_CHARS_MAX and text != "null" else None
    if parts is None:
        return None
    host = _ipv6(parts["ipv6"]) if parts["ipv6"] else _name(parts["host"])
    if host is None:
        return None
    scheme = parts["scheme"].lower()
    if parts["port"] is None:
        return f"{scheme}://{host}"
    port = int(parts["port"])
    if not 0 < port < 65536:
        return None
    return f"{scheme}://{host}" if _DEFAULT_PORTS.get(scheme) == port else f"{scheme}://{host}:{port}"


def _ipv6(text: str) -> str | None:
    try:
        return f"[{ipaddress.IPv6Address(text).compressed}]"
    except ValueError:
        return None


def _name(text: str) -> str | None:
    name = text.lower()
    if not name.isascii():
        try:
            name = name.encode("idna").decode("ascii").lower()
        except UnicodeError:
            return None
    return name if _HOST.fullmatch(name) else None
