"""Flat JSON entries to rows by a plan's rules, slow and obvious: what the compiled decoder is held to.

Written from ``docs/rows.md`` and the docstring of ``EntryPlan``. Where both leave something open:

* the attributes of a row come in the order of the rules, and then the unknown members as sent;
* a member that is null is there for nobody: no value, and no attribute, but for the members of an
  object that is flattened, and for members kept as unknown: there it is the empty text;
* duplicates within JSON kept as text stay, for nothing is lost of what was sent; flattened, the last
  of a key wins as among attributes;
* ``nonempty`` is about the empty string;
* an unknown member that is kept is flattened as by an ``attributes`` rule with its own name;
* ``weir.timestamp`` goes to the map column fed by ``attributes``; without one it is only counted;
* a moment beyond what a plan's clamp leaves is read exactly before it is clamped.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from fractions import Fraction
from typing import Any

from gateway.errors import Invalid
from tests.reference.otlp import ATTRIBUTES_MAX, Attributes, Row, Value, default_of, json_string, ticks
from tests.reference.strict_json import Members, Number, exact, parse

NESTING_MAX = 64
SECOND_NS = 1_000_000_000
_EPOCH = date(1970, 1, 1)
LEVELS = {
    "trace": 1,
    "debug": 5,
    "info": 9, "information": 9, "notice": 9,
    "warn": 13, "warning": 13,
    "error": 17, "err": 17,
    "critical": 21, "fatal": 21, "crit": 21, "alert": 21, "emergency": 21, "emerg": 21, "panic": 21,
    "heartbeat": 9,
}  # fmt: skip
_RFC_3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:[.,](\d+))?(?:[Zz]|([+-])(\d\d)(?::?(\d\d))?)", re.ASCII
)
_INTEGERS = {
    **{f"UInt{bits}": (0, (1 << bits) - 1) for bits in (8, 16, 32, 64)},
    **{f"Int{bits}": (-(1 << bits - 1), (1 << bits - 1) - 1) for bits in (8, 16, 32, 64)},
}


@dataclass(frozen=True)
class Output:
    """One table of a plan, as ``EntryPlan`` takes it."""

    layout: Sequence[tuple[str, str]]
    rules: Sequence[tuple[str, str, str, str]]
    feeds: Mapping[str, str]

    def column_fed_by(self, source: str) -> str | None:
        return next((column for column, fed in self.feeds.items() if fed == source), None)


@dataclass(frozen=True)
class Request:
    """What holds for every entry of a request."""

    constants: Mapping[str, str]
    arrival_ns: int
    time_min_ns: int
    time_max_ns: int


@dataclass
class Result:
    """The rows of one output by column name, and what was counted."""

    rows: list[Row] = field(default_factory=list)
    attributes_cut: int = 0
    timestamps_clamped: int = 0


def decode_entries(
    body: bytes, output: Output, request: Request, *, unknown: str = "ignore", nan_literals: bool = False
) -> Result:
    """The rows of an array of entries, or of one. Raises Malformed (not JSON) or Invalid (not acceptable)."""
    document = parse(body, nesting_max=NESTING_MAX, nan_literals=nan_literals)
    entries = document if isinstance(document, list) else [document]
    result = Result()
    for index, entry in enumerate(entries):
        if not isinstance(entry, Members):
            raise Invalid(f"[{index}] must be an object", field=f"[{index}]", index=index)
        result.rows.append(_Entry(entry, index, output, request, unknown, result).row())
    return result


@dataclass
class _Entry:
    members: Members
    index: int
    output: Output
    request: Request
    unknown: str
    result: Result

    def row(self) -> Row:
        types = dict(self.output.layout)
        row = {name: self._unset(name, type_) for name, type_ in types.items()}
        maps: dict[str, _Map] = {name: _Map() for name, type_ in types.items() if type_.startswith("Map(")}
        for path, kind, column, _ in self.output.rules:
            # A time is arrival's until the entry says otherwise.
            if kind.split()[0] in ("time", "timestamp"):
                row[column] = self._clamp(self.request.arrival_ns)
            if "required" in kind.split() and self.members.get(path) is None:
                raise self._invalid(path, "is required")
        sent: dict[str, Value] = {}
        for path, kind, column, key in self.output.rules:
            value = self.members.get(path)
            if value is not None:
                sent |= self._apply(path, value, kind.split(), (column, key), maps)
        known = {rule[0] for rule in self.output.rules}
        for name in self.members.keys() - known if self.unknown == "reject" else ():
            raise self._invalid(name, "is not known")
        for name, value in self.members.items():
            if name not in known and self.unknown in maps:
                maps[self.unknown].flatten(name, value)
        row |= sent
        self._clamp_sent(sent, row, maps)
        types_of_time = {name: type_ for name, type_ in types.items() if "Date" in type_}
        for column, type_ in types_of_time.items():
            time_ns = row[column]
            if isinstance(time_ns, int):
                row[column] = ticks(time_ns, type_)
        for column, entries in maps.items():
            row[column] = entries.attributes.stored
            self.result.attributes_cut += entries.attributes.cut
        return row

    def _unset(self, column: str, type_: str) -> Value:
        """What a column holds that no member feeds."""
        source = self.output.feeds.get(column, "")
        if source in ("project_id", "dialect"):
            return self.request.constants.get(source, "")
        if source in ("time", "observed_time"):
            return self._clamp(self.request.arrival_ns)
        return default_of(type_)

    def _clamp(self, time_ns: int) -> int:
        return min(max(time_ns, self.request.time_min_ns), self.request.time_max_ns)

    def _clamp_sent(self, sent: Mapping[str, Value], row: Row, maps: Mapping[str, _Map]) -> None:
        """Bring the times that were sent into the window, and note those that moved."""
        times = {column for _, kind, column, _ in self.output.rules if kind.split()[0] in ("time", "timestamp")}
        for column in times & sent.keys():
            time_ns = sent[column]
            assert isinstance(time_ns, int)
            row[column] = self._clamp(time_ns)
            if row[column] != time_ns:
                self.result.timestamps_clamped += 1
                target = self.output.column_fed_by("attributes")
                if target is not None:
                    stored = maps[target].attributes.stored
                    stored.pop("weir.timestamp", None)
                    stored["weir.timestamp"] = str(time_ns)

    def _apply(
        self, name: str, value: Any, kind: list[str], target: tuple[str, str], maps: Mapping[str, _Map]
    ) -> dict[str, Value]:
        """What a member that is not null puts into columns; what it adds to maps is added."""
        column, key = target
        word, flags = kind[0], kind[1:]
        if "nonempty" in flags and value == "":
            raise self._invalid(name, "must not be empty")
        if word == "attribute":
            maps[column].add(key, as_text(value))
            return {}
        if word == "attributes":
            if not isinstance(value, Members):
                raise self._invalid(name, "must be an object")
            for inner_name, inner in value.sent:
                maps[column].flatten(key + inner_name, inner)
            return {}
        if word == "level":
            return self._level(name, value, column)
        if word == "time" and value == "" and not isinstance(value, Number):
            return {}
        return {column: self._scalar(name, value, word, dict(self.output.layout)[column])}

    def _scalar(self, name: str, value: Any, word: str, type_: str) -> Value:
        plain_string = isinstance(value, str) and not isinstance(value, Number)
        if word == "text":
            return as_text(value)
        if word == "string" and plain_string:
            return str(value)
        if word == "json" or (word == "object" and isinstance(value, Members)):
            return as_json(value)
        if word == "boolean" and isinstance(value, bool):
            return value if type_ in ("Bool", "Nullable(Bool)") else int(value)
        if word == "number" and isinstance(value, Number):
            return float(value) if type_.endswith("64") or type_.endswith("64)") else _narrow(float(value))
        if word in ("time", "timestamp") and plain_string:
            time_ns = rfc_3339(value)
            if time_ns is not None:
                return time_ns
        if word == "time" and isinstance(value, Number):
            seconds = _finite(value)
            if seconds is not None:
                # Told apart by size: seconds, milliseconds, microseconds, nanoseconds.
                unit = sum(abs(float(value)) >= limit for limit in (1e11, 1e14, 1e17))
                # Digits past nine are cut: towards zero.
                return _saturated(int(seconds * SECOND_NS / 1000**unit))
        if word == "int" and isinstance(value, Number):
            low, high = _INTEGERS[type_.removeprefix("Nullable(").removesuffix(")")]
            number = _finite(value)
            if number is not None and number.denominator == 1 and low <= number <= high:
                return int(number)
        raise self._invalid(name, f"must be {word}")

    def _level(self, name: str, value: Any, column: str) -> dict[str, Value]:
        word = value.lower() if isinstance(value, str) and value.isascii() else ""
        if word not in LEVELS:
            raise self._invalid(name, "is no level")
        cells: dict[str, Value] = {column: str(value)}
        number_column = self.output.column_fed_by("severity_number")
        if number_column is not None:
            cells[number_column] = LEVELS[word]
        event_column = self.output.column_fed_by("event_name")
        if word == "heartbeat" and event_column is not None:
            cells[event_column] = "heartbeat"
        return cells

    def _invalid(self, name: str, what: str) -> Invalid:
        return Invalid(f"[{self.index}].{name} {what}", field=f"[{self.index}].{name}", index=self.index)


@dataclass
class _Map:
    """The entries of a map column under the cap on their number."""

    attributes: Attributes = field(default_factory=Attributes)
    seen: int = 0

    def add(self, key: str, value: str) -> None:
        self.seen += 1
        if self.seen > ATTRIBUTES_MAX:
            self.attributes.cut += 1
        else:
            self.attributes.add(key, value)

    def flatten(self, key: str, value: Any) -> None:
        """An object that has members adds those, their names behind a dot."""
        if isinstance(value, Members) and value:
            for name, inner in value.sent:
                self.flatten(f"{key}.{name}", inner)
        else:
            self.add(key, as_text(value))


def _narrow(number: float) -> float:
    """What is left of a number in 32 bits."""
    try:
        narrowed: float = struct.unpack("<f", struct.pack("<f", number))[0]
    except OverflowError:
        return float("inf") if number > 0 else float("-inf")
    return narrowed


def _finite(number: Number) -> Fraction | None:
    return None if number in ("NaN", "Infinity", "-Infinity") else exact(number)


def as_text(value: Any) -> str:
    """A JSON value as the text of a column or an attribute."""
    if value is None:
        return ""
    return str(value) if isinstance(value, str) else as_json(value)


def as_json(value: Any) -> str:
    """A JSON value as compact JSON, numbers as sent."""
    if isinstance(value, Members):
        return "{" + ",".join(f"{json_string(name)}:{as_json(inner)}" for name, inner in value.sent) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(as_json, value)) + "]"
    if isinstance(value, Number):
        return json_string(value) if value in ("NaN", "Infinity", "-Infinity") else str(value)
    if isinstance(value, str):
        return json_string(value)
    return {None: "null", True: "true", False: "false"}[value]


def rfc_3339(written: str) -> int | None:
    """Nanoseconds since 1970 of a date and time; None when it is none."""
    match = _RFC_3339.fullmatch(written)
    if not match or match.group(1) == "0000":
        return None
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    fraction, sign, offset_hour, offset_minute = match.groups()[6:]
    offset_hours, offset_minutes = int(offset_hour or 0), int(offset_minute or 0)
    # A leap second is the first one of the next minute.
    if hour > 23 or minute > 59 or second > 60 or offset_hours > 23 or offset_minutes > 59:
        return None
    try:
        # The calendar repeats every 400 years, which are 146,097 days; Python's has no year 0.
        days = date(2000 + year % 400, month, day).toordinal() + (year // 400 - 5) * 146_097 - _EPOCH.toordinal()
    except ValueError:
        return None
    offset_s = (offset_hours * 60 + offset_minutes) * 60 * (-1 if sign == "-" else 1)
    seconds = days * 86_400 + hour * 3_600 + minute * 60 + second - offset_s
    return _saturated(seconds * SECOND_NS + int((fraction or "")[:9].ljust(9, "0")))


def _saturated(time_ns: int) -> int:
    return max(-(1 << 63), min(time_ns, (1 << 63) - 1))
