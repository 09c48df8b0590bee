"""Entries in a member of an object: where it stands among the others does not matter, and the last of each counts."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import example, given
from hypothesis import strategies as st

from gateway import _native
from gateway.errors import WeirError
from gateway.schema import OTEL_LOGS
from tests.property.strategies import ARRIVAL_NS

RULES = (
    ("message", "text required", "Body", ""),
    ("context", "attributes", "LogAttributes", ""),
    ("../environment", "attribute default=production", "ResourceAttributes", "environment"),
    ("../release", "text nonempty", "ScopeName", ""),
    ("../release", "attribute", "ResourceAttributes", "release"),
)
FEEDS = {column: source for column, source in OTEL_LOGS.feeds.items() if source in ("attributes", "event_name")}
PLAN = _native.EntryPlan([(OTEL_LOGS.layout, RULES, FEEDS)], unknown="LogAttributes", member="logs")
LONG = b'"' + b"x" * 65_530 + "€".encode() * 10 + b'"'

arrays = st.sampled_from(
    (
        b"[]",
        b'[{"message":"a"}]',
        b'[{"message":"b","context":{"k":{"l":[1, 2]}}},{"message":null},{"message":"c","other":{"m":{}}}]',
        b'[{"message":"d"} , 5]',
    )
)
values = st.sampled_from(
    (b'"test"', b'"\\u00e9\\ud800\xff"', b"null", b"1.50", b'""', b'{"a" : [ 1, NaN ]}', b"[ ]", b"true", LONG)
)
members = st.one_of(
    st.tuples(st.just("logs"), st.one_of(arrays, values)),
    st.tuples(st.sampled_from(("environment", "release")), values),
    st.tuples(st.just("other"), st.one_of(arrays, values)),
)


@dataclass
class Result:
    """What came of a body, in a form to compare."""

    block: bytes
    error: tuple[str, str, str | None] | None = None
    counts: tuple[object, ...] = ()


def decoded(pairs: list[tuple[str, bytes]], *, partial: bool, entries_max: int) -> Result:
    body = b"{" + b",".join(b'"%b":%b' % (name.encode(), value) for name, value in pairs) + b"}"
    columns = _native.Columns(OTEL_LOGS.layout)
    try:
        found = _native.entries(
            body, PLAN, [columns], constants={}, arrival_ns=ARRIVAL_NS, nan_literals=True, partial=partial,
            problems_max=3, entries_max=entries_max,
        )  # fmt: skip
    except WeirError as error:
        assert columns.rows == 0
        return Result(columns.native(), (type(error).__name__, str(error), getattr(error, "field", None)))
    counts = (found.rows, dict(found.rejected), found.message, found.problems, found.attributes_cut)
    return Result(columns.native(), counts=counts)


@given(st.lists(members, max_size=8), st.booleans(), st.sampled_from((0, 1)))
@example([("logs", b'[{"message":"a"}]'), ("environment", LONG)], False, 0)
@example([("logs", b'[{"message":"a"}]'), ("logs", b"null")], False, 0)
@example([("logs", b'[{"message":1},{}]'), ("logs", b'[{"message":2}]')], False, 0)
@example([("release", b'""'), ("logs", b'[{"message":"a"}]'), ("release", b'"1"')], True, 0)
def test_the_order_of_members_does_not_matter_and_the_last_of_each_counts(
    pairs: list[tuple[str, bytes]], partial: bool, entries_max: int
) -> None:
    last = dict(pairs)
    logs = last.pop("logs", None)
    plain = [*last.items(), *([] if logs is None else [("logs", logs)])]
    assert decoded(pairs, partial=partial, entries_max=entries_max) == decoded(
        plain, partial=partial, entries_max=entries_max
    )
