"""Queries of a dataset: from what its owner asks for to one SQL statement, and from its rows to the answer.

Nothing of a query becomes part of the statement but numbers counted here: fields are looked up in
the registered schema and written as the schema has them, values are parameters with a type that the
server puts in, and the names an answer's columns get are given to them afterwards.

    range    {from, to}, both inclusive; without one: seven days
    select   [{field} or {aggregate, field, as}]; without any: the number of records, by group
    where    [{field, op, value}], all of which must hold; op = != > >= < <= in
    groupBy  [field]; every field that is selected beside an aggregate must be in it
    orderBy  [{field, direction}], of a field or of a name in the answer; direction asc (default) or desc
    limit    100 where not given; more than 1000 is 1000

The documents leave open what follows; we decided:

* Aggregates are count, sum, avg, min, max and uniq, the number of different values. Without ``as`` they are
  called count, or like ``sum_amount``. Of no records sum is 0, and avg, min and max are null.
* Counts are strings, as all 64-bit integers are; sums and averages are numbers; times are RFC 3339.
* Only = != and in compare booleans. ``context`` takes part in nothing.
* Without ``orderBy`` groups come in their own order and records newest first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import msgspec

from gateway.datasets.fields import NAME, TYPES, Fields, table_name
from gateway.errors import Invalid, Malformed

DAYS = 7
LIMIT, LIMIT_MAX = 100, 1000
SELECTED_MAX, CONDITIONS_MAX, VALUES_MAX, VALUE_CHARS_MAX = 64, 64, 100, 4096
# All values of a query together, its range's too: they travel in an address.
PARAMETERS_MAX, VALUES_CHARS_MAX = 200, 64 << 10
_NS = 1_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9})\d*)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_TIME_S_MIN, _TIME_S_MAX = -2_208_988_800, 9_223_372_035
_SETTINGS = "SETTINGS max_execution_time = 20"


class Range(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    from_: str | None = msgspec.field(default=None, name="from")
    to: str | None = None


class Selected(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    field: str | None = None
    aggregate: Literal["count", "sum", "avg", "min", "max", "uniq"] | None = None
    as_: str | None = msgspec.field(default=None, name="as")


class Condition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    field: str
    op: Literal["=", "!=", ">", ">=", "<", "<=", "in"]
    value: Any


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    field: str
    direction: Literal["asc", "desc"] = "asc"


class Query(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"group_by": "groupBy", "order_by": "orderBy"}
):
    range: Range | None = None
    select: list[Selected] | None = None
    where: list[Condition] | None = None
    group_by: list[str] | None = None
    order_by: list[Order] | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class _Output:
    """A column of the answer: ``kind`` is a field's type, or ``count``."""

    name: str
    sql: str
    kind: str
    is_aggregate: bool


