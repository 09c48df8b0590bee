"""The command line: each command a few lines into a room.

    weir serve                      run the gateway
    weir check [--connect]          are the settings usable, and do ClickHouse and Postgres answer
    weir config print | schema      the settings in force, secrets masked; their JSON Schema
    weir migrate [--dry-run]        bring Postgres and ClickHouse to this version
    weir projects create | list | set
    weir plans set | list
    weir keys create | list | set | revoke
    weir pat create | list | revoke
    weir spool inspect | verify | export DIRECTORY      what waits on disk; beside a running gateway too
    weir replay [--dry-run] [--table T]                 send dead letters again, each once; beside one too

Management commands speak to Postgres: the configured one, that of a gateway running on the same data
directory, or one started for the moment. Exit codes: 0 done, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from gateway import config, demo, logs
from gateway.config import Config, ConfigError
from gateway.data_dir import DataDir, DataDirBusy
from gateway.delivery.answers import DeliveryError
from gateway.delivery.inspection import Inspection
from gateway.delivery.replay import Replay
from gateway.dialects import registry
from gateway.embedded.child import EngineFailed
from gateway.engines import clickhouse_client, control_store, lacking, migrate_tables, reach
from gateway.foundation import CannotStart
from gateway.tenants.errors import ControlError
from gateway.tenants.pat_store import PatStore
from gateway.tenants.postgres import ControlStore
from gateway.terminal import Progress
from gateway.workers import supervisor
from gateway.workers.shells import Shells

DONE, FAILED, WRONG_USAGE = 0, 1, 2
_KEEP = "Keep the secret now: it is not stored and cannot be shown again."

Arguments = argparse.Namespace
Command = Callable[[Arguments, Config], Coroutine[Any, Any, int]]
Adder = Callable[[Any, str, Command, str], argparse.ArgumentParser]
"""Adds a command that prints data: where, its name, what runs it, what it does."""


class CommandFailed(Exception):
    """The command cannot do what was asked; the text says what to do."""


def main(runner: asyncio.Runner, shells: Shells) -> int:
    """Runs one command; returns the exit code. ``shells``: what was begun before for ``weir serve``."""
    parsed = parser().parse_args(namespace=Arguments(shells=shells))
    try:
        settings = config.load(parsed.config, os.environ)
    except ConfigError as error:
        print("The settings cannot be used:", *error.problems, sep="\n  ", file=sys.stderr)
        return FAILED
    logs.configure(settings.log.level if parsed.command is serve else "warning", settings.log.format)
    try:
        command: Command = parsed.command
        return runner.run(command(parsed, settings))
    except (CommandFailed, CannotStart, ControlError, DeliveryError, DataDirBusy, EngineFailed) as error:
        print(f"weir: {error}", file=sys.stderr)
    except OSError as error:
        print(f"weir: {error.strerror or error}" + (f": {error.filename}" if error.filename else ""), file=sys.stderr)
    except KeyboardInterrupt:
        print("weir: interrupted", file=sys.stderr)
    return FAILED


def parser() -> argparse.ArgumentParser:
    """Every command and its arguments."""
    root = argparse.ArgumentParser(prog="weir", description="A log-ingest gateway in front of ClickHouse.")
    root.add_argument("--version", action=_Version)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--config", type=Path, metavar="FILE", help="settings (TOML); else config/weir.toml where it exists"
    )
    printing = argparse.ArgumentParser(add_help=False, parents=[common])
    printing.add_argument("--json", action="store_true", help="print JSON")
    commands = root.add_subparsers(metavar="COMMAND", required=True)

    def add(at: Any, name: str, command: Command, about: str, *, prints: bool = True) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = at.add_parser(
            name, help=about, description=about, parents=[printing if prints else common]
        )
        added.set_defaults(command=command)
        return added

    def group(name: str, about: str) -> Any:
        return commands.add_parser(name, help=about, description=about).add_subparsers(metavar="COMMAND", required=True)

    add(commands, "serve", serve, "Run the gateway until SIGTERM or Ctrl-C.", prints=False)
    check_ = add(commands, "check", check, "Check the settings.")
    check_.add_argument("--connect", action="store_true", help="also ask ClickHouse and Postgres")
    config_ = group("config", "The settings.")
    add(config_, "print", config_print, "Print the settings in force, secrets masked.")
    add(config_, "schema", config_schema, "Print the settings' JSON Schema.")
    migrate_ = add(commands, "migrate", migrate, "Bring Postgres and ClickHouse to this version.")
    migrate_.add_argument("--dry-run", action="store_true", help="only say what would be done")

    _add_projects(group("projects", "Who owns rows."), add)
    _add_plans(group("plans", "What the projects on them may send."), add)
    _add_keys(group("keys", "Who may send."), add)
    _add_pats(group("pat", "Who may read and control, in every project."), add)
    spool = group("spool", "What was accepted and is not in ClickHouse yet.")
    add(spool, "inspect", spool_inspect, "Show what each file of the spool holds, and what waits for each table.")
    add(spool, "verify", spool_verify, "Check every byte of the spool; exit code 1 when any is damaged.")
    export = add(spool, "export", spool_export, "Write the rows that wait to TABLE.native files, to insert by hand.")
    export.add_argument("to", type=Path, metavar="DIRECTORY", help="made where it is not there; docs/spool.md")
    replay_ = add(commands, "replay", replay, "Send dead letters again; exit code 1 when any stay.")
    replay_.add_argument("--dry-run", action="store_true", help="only count them, and say why they are there")
    replay_.add_argument("--table", default="", metavar="TABLE", help="only those of this table")
    return root


def _add_projects(projects: Any, add: Adder) -> None:
    create = add(projects, "create", projects_create, "Create a project.")
    create.add_argument("slug", help="a short name, a-z 0-9 -")
    create.add_argument("--name", default="", help="a name for people")
    add(projects, "list", projects_list, "List the projects, their quotas, and what they used of them this month.")
    set_ = add(projects, "set", projects_set, "Change what a project may send; takes effect within a second.")
    set_.add_argument("slug")
    set_.add_argument("--plan", metavar="NAME", help="as `weir plans list` prints it")
    _add_records(set_, "0: what its plan says")
    set_.add_argument(
        "--genai-content",
        dest="genai_content_bytes",
        type=_content,
        metavar="all|none|BYTES",
        help="how much to keep of what GenAI events were told and answered",
    )
    set_.add_argument(
        "--durability",
        choices=("memory", "os", "disk", "stored", "default"),
        help="what a 2xx means for its rows; default: delivery.durability of the settings",
    )
    active = set_.add_mutually_exclusive_group()
    active.add_argument("--active", action="store_true", default=None, help="its subscription is active")
    active.add_argument("--inactive", dest="active", action="store_false", help="accept nothing for it")


def _add_plans(plans: Any, add: Adder) -> None:
    set_ = add(plans, "set", plans_set, "Make a plan, or change one.")
    set_.add_argument("name", help="a short name, a-z 0-9 -")
    _add_records(set_, "0: unlimited")
    _add_rate(set_, "0: keys.requests_per_minute of the settings")
    add(plans, "list", plans_list, "List the plans.")


def _add_keys(keys: Any, add: Adder) -> None:
    create = add(keys, "create", keys_create, "Create a key. Its secret is printed once and never again.")
    create.add_argument("--project", required=True, metavar="SLUG")
    create.add_argument("--kind", choices=("server", "browser"), default="server")
    create.add_argument("--dialect", required=True, choices=_dialect_names())
    create.add_argument("--name", default="", help="a name for people")
    create.add_argument(
        "--origins", nargs="+", default=[], metavar="ORIGIN", help="of a browser key: https://app.example"
    )
    _add_rate(create, "0: what the plan or the settings say")
    list_ = add(keys, "list", keys_list, "List the keys, without their secrets.")
    list_.add_argument("--project", metavar="SLUG")
    set_ = add(keys, "set", keys_set, "Change how often a key may be used; takes effect within a second.")
    set_.add_argument("key_id", metavar="KEY_ID", help="as `weir keys list` prints it")
    _add_rate(set_, "0: what the plan or the settings say", required=True)
    revoke = add(keys, "revoke", keys_revoke, "Revoke a key, for ever, within a second.")
    revoke.add_argument("key_id", metavar="KEY_ID", help="as `weir keys list` prints it")


def _add_pats(pats: Any, add: Adder) -> None:
    create = add(pats, "create", pats_create, "Create a personal access token. It is printed once and never again.")
    create.add_argument("name", help="whose it is, for people")
    add(pats, "list", pats_list, "List the tokens, without their secrets.")
    revoke = add(pats, "revoke", pats_revoke, "Revoke a token, for ever, within a second.")
    revoke.add_argument("pat_id", metavar="PAT_ID", help="as `weir pat list` prints it")


def _add_records(to: argparse.ArgumentParser, without: str) -> None:
    to.add_argument("--monthly-records", type=int, metavar="N", help=f"records a calendar month (UTC); {without}")


def _add_rate(to: argparse.ArgumentParser, without: str, *, required: bool = False) -> None:
    to.add_argument("--requests-per-minute", type=int, metavar="N", required=required, help=f"with one key; {without}")


class _Version(argparse.Action):
    """Prints the version; looked up only then, since a checkout on the path has none."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help="print the version and stop")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        try:
            print("weir", version("weir"))
        except PackageNotFoundError:
            print("weir, not installed: run from", Path(__file__).parent)
        parser.exit()


