"""What the delivery may use and how patient it is."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.delivery.block import Durability

_MAY_BE_ZERO = frozenset({"durability", "audit_ms", "spool_free_bytes_min", "stored_ms_max"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All of one process. Bytes are of memory unless said."""

    shards: int = 2
    ring_bytes_max: int = 256 << 20
    """What all shards together may hold, from admission to stored; each has its equal part."""
    open_columns_max: int = 64
    """Open columns of a shard; one more and the oldest are cut at once."""
    spare_columns_max: int = 8
    """Cut columns of a table kept for reuse."""
    block_bytes: int = 256 << 10
    """Uncompressed; open columns are cut when they hold this much."""
    block_age_ms: float = 2.0
    """Open columns are cut this long after their shard's first row."""
    batch_rows: int = 100_000
    batch_bytes: int = 8 << 20
    """Of compressed blocks."""
    batch_age_ms: float = 500.0
    inserts_in_flight: int = 4
    """Per shard."""
    retry_first_ms: float = 100.0
    retry_max_ms: float = 5_000.0
    """A retry waits a random part of first x 2^n, at most this. There is no last retry."""
    parked_first_ms: float = 5_000.0
    parked_max_ms: float = 30_000.0
    """The same where a person is needed: between half of it and all of it."""
    alarm_every_ms: float = 30_000.0
    """The same trouble with the same table is logged at most this often."""
    durability: Durability = Durability.DISK
    """What a receipt waits for where a project says nothing else."""
    stored_ms_max: float = 10_000.0
    """A receipt that is to wait until rows are stored waits this long, and then says that they are on disk."""
    segment_bytes: int = 64 << 20
    """Of disk; a spool's file."""
    reserve_bytes: int = 4 << 20
    """Of disk; kept free by the spool for its own book-keeping."""
    spool_bytes_max: int = 10 << 30
    """Of disk, for rows that are not stored yet."""
    spool_free_bytes_min: int = 256 << 20
    """Of disk; the spool takes nothing more when less than this is free."""
    audit_ms: float = 120_000.0
    """ClickHouse has to run on for so long before stored rows leave the spool: it may lose what it has just taken."""
    dead_letter_bytes_max: int = 256 << 20
    """Of disk, for rows that the server will never take; when it is spent they wait in the spool."""
    refused_rows_max: int = 1_000
    """So many rows refused one after the other, and none taken, are not the rows' fault but the table's."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if getattr(self, name) <= 0 and name not in _MAY_BE_ZERO:
                raise ValueError(f"delivery.{name} is {getattr(self, name)}; it has to be above 0")
        if self.shard_bytes_max < 4 * self.block_bytes:
            raise ValueError(
                f"delivery.ring_bytes_max {self.ring_bytes_max} in {self.shards} shards leaves each"
                f" {self.shard_bytes_max}; it has to be at least four times delivery.block_bytes"
            )

    @property
    def shard_bytes_max(self) -> int:
        """What one shard may hold."""
        return self.ring_bytes_max // self.shards
