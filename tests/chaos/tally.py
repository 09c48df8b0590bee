"""What the rounds of a programme came to, together, and as JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any, Self

from tests.chaos.oracle import Report

FINDINGS_MAX = 100
FAULTS = ("missing", "duplicate", "invented", "corrupt", "clashing")


@dataclass
class Tally:
    """What rounds came to, together."""

    rounds: int = 0
    cycles: int = 0
    """Kills, or faults: what this programme does."""
    struck: int = 0
    """Rounds in which what was laid for the gateway did strike, where that is not sure."""
    faults: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    posted: int = 0
    acked: int = 0
    missing: int = 0
    duplicate: int = 0
    invented: int = 0
    corrupt: int = 0
    clashing: int = 0
    odd_answers: Counter[str] = field(default_factory=Counter)
    slow_starts: int = 0
    ready_s: dict[str, list[float]] = field(default_factory=dict)
    """By the state ClickHouse was in."""
    recovery_s: list[float] = field(default_factory=list)
    excused: int = 0
    """Rows lost that were in what was damaged."""
    fresh_s: list[float] = field(default_factory=list)
    measured: dict[str, list[float]] = field(default_factory=dict)
    """Figures that are told and judge nothing, by name with its unit, one a round."""
    findings: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, told: dict[str, Any]) -> Self:
        """The tally of a ``summary``; of the times only their longest is known, of what was measured the extremes."""
        tally = cls()
        for name, value in told.items():
            if name in ("fresh_s", "recovery_s"):
                value = [value["max"]] if value["max"] else []
            elif name == "ready_s":
                value = {state: [spread["max"]] for state, spread in value.items()}
            elif name == "measured":
                value = {what: [spread["min"], spread["max"]] for what, spread in value.items()}
            elif isinstance(getattr(tally, name), Counter):
                value = Counter(value)
            setattr(tally, name, value)
        return tally

    def add(self, report: Report, what: str) -> None:
        """Count one check; ``what`` says how to see it again."""
        self.rounds += 1
        for name in ("posted", "acked", *FAULTS):
            setattr(self, name, getattr(self, name) + getattr(report, name))
        self.odd_answers.update(report.odd_answers)
        if not report.clean:
            self.finding(f"{what}: {report}")

    def measure(self, what: str, value: float) -> None:
        """Keep a figure."""
        self.measured.setdefault(what, []).append(value)

    def finding(self, what: str) -> None:
        """Keep what is wrong besides; the first hundred."""
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(what)

    @property
    def clean(self) -> bool:
        """Whether nothing at all is wrong."""
        return not self.findings and not any(getattr(self, name) for name in FAULTS)

    def summary(self) -> dict[str, Any]:
        """As JSON; the times as their median and longest."""
        told: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}
        told["ready_s"] = {state: _spread(times) for state, times in self.ready_s.items()}
        told["measured"] = {
            what: {"min": round(min(values), 3)} | _spread(values) for what, values in self.measured.items()
        }
        told |= {"fresh_s": _spread(self.fresh_s), "recovery_s": _spread(self.recovery_s)}
        return told


def _spread(times: list[float]) -> dict[str, float]:
    ordered = sorted(times) or [0.0]
    return {"median": round(ordered[len(ordered) // 2], 3), "max": round(ordered[-1], 3)}
