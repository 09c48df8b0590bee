"""What senders may send, and what the world may make of it on the way."""

from __future__ import annotations

import json
from collections.abc import Sequence

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests.property.messages import (
    ABSENT,
    UINT64_MAX,
    Absent,
    AnyValue,
    Entries,
    Pairs,
    Record,
    ResourceLogs,
    ScopeLogs,
    Style,
    Text,
    document,
    protobuf,
)

ARRIVAL_NS = 1_795_298_400_000_000_000
TIME_MIN_NS = ARRIVAL_NS - 30 * 86_400 * 1_000_000_000
TIME_MAX_NS = ARRIVAL_NS + 86_400 * 1_000_000_000

# Ill-formed in each way there is: alone, overlong, a surrogate, beyond the last character, cut short.
ILL_FORMED = (
    b"\x80", b"\xff", b"\xc0\x80", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xf5\x80", b"\xe2\x82",
    b"\xf0\x9f\x92", b"\xf0\x9f", b"\xc3", b"\xe2\x28\xa1", b"\xf0\x80\x80\x80", b"\xed\xb0\x80\xed\xa0\x80",
)  # fmt: skip
NASTY = (b"\x00", b'"', b"\\", b"\x7f", b"\x1f", b"\n", "\u2028".encode(), "\U0010ffff".encode(), "é".encode(), b"/")

texts: SearchStrategy[bytes] = st.one_of(
    st.sampled_from((b"", b"a", b"key", b"hello world", "naïve 東京 \U0001f600".encode())),
    st.text(max_size=12).map(str.encode),
    st.lists(st.sampled_from((*ILL_FORMED, *NASTY, b"a", b"xyz")), max_size=6).map(b"".join),
    st.binary(max_size=12),
    st.integers(250, 260).map(lambda length: b"k" * length + "é€".encode()),
)
long_texts: SearchStrategy[bytes] = st.builds(
    lambda length, end: b"x" * length + end,
    st.integers(65_530, 65_540),
    st.sampled_from((b"", "é".encode(), "€".encode(), "\U0001f600".encode(), b"\xff\xff")),
)
"""Just about as long as a value may be."""
keys: SearchStrategy[bytes] = st.one_of(
    st.sampled_from(
        (b"a", b"b", b"c", b"event.name", b"log.record.uid", b"service.name", b"weir.timestamp", b"", b"\xff", b"\xfe")
    ),
    texts,
)
times: SearchStrategy[int] = st.one_of(
    st.just(0),
    st.integers(TIME_MIN_NS, TIME_MAX_NS),
    st.sampled_from((1, TIME_MIN_NS - 1, TIME_MAX_NS + 1, (1 << 63) - 1, 1 << 63, UINT64_MAX)),
    st.integers(0, UINT64_MAX),
)


def identifiers(length: int) -> SearchStrategy[bytes]:
    """Trace or span ids: right, all zeros, absent or of another length."""
    return st.one_of(
        st.binary(min_size=length, max_size=length), st.just(bytes(length)), st.just(b""), st.binary(max_size=20)
    )


scalars: SearchStrategy[AnyValue] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.sampled_from((0, -1, (1 << 63) - 1, -(1 << 63))),
    st.floats(),
    st.sampled_from((0.0, -0.0, 1e300, 1e16, 1e15, 1e-5, 1e-4, 5e-324, 1.5, 3.0, 123456789.123, 2.0**63)),
    st.binary(max_size=10),
    texts.map(Text),
)


def _containers(inner: SearchStrategy[AnyValue]) -> SearchStrategy[AnyValue]:
    entry = st.tuples(keys, st.one_of(inner, st.just(ABSENT)))
    return st.one_of(
        st.lists(inner, max_size=4).map(tuple), st.lists(entry, max_size=4).map(lambda entries: Pairs(tuple(entries)))
    )


@st.composite
def deep_values(draw: st.DrawFn) -> AnyValue:
    """A value just about as deep as may be."""
    value = draw(scalars)
    for _ in range(draw(st.integers(29, 35))):
        value = Pairs(((b"k", value),)) if draw(st.booleans()) else (value,)
    return value


values: SearchStrategy[AnyValue] = st.one_of(scalars, st.recursive(scalars, _containers, max_leaves=8))
values_or_absent: SearchStrategy[AnyValue | Absent] = st.one_of(
    values, values, values, st.just(ABSENT), st.deferred(deep_values)
)


@st.composite
def entry_lists(draw: st.DrawFn) -> Entries:
    """Attributes: mostly a few, sometimes about as many as are kept, or more."""
    entries = draw(st.lists(st.tuples(keys, values_or_absent), max_size=5))
    many = draw(st.one_of(st.just(0), st.just(0), st.just(0), st.just(0), st.integers(118, 140)))
    if many:
        different = draw(st.integers(1, many))
        at = draw(st.integers(0, many))
        plain: list[tuple[bytes, AnyValue | Absent]] = [(b"k%d" % (index % different), index) for index in range(many)]
        entries = plain[:at] + entries + plain[at:]
    return tuple(entries)


