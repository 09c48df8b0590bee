"""A dataset's schema: the fields its owner declares, the table they make, the plan that decodes its records.

A schema is registered once and never changes. The body is the fields, bare or wrapped::

    {"country": "string", "amount": "number"}
    {"fields": {"country": "string", "amount": "number"}}

The documents leave open what follows; we decided:

* A field's name is a letter and then letters, digits and ``_``, at most 63 in all. Names that begin
  with ``_``, ``SpoolFrame`` and ``SpoolRow`` are the store's own; ``timestamp`` and ``context`` are in
  every record and are not declared.
* From 1 to ``FIELDS_MAX`` fields: what the compiled decoder holds of one record.
* A number is a 64-bit float: whole numbers are exact up to 2^53.
* Rows of datasets do not expire, and their timestamps are never moved: the retention of logs is not
  for business records.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from gateway._native import EntryPlan
from gateway.errors import Invalid, Malformed
from gateway.schema import Column, Index, Table

Fields = tuple[tuple[str, str], ...]
"""(name, type) of each declared field, in the order of the declaration."""

TYPES: Mapping[str, str] = {
    "string": "String",
    "number": "Float64",
    "boolean": "Bool",
    "timestamp": "DateTime64(9)",
}
"""A field's type -> its column's. The types are also the decoder's kinds."""

FIELDS_MAX = 62
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}", re.ASCII)
TRACE_ID = "__traceId"
_IMPLICIT = ("timestamp", "context")
_RESERVED = ("SpoolFrame", "SpoolRow")

_IDENTITY = (
    Column("SpoolFrame", "UInt64", "the frame this row was written in: gateway, slot, epoch, sequence number", "frame"),
    Column("SpoolRow", "UInt32", "the row's number within its frame; with SpoolFrame its identity for ever", "row"),
)


def parse(body: bytes) -> Fields:
    """The fields a registration declares. Raises Malformed, Invalid (naming the field)."""
    try:
        declared = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Malformed("the body is not JSON") from None
    if isinstance(declared, dict) and isinstance(declared.get("fields"), dict) and declared.keys() <= _WRAPPED:
        declared = declared["fields"]
    if not isinstance(declared, dict):
        raise _invalid('the body must be an object of fields, such as {"country": "string"}')
    if not 1 <= len(declared) <= FIELDS_MAX:
        raise _invalid(f"a schema has from 1 to {FIELDS_MAX} fields")
    return tuple((_name(name), _type(name, type_)) for name, type_ in declared.items())


_WRAPPED = {"version", "fields"}


def _name(name: str) -> str:
    if name in _IMPLICIT:
        raise _invalid(f"fields.{name} must not be declared: every record has it")
    if name in _RESERVED or not NAME.fullmatch(name):
        raise _invalid(
            "a field's name is a letter, then letters, digits and _, at most 63 in all, "
            f"and not {' or '.join(_RESERVED)}: {_shown(name)} is not"
        )
    return name


def _type(name: str, type_: Any) -> str:
    if not isinstance(type_, str) or type_ not in TYPES:
        raise _invalid(f"fields.{name} must be one of {', '.join(TYPES)}")
    return type_


def _shown(name: str) -> str:
    return ascii(name if len(name) <= 100 else name[:100] + "...")


def _invalid(message: str) -> Invalid:
    # The message may quote the body: it is the sender's, not our log's.
    return Invalid(message, log="a dataset's schema is not acceptable")


def table_name(dataset_id: int) -> str:
    """The ClickHouse table of a dataset."""
    return f"dataset_{dataset_id}"


def table(dataset_id: int, fields: Fields) -> Table:
    """The table that keeps a dataset's records."""
    return Table(
        name=table_name(dataset_id),
        columns=(
            Column("timestamp", "DateTime64(9)", "when it happened, as sent"),
            *(Column(name, TYPES[type_], f"declared as {type_}") for name, type_ in fields),
            Column("context", "String", "the record's context as JSON text"),
            Column(TRACE_ID, "String", "the X-Request-Id the record came with", "trace_id"),
            *_IDENTITY,
        ),
        order_by="timestamp",
        # Records may be of any year; a partition each would refuse an import of history.
        partition_by="tuple()",
        ttl_column="timestamp",
        indexes=(Index("idx_spool_frame", "SpoolFrame", "minmax GRANULARITY 1", "minmax GRANULARITY 1"),),
    )


def plan(described: Table, fields: Fields) -> EntryPlan:
    """What decodes a dataset's records: every declared field with its type, and nothing else."""
    rules: Sequence[tuple[str, str, str, str]] = [
        (name, f"{kind} required", name, "")
        for name, kind in (("timestamp", "timestamp"), ("context", "object"), *fields)
    ]
    return EntryPlan([(described.layout, rules, described.feeds)], unknown="reject")