def _dialect_names() -> list[str]:
    """Of the dialects there are, and of those the demo project has a key for already."""
    there = {dialect.name for dialect in registry(Config().limits, Config().ndjson)}
    return sorted(there | {dialect for _, _, dialect, _ in demo.KEYS})


async def serve(arguments: Arguments, settings: Config) -> int:
    in_order = await supervisor.serve(
        settings, lambda: config.load(arguments.config, os.environ), shells=arguments.shells
    )
    return DONE if in_order else FAILED


async def check(arguments: Arguments, settings: Config) -> int:
    found = {"settings": "fine"}
    problems: list[str] = []
    if arguments.connect:
        problems = await _look_at_engines(settings, found)
    _print({**found, "problems": problems} if arguments.json else found, arguments.json)
    if problems and not arguments.json:
        print(*problems, sep="\n", file=sys.stderr)
    return FAILED if problems else DONE


async def _look_at_engines(settings: Config, found: dict[str, str]) -> list[str]:
    """Fills in what each configured engine is; returns what it lacks."""
    problems: list[str] = []
    found["clickhouse"] = found["postgres"] = "none configured: Weir runs its own"
    if settings.clickhouse.url:
        async with clickhouse_client(settings, settings.clickhouse.url) as clickhouse:
            found["clickhouse"] = "version " + ".".join(map(str, await clickhouse.version()))
            problems += await lacking(clickhouse)
    if settings.postgres.dsn:
        async with control_store(settings.postgres.dsn) as store:
            pending = await store.migrate(dry_run=True)
            found["postgres"] = "answers"
            problems += [f"Postgres lacks migration {name}: run `weir migrate`" for name in pending]
    return problems


