"""The compiled part's contract: bytes to columns to blocks, with no Python object per record.

The GIL: ``otlp_protobuf``, ``otlp_json``, ``entries``, ``json_check``, ``json_member`` and ``mentions`` let go of
it while they walk a body above 64 KiB, so that a thread can decode while an event loop goes on; shorter ones keep
it, since getting it back can take longer than they do. They keep it too for a body that somebody could change
meanwhile (a bytearray).
``Columns.cut`` lets go of it in the same way, ``crc32c`` above 4 KiB.

Sources in ``_native/``; ``mypy.stubtest`` holds this file to the built extension.
"""

import builtins
from collections.abc import Mapping, Sequence
from typing import final

from typing_extensions import Buffer

from gateway.errors import Problem

ATTRIBUTES_MAX: int
"""Attributes kept of one record, scope or resource; what is over is cut and counted."""
KEY_BYTES_MAX: int
"""Bytes kept of an attribute's key."""
VALUE_BYTES_MAX: int
"""Bytes kept of an attribute's value."""
RECORD_BYTES_MAX: int
"""Bytes of one record on the wire; a larger one is rejected."""
VALUE_DEPTH_MAX: int
"""How deep AnyValues may nest; a deeper record is rejected."""
JSON_DEPTH_MAX: int
"""How deep JSON may nest; a deeper body is malformed."""

@final
class Columns:
    """An open block: one growable column per (name, type) of one table.

    Types: U/Int8-64, Float32/64, Bool, Date, DateTime, DateTime64(n), String,
    LowCardinality(String), Map(LowCardinality(String), String), and Nullable of the fixed-width
    ones and of String. Of one thread at a time: while a call that let go of the GIL writes or cuts them,
    whatever else is done with them raises RuntimeError.
    """

    def __init__(self, layout: Sequence[tuple[str, str]]) -> None: ...
    @property
    def layout(self) -> tuple[tuple[str, str], ...]: ...
    @property
    def rows(self) -> int: ...
    @property
    def bytes(self) -> int:
        """Uncompressed bytes held."""
    def mark(self) -> None:
        """Remember the state that ``rollback`` returns to."""
    def rollback(self) -> None:
        """Cut back to the last mark; what was there before is byte-equal."""
    def clear(self) -> None: ...
    def native(self) -> builtins.bytes:
        """The rows as an uncompressed ClickHouse Native block."""
    def cut(
        self, *, frame: int, frame_column: int = ..., row_column: int = ..., compression: str = ...
    ) -> builtins.bytes:
        """The rows as a compressed Native block, identified by ``frame``; the columns are empty again.

        Writes ``frame`` into column ``frame_column`` and 0..rows-1 into ``row_column`` (-1: none).
        ``compression``: ``lz4`` or ``none``, in ClickHouse's block framing.
        """

def block_checksum(data: Buffer) -> bytes:
    """The 16 bytes in front of a compressed frame (CityHash128, version 1.0.2), for what follows them."""

@final
class Decoded:
    """What one request came to."""

    @property
    def rows(self) -> int:
        """Records that became a row of the first output."""
    @property
    def repeated(self) -> int:
        """Of these, those that were not written, being known."""
    @property
    def uids(self) -> bytes:
        """An entry for ``KeyCells`` of each record that has a uid, of 32 bytes; its number among the records at 28."""
    @property
    def outputs(self) -> tuple[int, ...]:
        """Rows written to each output."""
    @property
    def rejected(self) -> Mapping[str, int]:
        """Records that did not, by reason."""
    @property
    def attributes_cut(self) -> int: ...
    @property
    def timestamps_clamped(self) -> int: ...
    @property
    def message(self) -> str:
        """About the first rejected record: where and what to do; empty when none was."""
    @property
    def problems(self) -> tuple[Problem, ...]:
        """What is wrong with the first entries that were left out."""

@final
class OtlpPlan:
    """Which field of an OTLP log record feeds which column.

    ``outputs``: for each table its layout and its feeds (column name -> source, ``schema.SOURCES``).
    Every record is written to every output; to those whose number is in ``genai`` only GenAI events
    are, and their feeds may name attributes (``schema.GENAI_EVENTS``). Not the first one.
    """

    def __init__(
        self,
        outputs: Sequence[tuple[Sequence[tuple[str, str]], Mapping[str, str]]],
        *,
        genai: Sequence[int] = ...,
    ) -> None: ...

