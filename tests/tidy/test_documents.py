"""What the documents say exists, and what exists is in the documents."""

from __future__ import annotations

import argparse
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway import config
from gateway.cli import parser

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted((*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")))
LINES_MAX = {".py": 600, ".pyx": 1200, ".pyi": 400, ".h": 1200, ".md": 400}
FOLDERS = ("gateway", "_native", "tests", "bench", "docs")


def commands(at: argparse.ArgumentParser, name: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command of the command line, such as ("keys", "list")."""
    below = [action for action in at._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield name
    for action in below:
        for word, subparser in action.choices.items():
            yield from commands(subparser, (*name, word))


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL))
    local = [target for target in targets if not re.match(r"[a-z]+:", target)]
    assert [target for target in local if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_targets_that_are_named_exist(path: Path) -> None:
    text = path.read_text()
    there = {" ".join(command) for command in commands(parser())}
    groups = {name.partition(" ")[0] for name in there}
    for words in re.findall(r"(?:`|^|&& )weir ((?:[a-z]+ ?){1,2})", text, re.MULTILINE):
        found = words.strip()
        assert found in there or found.partition(" ")[0] in there or found in groups, f"weir {found}"
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z]+)", text, re.MULTILINE)) <= targets


def test_every_command_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [command for command in commands(parser()) if f"`weir {' '.join(command)}" not in readme] == []


def test_every_command_says_what_it_does() -> None:
    for command in commands(parser()):
        with pytest.raises(SystemExit) as ended:
            parser().parse_args([*command, "--help"])
        assert ended.value.code == 0


def test_every_setting_is_documented_with_its_default_and_its_meaning() -> None:
    document = (ROOT / "docs" / "configuration.md").read_text()
    defaults = config.masked(config.Config())
    rows = []
    for key, _, meaning in config.fields():
        value = defaults
        for part in key:
            value = value[part]
        rows.append(f"| `{'.'.join(key)}` | `{config.toml_value(value)}` | {meaning} |")
    assert document.partition("| --- | --- | --- |\n")[2].splitlines() == rows


def test_no_file_is_too_long_to_read() -> None:
    long = {}
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in LINES_MAX and "__pycache__" not in path.parts:
                lines = path.read_text().count("\n")
                if lines > LINES_MAX[path.suffix]:
                    long[str(path.relative_to(ROOT))] = lines
    assert long == {}


def test_the_ci_entry_runs_what_the_readme_says() -> None:
    run = ROOT / ".ci" / "run"
    assert run.stat().st_mode & 0o111
    assert re.search(r"^exec make test$", run.read_text(), re.MULTILINE)
    assert re.search(r"^make test\b", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert subprocess.run(["bash", "-n", str(run)], check=False).returncode == 0