records: SearchStrategy[Record] = st.builds(
    Record,
    time_ns=times,
    observed_ns=times,
    severity_number=st.one_of(st.integers(0, 24), st.sampled_from((25, 255, 256 + 9, -1, (1 << 31) - 1, -(1 << 31)))),
    severity_text=texts,
    body=values_or_absent,
    attributes=entry_lists(),
    flags=st.one_of(st.integers(0, 255), st.integers(0, (1 << 32) - 1)),
    trace_id=identifiers(16),
    span_id=identifiers(8),
    event_name=texts,
)


def _few(element: SearchStrategy[Record]) -> SearchStrategy[tuple[Record, ...]]:
    return st.lists(element, max_size=3).map(tuple)


scopes: SearchStrategy[ScopeLogs] = st.builds(
    ScopeLogs, records=_few(records), name=texts, version=texts, attributes=entry_lists(), schema_url=texts
)
requests: SearchStrategy[tuple[ResourceLogs, ...]] = st.lists(
    st.builds(
        ResourceLogs,
        scopes=st.lists(scopes, max_size=2).map(tuple),
        attributes=entry_lists(),
        schema_url=texts,
    ),
    max_size=2,
).map(tuple)
styles: SearchStrategy[Style] = st.builds(Style, st.one_of(st.just(0), st.integers(0, 1 << 32)))

protobuf_bodies: SearchStrategy[bytes] = st.builds(protobuf, requests, styles)
json_bodies: SearchStrategy[bytes] = st.builds(document, requests, styles)


@st.composite
def mutations(draw: st.DrawFn, bodies: SearchStrategy[bytes]) -> bytes:
    """A body that something happened to: bits flipped, cut, bytes put in, taken out or moved."""
    body = draw(bodies)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(body)))
        kind = draw(st.sampled_from(("flip", "cut", "insert", "remove", "splice", "set")))
        if kind == "cut":
            body = body[:at]
        elif kind == "insert":
            body = body[:at] + draw(st.binary(min_size=1, max_size=6)) + body[at:]
        elif kind == "remove":
            body = body[:at] + body[at + draw(st.integers(1, 8)) :]
        elif kind == "splice":
            start = draw(st.integers(0, len(body)))
            body = body[:at] + body[start : start + draw(st.integers(1, 40))] + body[at:]
        elif at < len(body):
            byte = body[at] ^ (1 << draw(st.integers(0, 7))) if kind == "flip" else draw(st.integers(0, 255))
            body = body[:at] + bytes([byte]) + body[at + 1 :]
    return body


# Flat entries, spelt out: what matters is how they are written.

_ESCAPES = (rb"\ud800", rb"\udc00", rb"\ud83d\ude00", rb"\ude00\ud83d", rb"\u0000", rb"\u00e9", rb"\/", rb"\b\f\n\r\t")
json_strings: SearchStrategy[bytes] = st.one_of(
    st.text(max_size=10).map(lambda text: json.dumps(text).encode()),
    st.text(max_size=10).map(lambda text: json.dumps(text, ensure_ascii=False).encode()),
    st.lists(st.sampled_from((*ILL_FORMED, *_ESCAPES, b"a", b"\x7f", "é".encode())), max_size=5).map(
        lambda parts: b'"' + b"".join(parts) + b'"'
    ),
)
json_numbers: SearchStrategy[bytes] = st.one_of(
    st.integers(-1000, 1000).map(lambda number: b"%d" % number),
    st.integers().map(lambda number: b"%d" % number),
    st.floats(allow_nan=False, allow_infinity=False).map(lambda number: repr(number).encode()),
    st.sampled_from(
        (b"-0", b"0.0", b"-0.0", b"1.0", b"1.50", b"1e5", b"1E+2", b"12e-1", b"255", b"256", b"-128", b"-129", b"65536",
         b"18446744073709551615", b"18446744073709551616", b"-9223372036854775808", b"123456789012345678901234567890")
    ),
)  # fmt: skip
json_scalars: SearchStrategy[bytes] = st.one_of(
    st.sampled_from((b"null", b"true", b"false", b'""', b"[]", b"{}")), json_strings, json_numbers
)
member_names: SearchStrategy[bytes] = st.one_of(
    st.sampled_from((b'"a"', b'"b"', b'"a.b"', b'""', rb'"\u0061"')), json_strings
)


def json_object(members: list[tuple[bytes, bytes]]) -> bytes:
    return b"{" + b",".join(name + b":" + value for name, value in members) + b"}"