@final
class EntryPlan:
    """Which member of a JSON entry feeds which column.

    ``outputs``: for each table its layout and its rules. A rule is (path, kind, column, key):
    ``path`` a member name (``"user.id"`` does not descend), ``kind`` one of the kinds below,
    ``column`` the name of the column it feeds, ``key`` the attribute key or key prefix where the
    column is a map, else ``""``. Flags follow the kind after a space: ``required`` (must be there
    and not null), ``nonempty``.

    ``default=TEXT`` (of a text, an attribute or a level, where there is none), ``uuid``, ``array`` (it must be one),
    ``lenient`` (of a level or a time: what is none does not refuse the entry; see docs/rows.md).

    Kinds: ``text`` (string; any other scalar as its text; arrays and objects as compact JSON),
    ``string`` (a JSON string only), ``level`` (severity text, and the number into the column fed by
    ``severity_number``; heartbeat also sets the event name), ``time`` (RFC 3339, or a number: epoch
    seconds), ``int``, ``number``, ``boolean``, ``timestamp`` (RFC 3339 only), ``json`` (compact
    JSON text), ``object`` (the same, must be an object), ``attribute`` (one text value under
    ``key``), ``attributes`` (an object flattened with dots, each key behind the prefix ``key``).

    ``feeds``: as in ``OtlpPlan``, for the request's and arrival's sources. ``unknown``: what to do
    with other members: ``ignore``, ``reject``, or the name of a map column to keep them in.

    ``member``: the entries are the elements of this member of an object, and a rule whose path begins
    with ``../`` means another member of that object, the same for every entry.
    """

    def __init__(
        self,
        outputs: Sequence[tuple[Sequence[tuple[str, str]], Sequence[tuple[str, str, str, str]], Mapping[str, str]]],
        *,
        unknown: str = ...,
        member: str = ...,
    ) -> None: ...

def otlp_protobuf(
    body: Buffer,
    plan: OtlpPlan,
    outputs: Sequence[Columns],
    *,
    constants: Mapping[str, str],
    arrival_ns: int,
    time_min_ns: int = ...,
    time_max_ns: int = ...,
    column_bytes_max: int = ...,
    content_bytes_max: int | None = ...,
    known: bytes = ...,
) -> Decoded:
    """An ExportLogsServiceRequest in protobuf. Raises Malformed, TooLarge; then nothing was written.

    ``constants``: text for the sources ``project_id`` and ``dialect``, and for ``trace_id`` in rows
    that have none of their own; with ``uid_seed`` the records' log.record.uid are noted, mixed with it.
    ``column_bytes_max``: by how much the columns may grow. ``known``: entries as ``KeyCells.claim`` gave them
    for the uids of the same body: what an output has of them is not written again.
    ``content_bytes_max``: how much is kept of what GenAI events were told and answered, in every
    table; None is all of it.
    """

def otlp_json(
    body: Buffer,
    plan: OtlpPlan,
    outputs: Sequence[Columns],
    *,
    constants: Mapping[str, str],
    arrival_ns: int,
    time_min_ns: int = ...,
    time_max_ns: int = ...,
    column_bytes_max: int = ...,
    content_bytes_max: int | None = ...,
    known: bytes = ...,
) -> Decoded:
    """The same in OTLP/JSON: the same rows as the protobuf of the same message."""

def entries(
    body: Buffer,
    plan: EntryPlan,
    outputs: Sequence[Columns],
    *,
    constants: Mapping[str, str],
    arrival_ns: int,
    time_min_ns: int = ...,
    time_max_ns: int = ...,
    column_bytes_max: int = ...,
    entries_max: int = ...,
    nan_literals: bool = ...,
    lines: bool = ...,
    partial: bool = ...,
    problems_max: int = ...,
    record_id: bytes | None = ...,
) -> Decoded:
    """Flat JSON entries: an array of objects or one object, or with ``lines`` one object a line (NDJSON).

    All or nothing: raises Malformed (not JSON), Invalid (an entry's field; with the first
    ``problems_max`` problems), TooLarge. With ``partial`` entries that are not acceptable are left out
    and counted as rejected for ``invalid``, lines that are not JSON too. Of more than ``entries_max``
    entries (0: no limit) the rest are counted as rejected for ``count``. ``record_id``: 16 bytes, the
    source ``record_id`` of the first row; the next ones count up (``record_ids``).
    """

