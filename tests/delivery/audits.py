"""Audits of servers that are asked for little, and the blocks these have stored."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import cast

from gateway.delivery.audit import Audit
from gateway.delivery.block import Block, Durability
from gateway.delivery.clickhouse import ClickHouse
from gateway.delivery.segments import Member, Place
from tests.delivery.things import things


def stored_block(frame: int, segment: int = 1, *, table: str = "things") -> Block:
    """A block of three rows that is in a segment."""
    block = Block(table, "p", frame, 3, b"", 0.0, durability=Durability.DISK)
    block.place = Place(segment, 64, 100)
    return block


async def stored_blocks(members: Iterable[Member]) -> list[Block]:
    """Each of them."""
    return [stored_block(frame) for _, frame in members]


def audit_of(
    server: object,
    clock: Callable[[], float],
    *,
    read: Callable[[Iterable[Member]], Awaitable[list[Block]]] = stored_blocks,
    again: Callable[[Block], None],
    keep_s: float,
    has_room: Callable[[], bool] = lambda: True,
    tables: Iterable[str] = ("things",),
) -> Audit:
    """An audit that knows these tables."""
    audit = Audit(
        cast("ClickHouse", server),
        read=read,
        again=again,
        has_room=has_room,
        keep_s=keep_s,
        clock=clock,
    )
    for name in tables:
        audit.add_table(things(name))
    return audit