def _content(text: str) -> int:
    """Bytes of GenAI content to keep; -1 is all of it."""
    named = {"all": -1, "none": 0}
    if text not in named and not (text.isascii() and text.isdigit() and int(text) < 1 << 31):
        raise argparse.ArgumentTypeError("all, none or a number of bytes")
    return named[text] if text in named else int(text)


async def config_print(arguments: Arguments, settings: Config) -> int:
    tree = config.masked(settings)
    sys.stdout.write(json.dumps(tree, indent=2) + "\n" if arguments.json else config.to_toml(tree))
    return DONE


async def config_schema(arguments: Arguments, settings: Config) -> int:
    print(json.dumps(config.schema(), indent=2))
    return DONE


async def migrate(arguments: Arguments, settings: Config) -> int:
    async with reach(settings, clickhouse=True) as engines:
        async with control_store(engines.postgres_dsn) as store:
            postgres = await store.migrate(dry_run=arguments.dry_run)
        async with clickhouse_client(settings, engines.clickhouse_url) as clickhouse:
            lacks = await lacking(clickhouse)
            if lacks and not arguments.dry_run:
                await migrate_tables(settings, clickhouse)
                still = await lacking(clickhouse)
                if still:
                    raise CommandFailed("ClickHouse needs you:\n" + "\n".join(still))
    if arguments.json:
        _print({"dry_run": arguments.dry_run, "postgres": postgres, "clickhouse": lacks}, as_json=True)
    elif not postgres and not lacks:
        print("Everything is there.")
    else:
        print("Would change:" if arguments.dry_run else "Changed:", *postgres, *lacks, sep="\n  ")
    return DONE