def record_ids(first: bytes, count: int) -> list[str]:
    """The ids of ``count`` rows that were decoded with ``record_id=first``, as version 4 UUIDs, in order."""

def json_check(body: Buffer, *, nan_literals: bool = ...) -> None:
    """Raise Malformed unless the bytes are one JSON value (RFC 8259), at most JSON_DEPTH_MAX deep."""

def json_member(body: Buffer, name: bytes) -> bytes | None:
    """The text of a top-level string member; ``b""`` for another type, None where there is none.

    The body is read as far as it is JSON; of a member that comes twice the last counts.
    """

def crc32c(data: Buffer, seed: int = 0, *, instruction: bool = ...) -> int:
    """The CRC-32C (Castagnoli) of the bytes that ``seed`` is the checksum of, followed by ``data``.

    Above 4 KiB it lets go of the GIL. ``instruction`` False: not by the processor's instruction, but as
    where there is none; the result is the same, only slower.
    """

def mentions(body: Buffer, text: bytes, *, escaped: bool = ...) -> bool:
    """Whether ``text`` occurs in ``body``; with ``escaped`` also whether JSON's ``\\u`` might spell it.

    True may be wrong with ``escaped``, False never is.
    """

def take_tokens(
    cells: Buffer, place: int, now_ns: int, *, each_ns: float, burst: float, cost: float
) -> tuple[float, float]:
    """Take ``cost`` tokens from a bucket; returns the seconds to wait, and how many are left.

    ``cells`` is writable memory of 64-bit integers, the one at ``place`` the moment at which the bucket is
    full again; it holds ``burst`` tokens, and gets one every ``each_ns``. 0 seconds: they were taken, else
    nothing was. Processes that share the memory count right: the cell is swapped, not written.
    """

@final
class KeyCells:
    """Who has which idempotency key, in ``memory`` that several processes share: 4096 bytes and then buckets of 512.

    Entries are 32 bytes each: digest (16), seconds since 1970 when the key was first claimed u32, checksum of what it
    is used for u32, part u8, parts u8 (at most 8), zeros (6). Those that name no part are passed over. The caller
    sees that nobody else is in the memory during a call.
    ``who`` is life << 6 | slot; of ``keep_s`` old ones nothing is known. ValueError for what is no whole entry.
    """

    displaced: int
    """Keys that had to make room for others before their time."""

    def __init__(self, memory: Buffer) -> None: ...
    def claim(self, entries: bytes, *, who: int, now_s: int, keep_s: int, parts: int = ...) -> tuple[str, bytes]:
        """Claim the keys of all entries, or of none.

        ``parts``: so many are wanted of records, where there were more; one for which there is no room is not
        remembered. 0 for requests, which wait for room.

        ``("ours", entries)``: as they stand there, with the kept parts (a bit each) for the part; all eight bits
        where nothing is wanted any more, and for a key that stands in ``entries`` before.
        ``("claimed", b"")``: one is under way, or there is no room.
        ``("reused", b"")``: one was used for something of another checksum.
        """

    def missing(self, entries: bytes, *, part: int, parts: int) -> bytes:
        """Of entries as ``claim`` gave them, those whose ``part`` is not kept, each naming it."""

    def keep(self, entries: bytes, *, who: int, now_s: int, keep_s: int) -> None:
        """The part that each entry names is kept."""

    def refuse(self, entries: bytes, *, who: int) -> None:
        """The part that each entry names is not kept and never will be."""

    def release(self, entries: bytes, *, who: int) -> None:
        """Give claims back under which nothing is stored."""

    def still_kept(self, entries: bytes, *, now_s: int, keep_s: int) -> bytes:
        """Those of ``entries`` whose part is kept and not forgotten."""
