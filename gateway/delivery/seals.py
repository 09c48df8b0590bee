"""Which batch a frame belongs to after a restart, where several SEALs name it.

A batch that the server refused goes on in pieces, each under a token and a SEAL of its own. A piece is
sealed only after the batch it is cut from had a clean answer. So of all the SEALs that name a frame, only
the newest can be under way still; the older ones are over. Tokens tell which is newer: they count.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from gateway.delivery.segments import Member

_ROWS = re.compile(r"-rows-(\d+)-(\d+)")
_TOKEN = re.compile(r"[0-9a-f]{16}-(\d+)-\d+-(\d+)")

Run = tuple[int, int]
"""The first and the last of some rows of a frame."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """A batch that was sealed and is not done: its table, token and frames.

    ``over``: it had a clean answer, and some of its frames went on in pieces; these did not, or not yet.
    """

    table: str
    token: str
    members: tuple[Member, ...]
    over: bool = False

    @property
    def run(self) -> Run | None:
        """Which rows of its one frame it inserts, as far as they are absent; None when it inserts whole frames."""
        found = _ROWS.search(self.token)
        return (int(found[1]), int(found[2])) if found else None


def by_row(token: str, run: Run) -> str:
    """The token of a try with those of a run of rows of one frame that are absent.

    It says which, for only the very same insert under the same token shows what became of the one before.
    """
    return f"{token}-rows-{run[0]}-{run[1]}"


def disjoint(seals: Iterable[Sealed]) -> list[Sealed]:
    """The seals, newest first, each with those frames alone that no newer one names."""
    claimed: set[int] = set()
    found = []
    for sealed in sorted(seals, key=_age, reverse=True):
        mine = tuple(member for member in sealed.members if member[1] not in claimed)
        if mine:
            found.append(replace(sealed, members=mine, over=len(mine) < len(sealed.members)))
        claimed.update(frame for _, frame in sealed.members)
    return found


def _age(sealed: Sealed) -> tuple[int, int]:
    found = _TOKEN.match(sealed.token)
    return (int(found[1]), int(found[2])) if found else (0, 0)
