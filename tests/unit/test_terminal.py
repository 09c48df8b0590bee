"""Long work is shown: as a bar on a terminal, in lines elsewhere; short work is not."""

from __future__ import annotations

import io

import pytest

from gateway.terminal import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO, seconds: float) -> str:
    """What a hundred steps over so many seconds show."""
    now = 0.0
    progress = Progress("Reading", stream, clock=lambda: now)
    for done in range(101):
        progress.show(done, 100)
        now = (done + 1) * seconds / 100
    progress.end()
    return stream.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_short_work_is_not_shown(stream: io.StringIO) -> None:
    assert shown(stream, 0.3) == ""


def test_elsewhere_there_is_a_line_now_and_then() -> None:
    lines = shown(io.StringIO(), 25.0).splitlines()
    assert lines == ["Reading: 2%", "Reading: 22%", "Reading: 42%", "Reading: 62%", "Reading: 82%"]


def test_on_a_terminal_there_is_a_bar_that_is_taken_away() -> None:
    bars = shown(Terminal(), 20.0).split("\r")
    assert bars[1].startswith("Reading [#")
    assert "\n" not in "".join(bars)
    assert max(map(len, bars)) < 80
    assert bars[-1] == "\x1b[K"


def test_nothing_to_do_is_done() -> None:
    now = 1.0
    stream = io.StringIO()
    progress = Progress("Reading", stream, clock=lambda: now)
    now = 9.0
    progress.show(0, 0)
    assert stream.getvalue() == "Reading: 100%\n"