async def projects_create(arguments: Arguments, settings: Config) -> int:
    async with _management(settings) as store:
        project = await store.create_project(arguments.slug, arguments.name)
    _print(msgspec.to_builtins(project), arguments.json)
    return DONE


async def projects_list(arguments: Arguments, settings: Config) -> int:
    async with _management(settings) as store:
        projects = await store.list_projects()
    _print(msgspec.to_builtins(projects), arguments.json)
    return DONE


async def projects_set(arguments: Arguments, settings: Config) -> int:
    async with _management(settings) as store:
        project = await store.set_project(
            arguments.slug,
            plan=arguments.plan,
            monthly_records=arguments.monthly_records,
            active=arguments.active,
            genai_content_bytes=arguments.genai_content_bytes,
            durability="" if arguments.durability == "default" else arguments.durability,
        )
    _print(msgspec.to_builtins(project), arguments.json)
    return DONE


async def plans_set(arguments: Arguments, settings: Config) -> int:
    async with _management(settings) as store:
        plan = await store.set_plan(
            arguments.name,
            monthly_records=arguments.monthly_records,
            requests_per_minute=arguments.requests_per_minute,
        )
    _print(msgspec.to_builtins(plan), arguments.json)
    return DONE


async def plans_list(arguments: Arguments, settings: Config) -> int:
    async with _management(settings) as store:
        plans = await store.list_plans()
    _print(msgspec.to_builtins(plans), arguments.json)
    return DONE


async def keys_create(arguments: Arguments, settings: Config) -> int:
    async with _management(settings) as store:
        key, secret = await store.create_key(
            arguments.project,
            kind=arguments.kind,
            dialect=arguments.dialect,
            name=arguments.name,
            origins=arguments.origins,
            requests_per_minute=arguments.requests_per_minute,
        )
    _print({**msgspec.to_builtins(key), "secret": secret}, arguments.json)
    if not arguments.json:
        print(_KEEP, file=sys.stderr)
    return DONE


async def pats_create(arguments: Arguments, settings: Config) -> int:
    async with _management(settings) as store:
        pat, secret = await PatStore(store).create(arguments.name)
    _print({**msgspec.to_builtins(pat), "secret": secret}, arguments.json)
    if not arguments.json:
        print(_KEEP, file=sys.stderr)
    return DONE


async def pats_list(arguments: Arguments, settings: Config) -> int:
    async with _management(settings) as store:
        pats = await PatStore(store).all()
    _print(msgspec.to_builtins(pats), arguments.json)
    return DONE


async def pats_revoke(arguments: Arguments, settings: Config) -> int:
    async with _management(settings) as store:
        revoked = await PatStore(store).revoke(arguments.pat_id)
    if not revoked:
        raise CommandFailed(f"there is no live token {arguments.pat_id}; `weir pat list` shows their ids")
    _print({"id": arguments.pat_id, "revoked": True}, arguments.json)
    return DONE


async def keys_list(arguments: Arguments, settings: Config) -> int:
    async with _management(settings) as store:
        keys = await store.list_keys(arguments.project)
    _print(msgspec.to_builtins(keys), arguments.json)
    return DONE


async def keys_set(arguments: Arguments, settings: Config) -> int:
    async with _management(settings) as store:
        key = await store.set_key(arguments.key_id, requests_per_minute=arguments.requests_per_minute)
    _print(msgspec.to_builtins(key), arguments.json)
    return DONE


