"""The settings as text: read from TOML and the environment, written as TOML, described as JSON Schema."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit, urlunsplit

import msgspec
from msgspec import Meta

from gateway.config.contradictions import contradictions
from gateway.config.settings import SECRETS, Config

DEFAULT_PATH = Path("config/weir.toml")
"""Read when no file is named and it exists below the working directory."""

Leaves = dict[tuple[str, ...], Any]


class ConfigError(Exception):
    """The settings cannot be used. ``problems`` are sentences that say where and what to change."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def load(path: Path | None, environ: Mapping[str, str]) -> Config:
    """The settings from ``path`` (or ``config/weir.toml`` where it exists) and the environment.

    Raises ConfigError with every problem found.
    """
    if path is None and DEFAULT_PATH.is_file():
        path = DEFAULT_PATH
    problems: list[str] = []
    leaves = _from_file(path, problems) if path else {}
    leaves |= _from_environment(environ, problems)
    _read_secrets(leaves, environ, problems)
    if problems:
        raise ConfigError(problems)
    tree: dict[str, Any] = {}
    for where, value in leaves.items():
        branch = tree
        for part in where[:-1]:
            branch = branch.setdefault(part, {})
        branch[where[-1]] = value
    config = _with_defaults(tree)
    if problems := list(contradictions(config)):
        raise ConfigError(problems)
    return config


def fields(
    section: type[msgspec.Struct] = Config, at: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any, str]]:
    """(path, type, meaning) of every key, in order; sections are walked into."""
    for name, hint in get_type_hints(section, include_extras=True).items():
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            yield from fields(hint, (*at, name))
        else:
            yield (*at, name), hint, _meaning(hint)


def _meaning(hint: Any) -> str:
    return next((meta.description for meta in get_args(hint)[1:] if isinstance(meta, Meta) and meta.description), "")


def variable(path: tuple[str, ...]) -> str:
    """The environment variable of a key."""
    return "__".join(("WEIR", *path)).upper()


def _from_file(path: Path, problems: list[str]) -> Leaves:
    try:
        text = path.read_text("utf-8")
        tree = tomllib.loads(text)
    except OSError as error:
        problems.append(f"{path}: cannot be read: {error.strerror}.")
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problems.append(f"{path}: is not TOML: {error}.")
        return {}
    if not text.strip():
        # An emptied file is far more often an accident than a wish for the defaults.
        problems.append(f"{path}: is empty. Put at least a comment into it, or name no file to run on the defaults.")
    types = {key: hint for key, hint, _ in fields()}
    sections = {key[:depth] for key in types for depth in range(1, len(key))}
    leaves: Leaves = {}

    def walk(tree: dict[str, Any], at: tuple[str, ...]) -> None:
        for name, value in tree.items():
            where = (*at, name)
            dotted = ".".join(where)
            if where in sections and isinstance(value, dict):
                walk(value, where)
            elif where in sections:
                problems.append(f"{path}: {dotted} is a section: write [{dotted}] and its keys below.")
            elif where not in types:
                siblings = [".".join(key) for key in (*types, *sections)]
                problems.append(f"{path}: unknown key {dotted}.{_suggestion(dotted, siblings)}")
            else:
                try:
                    leaves[where] = msgspec.convert(value, types[where])
                except msgspec.ValidationError as error:
                    problems.append(f"{path}: {dotted}: {error}.")

    walk(tree, ())
    return leaves


def _from_environment(environ: Mapping[str, str], problems: list[str]) -> Leaves:
    known = {variable(key): (key, hint) for key, hint, _ in fields()}
    leaves: Leaves = {}
    for name in sorted(environ):
        if not name.startswith("WEIR__"):
            continue
        if name not in known:
            problems.append(f"environment: unknown variable {name}.{_suggestion(name, list(known))}")
            continue
        key, hint = known[name]
        text = environ[name]
        is_list = get_origin(get_args(hint)[0]) is list
        value = [part.strip() for part in text.split(",") if part.strip()] if is_list else text
        try:
            leaves[key] = msgspec.convert(value, hint, strict=False)
        except msgspec.ValidationError as error:
            problems.append(f"environment: {name}: {error}.")
    return leaves


def _suggestion(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not close:  # the right key in the wrong section
        close = [other for other in known if other.rpartition(".")[2] == name.rpartition(".")[2]][:1]
    return f" Did you mean {close[0]}?" if close else " See config/weir.toml for the keys there are."


def _read_secrets(leaves: Leaves, environ: Mapping[str, str], problems: list[str]) -> None:
    """Fills secrets from their files: ``<key>_file``, else ``$CREDENTIALS_DIRECTORY/section.key``."""
    credentials = environ.get("CREDENTIALS_DIRECTORY")
    for section, key in SECRETS:
        where, file_key = (section, key), (section, f"{key}_file")
        name = leaves.get(file_key)
        if name and leaves.get(where):
            problems.append(f"{section}.{key} and {section}.{key}_file are both set. Remove one of them.")
            continue
        path = Path(name) if name else Path(credentials) / f"{section}.{key}" if credentials else None
        if path is None or (leaves.get(where) and not name) or (not name and not path.is_file()):
            continue
        try:
            leaves[where] = path.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{section}.{key}_file: {path} cannot be read: {getattr(error, 'strerror', 'not UTF-8')}.")


def _with_defaults(tree: dict[str, Any]) -> Config:
    # A partly given [limits.loguro] must fall back to Loguro's own defaults, not to DialectLimits'.
    defaults = msgspec.to_builtins(Config())

    def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
        return base | {
            key: merge(base[key], value) if isinstance(value, dict) else value for key, value in over.items()
        }

    return msgspec.convert(merge(defaults, tree), Config)


def masked(config: Config) -> dict[str, Any]:
    """The settings as plain values, without secrets: of an address only its password is hidden."""
    tree: dict[str, Any] = msgspec.to_builtins(config)
    for section, key in SECRETS:
        if tree[section][key]:
            tree[section][key] = "********" if key != "dsn" else _without_password(tree[section][key])
    tree["clickhouse"]["url"] = _without_password(tree["clickhouse"]["url"])
    return tree


def _without_password(address: str) -> str:
    parts = urlsplit(address)
    user, has_password, _ = parts.netloc.rpartition("@")[0].partition(":")
    netloc = f"{user}:********@{parts.netloc.rpartition('@')[2]}" if has_password else parts.netloc
    return urlunsplit(parts._replace(netloc=netloc, query=re.sub(r"(password=)[^&]*", r"\1********", parts.query)))


def to_toml(tree: Mapping[str, Any]) -> str:
    """Settings as a commented TOML file. ``tree`` is what ``masked`` gives."""
    lines: list[str] = []
    section: tuple[str, ...] = ()
    documents = _section_documents(Config)
    for key, _, meaning in fields():
        if key[:-1] != section:
            section = key[:-1]
            lines += ["", f"[{'.'.join(section)}]", f"# {documents[section]}"]
        value = tree
        for part in key:
            value = value[part]
        lines += [f"# {meaning}", f"{key[-1]} = {toml_value(value)}"]
    return "\n".join(lines) + "\n"


def _section_documents(section: type[msgspec.Struct], at: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    documents = {at: (section.__doc__ or "").strip()}
    for name, hint in get_type_hints(section).items():
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            documents |= _section_documents(hint, (*at, name))
    return documents


def toml_value(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000:
        return f"{value:_}"
    return json.dumps(value)


def schema() -> dict[str, Any]:
    """The settings as a JSON Schema."""
    return msgspec.json.schema(Config)