@dataclass(frozen=True, slots=True)
class Compiled:
    """A statement and its parameters; ``answer`` turns its rows into the sender's."""

    sql: str
    parameters: Mapping[str, object]
    outputs: tuple[tuple[str, str], ...]

    def answer(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Rows with the names that were asked for, and values as JSON has them."""
        return [
            {name: _shown(row[_alias(place)], kind) for place, (name, kind) in enumerate(self.outputs)} for row in rows
        ]


def parse(body: bytes) -> Query:
    """Raises Malformed, Invalid. An empty body asks for the defaults."""
    try:
        return msgspec.json.decode(body or b"{}", type=Query)
    except msgspec.ValidationError as error:
        raise _invalid(f"the query is not as it must be: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Malformed("the body is not JSON") from None


def compile_query(query: Query, dataset_id: int, declared: Fields, *, now: datetime) -> Compiled:
    """Raises Invalid, naming the part of the query that is wrong."""
    return _Compiler(declared, now).compile(query, dataset_id)


class _Compiler:
    def __init__(self, declared: Fields, now: datetime) -> None:
        self._types = {"timestamp": "timestamp", **dict(declared)}
        self._now = now
        self._parameters: dict[str, object] = {}
        self._value_chars = 0

    def compile(self, query: Query, dataset_id: int) -> Compiled:
        groups = self._groups(query.group_by or [])
        outputs = self._outputs(query.select, groups)
        conditions = [*self._range(query.range or Range()), *self._conditions(query.where or [])]
        is_grouped = bool(groups) or any(output.is_aggregate for output in outputs)
        parts = [
            "SELECT " + ", ".join(f"{output.sql} AS {_alias(place)}" for place, output in enumerate(outputs)),
            f"FROM `{table_name(dataset_id)}`",
            "WHERE " + " AND ".join(conditions),
            "GROUP BY " + ", ".join(f"`{name}`" for name in groups) if groups else "",
            self._order(query.order_by or [], outputs, groups, is_grouped=is_grouped),
            f"LIMIT {_limit(query.limit)}",
            _SETTINGS,
        ]
        sql = " ".join(part for part in parts if part)
        return Compiled(sql, self._parameters, tuple((output.name, output.kind) for output in outputs))

    def _groups(self, names: Sequence[str]) -> list[str]:
        _at_most("groupBy", names, SELECTED_MAX)
        return list(dict.fromkeys(self._field(f"groupBy[{place}]", name) for place, name in enumerate(names)))

    def _outputs(self, select: Sequence[Selected] | None, groups: Sequence[str]) -> list[_Output]:
        selected = select or [*(Selected(field=name) for name in groups), Selected(aggregate="count")]
        _at_most("select", selected, SELECTED_MAX)
        outputs = [self._output(f"select[{place}]", one) for place, one in enumerate(selected)]
        names = set[str]()
        needs_groups = bool(groups) or any(output.is_aggregate for output in outputs)
        for place, (one, output) in enumerate(zip(selected, outputs, strict=True)):
            if output.name in names:
                raise _invalid(f"select[{place}]: two columns of the answer have this name; give one another with as")
            names.add(output.name)
            if needs_groups and not output.is_aggregate and one.field not in groups:
                raise _invalid(f"select[{place}].field must be in groupBy, or be aggregated")
        return outputs

    def _output(self, where: str, one: Selected) -> _Output:
        if one.as_ is not None and not NAME.fullmatch(one.as_):
            raise _invalid(f"{where}.as must be a letter, then letters, digits and _, at most 63 in all")
        field = None if one.field is None else self._field(f"{where}.field", one.field)
        if one.aggregate == "count":
            return _Output(one.as_ or "count", "count()", "count", is_aggregate=True)
        if field is None:
            raise _invalid(f"{where}.field is required")
        if one.aggregate is None:
            type_ = self._types[field]
            return _Output(one.as_ or field, _readable(f"`{field}`", type_), type_, is_aggregate=False)
        name = one.as_ or f"{one.aggregate}_{field}"
        return _Output(name, *self._aggregate(where, one.aggregate, field), is_aggregate=True)

    def _aggregate(self, where: str, aggregate: str, field: str) -> tuple[str, str]:
        """The expression and what kind of value it gives."""
        type_ = self._types[field]
        if aggregate == "uniq":
            return f"uniqExact(`{field}`)", "count"
        if aggregate in ("sum", "avg"):
            if type_ != "number":
                raise _invalid(f"{where}: {aggregate} takes a field of type number")
            return (f"sum(`{field}`)" if aggregate == "sum" else f"avgOrNull(`{field}`)"), "number"
        if type_ == "boolean":
            raise _invalid(f"{where}: {aggregate} takes a field of type number, string or timestamp")
        return _readable(f"{aggregate}OrNull(`{field}`)", type_), type_

    def _range(self, asked: Range) -> list[str]:
        to_ns = (
            _time("range.to", asked.to)
            if asked.to is not None
            else int((self._now - _EPOCH) / timedelta(microseconds=1)) * 1000
        )
        from_ns = _time("range.from", asked.from_) if asked.from_ is not None else to_ns - DAYS * 86_400 * _NS
        if from_ns > to_ns:
            raise _invalid("range.from must not be after range.to")
        return [f"`timestamp` >= {self._moment(from_ns)}", f"`timestamp` <= {self._moment(to_ns)}"]

    def _conditions(self, conditions: Sequence[Condition]) -> list[str]:
        _at_most("where", conditions, CONDITIONS_MAX)
        return [self._condition(f"where[{place}]", one) for place, one in enumerate(conditions)]

    def _condition(self, where: str, one: Condition) -> str:
        field = self._field(f"{where}.field", one.field)
        type_ = self._types[field]
        if one.op == "in":
            if not isinstance(one.value, list) or not 1 <= len(one.value) <= VALUES_MAX:
                raise _invalid(f"{where}.value must be an array of 1 to {VALUES_MAX} values")
            values = [self._value(f"{where}.value[{place}]", type_, value) for place, value in enumerate(one.value)]
            return f"`{field}` IN ({', '.join(values)})"
        if type_ == "boolean" and one.op not in ("=", "!="):
            raise _invalid(f"{where}.op must be =, != or in for a boolean")
        return f"`{field}` {one.op} {self._value(f'{where}.value', type_, one.value)}"

    def _value(self, where: str, type_: str, value: object) -> str:
        if type_ == "timestamp":
            return self._moment(_time(where, value))
        if type_ == "boolean" and isinstance(value, bool):
            return self._parameter("true" if value else "false", "Bool")
        if type_ == "number" and isinstance(value, int | float) and not isinstance(value, bool):
            return self._parameter(_number(where, value), "Float64")
        if type_ == "string" and isinstance(value, str):
            self._value_chars += len(value)
            if len(value) > VALUE_CHARS_MAX or self._value_chars > VALUES_CHARS_MAX:
                raise _invalid(f"{where}: at most {VALUE_CHARS_MAX} characters, and {VALUES_CHARS_MAX} in a query")
            return self._parameter(value, TYPES[type_])
        raise _invalid(f"{where} must be a {type_}")

    def _moment(self, time_ns: int) -> str:
        return f"fromUnixTimestamp64Nano({self._parameter(time_ns, 'Int64')})"

    def _parameter(self, value: object, type_: str) -> str:
        if len(self._parameters) >= PARAMETERS_MAX:
            raise _invalid(f"where: at most {PARAMETERS_MAX} values in a query, those of range among them")
        name = f"p{len(self._parameters)}"
        self._parameters[name] = value
        return f"{{{name}:{type_}}}"

    def _order(
        self, orders: Sequence[Order], outputs: Sequence[_Output], groups: Sequence[str], *, is_grouped: bool
    ) -> str:
        _at_most("orderBy", orders, SELECTED_MAX)
        by_name = {output.name: _alias(place) for place, output in enumerate(outputs)}
        terms = []
        for place, order in enumerate(orders):
            if order.field in by_name:
                term = by_name[order.field]
            else:
                name = self._field(f"orderBy[{place}].field", order.field)
                if is_grouped and name not in groups:
                    raise _invalid(f"orderBy[{place}].field must be in groupBy, or a name in select")
                term = f"`{name}`"
            terms.append(f"{term} {order.direction.upper()}")
        if not terms:
            terms = [f"`{name}`" for name in groups] if is_grouped else ["`timestamp` DESC"]
        return "ORDER BY " + ", ".join(terms) if terms else ""

    def _field(self, where: str, name: str) -> str:
        if name == "context":
            raise _invalid(f"{where}: context cannot be queried")
        if name not in self._types:
            raise _invalid(f"{where} is not a field of this dataset's schema")
        return name


def _alias(place: int) -> str:
    # No field begins with an underscore.
    return f"__{place}"


def _readable(expression: str, type_: str) -> str:
    return f"toUnixTimestamp64Nano({expression})" if type_ == "timestamp" else expression


def _limit(limit: int | None) -> int:
    if limit is not None and limit < 1:
        raise _invalid("limit must be 1 or more")
    return LIMIT if limit is None else min(limit, LIMIT_MAX)


def _at_most(where: str, found: Sequence[object], most: int) -> None:
    if len(found) > most:
        raise _invalid(f"{where} has at most {most} elements")


def _number(where: str, value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        raise _invalid(f"{where} must be a number of 64 bits") from None


def _time(where: str, value: object) -> int:
    """Nanoseconds since 1970 of an RFC 3339 timestamp."""
    wrong = _invalid(f"{where} must be an RFC 3339 timestamp such as 2026-01-31T12:00:00Z")
    found = _TIME.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise wrong
    day, time_of_day, fraction, zone = found.groups()
    try:
        seconds = int((datetime.fromisoformat(f"{day}T{time_of_day}{zone.upper()}") - _EPOCH).total_seconds())
    except (ValueError, OverflowError):
        raise wrong from None
    if not _TIME_S_MIN <= seconds <= _TIME_S_MAX:
        raise _invalid(f"{where} must be in the years 1900 to 2262")
    return seconds * _NS + int((fraction or "0").ljust(9, "0"))


def _shown(value: Any, kind: str) -> Any:
    if value is None:
        return None
    if kind == "count":
        return str(value)
    if kind == "boolean":
        return bool(value)
    if kind == "timestamp":
        seconds, fraction_ns = divmod(int(value), _NS)
        fraction = f".{fraction_ns:09}".rstrip("0").rstrip(".")
        return (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S") + fraction + "Z"
    return value


def _invalid(message: str) -> Invalid:
    # The message may quote the body: it is the asker's, not our log's.
    return Invalid(message, log="a query of a dataset is not acceptable")