def _json_containers(inner: SearchStrategy[bytes]) -> SearchStrategy[bytes]:
    return st.one_of(
        st.lists(inner, max_size=4).map(lambda elements: b"[" + b" ,\t".join(elements) + b"\n]"),
        st.lists(st.tuples(member_names, inner), max_size=4).map(json_object),
    )


json_values: SearchStrategy[bytes] = st.recursive(json_scalars, _json_containers, max_leaves=8)
json_objects: SearchStrategy[bytes] = st.lists(st.tuples(member_names, json_values), max_size=5).map(json_object)


@st.composite
def moments(draw: st.DrawFn) -> bytes:
    """A date and time of RFC 3339, as a JSON string: right, or nearly."""
    year, month = draw(st.sampled_from((2026, 2026, 2026, 1970, 2024, 2100, 1969, 2261))), draw(st.integers(1, 12))
    day, hour = draw(st.integers(1, 31)), draw(st.integers(0, 23))
    minute, second = draw(st.integers(0, 59)), draw(st.integers(0, 59))
    fraction = draw(
        st.sampled_from(("", ".5", ".123", ".123456789", ".1234567899", ".000000001", ".0", ".999999999999"))
    )
    offset = draw(st.sampled_from(("Z", "z", "+00:00", "-00:00", "+05:30", "-23:59", "+23:59")))
    wrong = draw(st.sampled_from(("",) * 12 + (" ", "0", "Z", "+01", "+24:00")))
    separator = draw(st.sampled_from("TtTT "))
    date = f"{year:04}-{month:02}-{day:02}"
    return f'"{date}{separator}{hour:02}:{minute:02}:{second:02}{fraction}{offset}{wrong}"'.encode()


epoch_seconds: SearchStrategy[bytes] = st.one_of(
    st.integers(0, 4_102_444_800).map(lambda seconds: b"%d" % seconds),
    st.decimals(1_780_000_000, 1_800_000_000, places=9).map(lambda seconds: str(seconds).encode()),
    st.sampled_from(
        (
            b"1795298400.123456789999",
            b"1.795298400e9",
            b"17952984000000e-4",
            b"-1.5",
            b"0",
            b"-0.0",
            b"1e-30",
            b"1795298400.0",
        )
    ),
)
LEVEL_WORDS = (
    "trace", "debug", "info", "information", "notice", "warn", "warning", "error", "err", "critical", "fatal", "crit",
    "alert", "emergency", "emerg", "panic", "heartbeat", "INFO", "Warn", "HeartBeat",
)  # fmt: skip
NO_LEVEL_WORDS = ("", "verbose", "info ", "5", "ınfo", "information2")
level_words: SearchStrategy[bytes] = st.sampled_from((*LEVEL_WORDS * 3, *NO_LEVEL_WORDS)).map(
    lambda word: json.dumps(word).encode()
)


def values_of(kind: str) -> SearchStrategy[bytes]:
    """Values for a member with a rule of this kind: fitting ones."""
    word = kind.split()[0]
    fitting: dict[str, SearchStrategy[bytes]] = {
        "text": json_values,
        "string": json_strings,
        "level": level_words,
        "time": st.one_of(moments(), epoch_seconds, st.just(b'""')),
        "timestamp": moments(),
        "int": json_numbers,
        "number": json_numbers,
        "boolean": st.sampled_from((b"true", b"false")),
        "json": json_values,
        "object": json_objects,
        "attribute": json_values,
        "attributes": json_objects,
    }
    return fitting[word]


@st.composite
def entry(draw: st.DrawFn, rules: Sequence[tuple[str, str, str, str]], unknown: SearchStrategy[bytes] | None) -> bytes:
    """An entry for these rules: mostly what they ask for, in any order, now and then with something else."""
    members: list[tuple[bytes, bytes]] = []
    for path, kind, _, _ in rules:
        fate = draw(st.integers(0, 19))
        if fate > 2 or "required" in kind:
            value = draw(json_values) if fate == 3 else b"null" if fate == 4 else draw(values_of(kind))
            members.append((json.dumps(path).encode(), value))
    if unknown is not None:
        members += draw(st.lists(st.tuples(unknown, json_values), max_size=2))
    members = draw(st.permutations(members))
    if members and draw(st.integers(0, 9)) == 0:
        # A duplicate, which loses.
        members.insert(0, draw(st.sampled_from(members)))
    return json_object(members)


def entry_bodies(
    rules: Sequence[tuple[str, str, str, str]], unknown: SearchStrategy[bytes] | None = None
) -> SearchStrategy[bytes]:
    """An array of entries, or one."""
    one = entry(rules, unknown)
    return st.one_of(one, st.lists(one, max_size=4).map(lambda entries: b" [" + b", ".join(entries) + b"]\n"))
