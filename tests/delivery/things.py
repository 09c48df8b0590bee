"""A small table of numbered things, and requests for it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from gateway._native import Columns, EntryPlan, entries
from gateway.schema import Column, Index, Table

DAY_NS = 86_400 * 10**9
NOON_NS = 1_790_000_000 * 10**9 // DAY_NS * DAY_NS + DAY_NS // 2

Thing = tuple[int, int]
"""Days after the first day, number."""


def things(name: str = "things") -> Table:
    """A table of numbered things, one partition a day."""
    return Table(
        name=name,
        columns=(
            Column("Timestamp", "DateTime64(9)", "when", "time"),
            Column("Number", "UInt64", "the thing's number"),
            Column("Body", "String", "the thing", "body"),
            Column("SpoolFrame", "UInt64", "frame", "frame"),
            Column("SpoolRow", "UInt32", "row", "row"),
        ),
        order_by="Timestamp",
        partition_by="toDate(Timestamp)",
        ttl_column="Timestamp",
        indexes=(Index("idx_spool_frame", "SpoolFrame", "minmax GRANULARITY 1", "minmax GRANULARITY 1"),),
    )


THINGS = things()
PLAN = EntryPlan(
    [
        (
            THINGS.layout,
            [("time", "time", "Timestamp", ""), ("number", "int", "Number", ""), ("body", "text", "Body", "")],
            {"Timestamp": "time"},
        )
    ]
)


def numbered(numbers: Iterable[int], *, days: int = 1) -> list[Thing]:
    """Things of the first day, or of ``days`` days in order."""
    listed = list(numbers)
    return [(index * days // len(listed), number) for index, number in enumerate(listed)]


def write(columns: Columns, some: Sequence[Thing], *, body: str = "a thing") -> None:
    """Append things, as a dialect would: by decoding a body."""
    request = json.dumps(
        [{"time": (NOON_NS + day * DAY_NS) // 10**9, "number": number, "body": body} for day, number in some]
    )
    entries(request.encode(), PLAN, [columns], constants={}, arrival_ns=NOON_NS)


def block(some: Sequence[Thing], frame: int) -> bytes:
    """Things as the block that ``frame`` would be."""
    columns = Columns(THINGS.layout)
    write(columns, some)
    return columns.cut(frame=frame, frame_column=3, row_column=4)
