"""What a statement is, as far as the HTTP interface must know: does data follow it, in which format.

ClickHouse accepts the data of an INSERT right behind the statement, in the same body. Where it begins
is the parser's knowledge, so a small lexer finds it here: comments, strings, quoted identifiers and
brackets are skipped, keywords count only outside brackets. Everything else is left to the engine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

TOKEN = re.compile(
    rb"""
      (?P<blank> \s+ | --[^\n]* | /\*.*?\*/ | \#[ !][^\n]* )
    | (?P<quoted> '(?:[^'\\]|\\.)*' | `(?:[^`\\]|\\.)*` | "(?:[^"\\]|\\.)*" )
    | (?P<word> [A-Za-z_][A-Za-z0-9_]* )
    | (?P<number> [0-9][A-Za-z0-9_.]* )
    | (?P<open> [(\[{] )
    | (?P<close> [)\]}] )
    | (?P<other> . )
    """,
    re.DOTALL | re.VERBOSE,
)
RESULT_WORDS = frozenset(
    (b"SELECT", b"WITH", b"SHOW", b"DESCRIBE", b"DESC", b"EXPLAIN", b"EXISTS", b"CHECK", b"KILL", b"FROM")
)


class MultiStatement(ValueError):
    """More than one statement: the library would run them all, a server refuses."""


@dataclass(frozen=True)
class Statement:
    """``text`` is what the engine runs. With ``data`` not None it is an INSERT without its FORMAT
    clause, and ``data`` is what already followed it. ``format`` is the one the statement names."""

    text: bytes
    format: str | None
    data: bytes | None
    returns_rows: bool


@dataclass(frozen=True)
class Token:
    """A significant token outside brackets; ``word`` in upper case, empty when it is not one."""

    word: bytes
    start: int
    end: int


def outline(sql: bytes) -> Iterator[Token]:
    """The tokens outside brackets, without blanks and comments."""
    depth = 0
    for match in TOKEN.finditer(sql):
        kind = match.lastgroup
        if kind == "open":
            if depth == 0:
                yield Token(b"", match.start(), match.end())
            depth += 1
        elif kind == "close":
            depth = max(0, depth - 1)
        elif depth == 0 and kind != "blank":
            yield Token(match.group().upper() if kind == "word" else b"", match.start(), match.end())


def parse(sql: bytes) -> Statement:
    """Read a statement, or the beginning of a body that opens with one."""
    tokens = outline(sql)
    first = next(tokens, None)
    if first is not None and first.word == b"INSERT":
        return parse_insert(sql, tokens)
    opens_bracket = first is not None and sql[first.start : first.end] == b"("
    returns_rows = first is not None and (opens_bracket or first.word in RESULT_WORDS)
    return Statement(sql, format_at_end(sql), None, returns_rows)


def format_at_end(sql: bytes) -> str | None:
    """The format of ``... FORMAT name [SETTINGS ...]``; MultiStatement when another statement follows."""
    window: list[Token] = []
    found: str | None = None
    ended = False
    for token in outline(sql):
        is_end = sql[token.start : token.end] == b";"
        if ended and not is_end:
            raise MultiStatement
        ended = is_end
        if len(window) == 2 and window[0].word == b"FORMAT" and window[1].word:
            named = sql[window[1].start : window[1].end].decode()
            found = named if token.word == b"SETTINGS" or is_end else None
        window = [*window[-1:], token]
    if len(window) == 2 and window[0].word == b"FORMAT" and window[1].word:
        found = sql[window[1].start : window[1].end].decode()
    return found


def parse_insert(sql: bytes, tokens: Iterator[Token]) -> Statement:
    """Where the statement ends and its data begins. INSERT ... SELECT and FROM INFILE bring their own."""
    before = Token(b"INSERT", 0, 0)
    for token in tokens:
        is_name = before.word in (b"INTO", b"TABLE", b"FUNCTION") or sql[before.start : before.end] == b"."
        before = token
        if is_name:
            continue
        if token.word in (b"SELECT", b"WITH", b"FROM", b"WATCH"):
            return Statement(sql, None, None, False)
        if token.word == b"VALUES":
            return Statement(sql[: token.start], "Values", after_blank(sql, token.end), False)
        if token.word == b"FORMAT" and (name := next(tokens, None)) is not None and name.word:
            settings, data_start = settings_after(sql, name.end)
            named = sql[name.start : name.end].decode()
            return Statement(sql[: token.start] + settings, named, after_blank(sql, data_start), False)
    # The data is whatever comes next, in the default format.
    return Statement(sql.rstrip().rstrip(b";"), None, b"", False)


SETTINGS_CLAUSE = re.compile(
    rb"\s*SETTINGS\s+(?:,?\s*[A-Za-z_][A-Za-z0-9_]*\s*=\s*(?:'(?:[^'\\]|\\.)*'|[A-Za-z0-9_.+-]+)\s*?)+", re.IGNORECASE
)


def settings_after(sql: bytes, start: int) -> tuple[bytes, int]:
    """The SETTINGS clause that may follow FORMAT name, and where the rest begins."""
    match = SETTINGS_CLAUSE.match(sql, start)
    return (match.group(), match.end()) if match else (b"", start)


def after_blank(sql: bytes, start: int) -> bytes:
    """The data behind a statement: blanks, a semicolon and one line end belong to the statement."""
    rest = sql[start:].lstrip(b" \t\f")
    if rest.startswith(b";"):
        rest = rest[1:].lstrip(b" \t\f")
    for line_end in (b"\r\n", b"\n"):
        if rest.startswith(line_end):
            return rest[len(line_end) :]
    return rest
