"""Which dialects answer a path: exact paths by a dictionary, paths with ``{name}`` segments one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gateway.dialects.dialect import Dialect
from gateway.errors import MethodNotAllowed


@dataclass(frozen=True, slots=True)
class Route:
    """A path and who answers it. ``answers``: (method, dialect) in the registry's order; never empty.

    ``values``: what the path's ``{name}`` segments held.
    """

    answers: tuple[tuple[str, Dialect], ...]
    values: Mapping[str, str] = field(default_factory=dict)

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods some dialect takes here, each once."""
        return tuple(dict.fromkeys(method for method, _ in self.answers))

    def dialect_for(self, method: str, headers: Mapping[str, str]) -> Dialect:
        """The first that takes the method and claims the key in the headers.

        Where none takes the method, the first that claims the key: somebody has to word the refusal.
        """
        claiming = [
            (taken, dialect) for taken, dialect in self.answers if dialect.claims(dialect.header_key(headers))
        ] or list(self.answers)
        return next((dialect for taken, dialect in claiming if taken == method), claiming[0][1])

    def check_method(self, method: str) -> None:
        """Raises MethodNotAllowed when no dialect takes the method here."""
        if method not in self.methods:
            raise MethodNotAllowed(f"this path takes {' and '.join(self.methods)}", allow=self.methods)


class Routes:
    """Every path of a registry."""

    def __init__(self, dialects: Sequence[Dialect]) -> None:
        answers: dict[str, list[tuple[str, Dialect]]] = {}
        for dialect in dialects:
            for method, path in dialect.routes:
                answers.setdefault(path, []).append((method, dialect))
        self._exact = {path: Route(tuple(found)) for path, found in answers.items() if "{" not in path}
        self._templates = [(path.split("/"), tuple(found)) for path, found in answers.items() if "{" in path]
        # For the hint to a sender that is lost.
        self.paths = tuple(answers)

    def find(self, path: str) -> Route | None:
        """The route of a path as sent, or None."""
        route = self._exact.get(path)
        if route is not None or not self._templates:
            return route
        segments = path.split("/")
        for template, answers in self._templates:
            values = match(template, segments)
            if values is not None:
                return Route(answers, values)
        return None


def match(template: Sequence[str], segments: Sequence[str]) -> dict[str, str] | None:
    """What the template's ``{name}`` segments hold of a path, or None when it is another path."""
    if len(template) != len(segments):
        return None
    values: dict[str, str] = {}
    for wanted, found in zip(template, segments, strict=True):
        if wanted.startswith("{"):
            if not found:
                return None
            values[wanted[1:-1]] = found
        elif wanted != found:
            return None
    return values