async def keys_revoke(arguments: Arguments, settings: Config) -> int:
    async with _management(settings) as store:
        revoked = await store.revoke_key(arguments.key_id)
    if not revoked:
        raise CommandFailed(f"there is no live key {arguments.key_id}; `weir keys list` shows their ids")
    _print({"id": arguments.key_id, "revoked": True}, arguments.json)
    return DONE


async def spool_inspect(arguments: Arguments, settings: Config) -> int:
    described = (await _inspected(settings, whole=False)).described()
    if arguments.json:
        _print(described, as_json=True)
        return DONE
    for title, rows in described.items():
        print(f"{title}{':' if rows else ': none'}")
        _print(rows, as_json=False)
    return DONE


async def spool_verify(arguments: Arguments, settings: Config) -> int:
    inspection = await _inspected(settings, whole=True)
    faults = [fault for segment in inspection.segments for fault in segment.faults]
    frames = sum(sum(segment.frames.values()) for segment in inspection.segments)
    found = {"segments": len(inspection.segments), "frames": frames, "damage": len(faults)}
    _print({**found, "faults": faults} if arguments.json else found, arguments.json)
    if faults and not arguments.json:
        print(*faults, sep="\n", file=sys.stderr)
    return FAILED if faults else DONE


async def spool_export(arguments: Arguments, settings: Config) -> int:
    inspection = await _inspected(settings, whole=False)
    arguments.to.mkdir(mode=0o700, parents=True, exist_ok=True)
    await _shown("Writing", inspection.export(arguments.to))
    faults = [fault for segment in inspection.segments for fault in segment.faults]
    tables = inspection.described()["tables"]
    _print({"tables": tables, "faults": faults} if arguments.json else tables, arguments.json)
    if not arguments.json:
        print(*faults, "docs/spool.md says how to insert them and double no row.", sep="\n", file=sys.stderr)
    return FAILED if faults else DONE


async def replay(arguments: Arguments, settings: Config) -> int:
    spool = DataDir(settings.data_path).spool
    if arguments.dry_run:
        came = Replay(spool, table=arguments.table).look()
    else:
        progress = Progress("Sending dead letters", sys.stderr)
        async with (
            reach(settings, clickhouse=True) as engines,
            clickhouse_client(settings, engines.clickhouse_url) as clickhouse,
        ):
            try:
                came = await Replay(spool, clickhouse, table=arguments.table, shown=progress.show).run()
            finally:
                progress.end()
    _print([dataclasses.asdict(one) for one in came], arguments.json)
    if not came and not arguments.json:
        print("There are no dead letters.")
    return FAILED if any(one.left for one in came) and not arguments.dry_run else DONE


async def _inspected(settings: Config, *, whole: bool) -> Inspection:
    inspection = Inspection(DataDir(settings.data_path).spool, whole=whole)
    await _shown("Reading the spool", inspection.read())
    return inspection


async def _shown(what: str, steps: Iterator[tuple[int, int]]) -> None:
    """Work in steps of (done, of), shown as it goes, and stopped by Ctrl-C between two of them."""
    progress = Progress(what, sys.stderr)
    try:
        for done, of in steps:
            progress.show(done, of)
            await asyncio.sleep(0)
    finally:
        progress.end()


@asynccontextmanager
async def _management(settings: Config) -> AsyncIterator[ControlStore]:
    """The control store, its tables in place."""
    async with reach(settings, clickhouse=False) as engines, control_store(engines.postgres_dsn) as store:
        if engines.postgres:
            await store.migrate()
        elif pending := await store.migrate(dry_run=True):
            raise CommandFailed(f"Postgres lacks {', '.join(pending)}: run `weir migrate`")
        yield store


def _print(data: Mapping[str, Any] | Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """JSON, or one ``name  value`` a line, or a table with a head."""
    if as_json:
        print(json.dumps(data, indent=2, ensure_ascii=False))
        return
    rows = [[name, _cell(value)] for name, value in data.items()] if isinstance(data, Mapping) else _table(data)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _table(data: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return [list(data[0]), *([_cell(value) for value in row.values()] for row in data)] if data else []


def _cell(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "-"
    return "-" if value is None or value == "" else str(value)
