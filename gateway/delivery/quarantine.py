"""Where damaged bytes of a spool go: put aside for a person, counted, and said."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from gateway.delivery.segments import Place, SegmentReader

log = logging.getLogger(__name__)

FOLDER = "quarantine"
BYTES_MAX = 256 << 20
"""Put aside by one process; more is only counted."""


class Quarantine:
    """The quarantine of one slot. Any thread may put something there."""

    def __init__(self, directory: Path) -> None:
        self.damaged_bytes = 0
        self._folder = directory / FOLDER
        self._seen: set[Place] = set()

    @property
    def segments(self) -> set[int]:
        """The ids of those that are damaged."""
        return {place.segment for place in frozenset(self._seen)}

    def take(self, reader: SegmentReader, place: Place) -> None:
        """Put damaged bytes aside, as far as there is room for them; once, however often they are met."""
        if place in self._seen:
            return
        self._seen.add(place)
        self.damaged_bytes += place.bytes
        log.error(
            "spool: %s: %d bytes from %d on are damaged; going on behind them",
            reader.name.file,
            place.bytes,
            place.offset,
        )
        if self.damaged_bytes > BYTES_MAX:
            return
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            with open(self._folder / f"{reader.name.file}-{place.offset:08x}", "wb", opener=_private) as file:
                file.writelines(reader.raw(place))
        except OSError as error:
            log.error("spool: they could not be put aside: %s", error.strerror)  # noqa: TRY400


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
