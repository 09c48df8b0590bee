"""Our JSON is RFC 8259: the JSON Parsing Test Suite, and the standard library on anything else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import _native
from gateway.errors import Malformed
from tests.property import strategies
from tests.reference import strict_json

SUITE = Path(__file__).resolve().parents[3] / "shared" / "data" / "json" / "test_parsing"
FILES = sorted(SUITE.glob("*.json")) if SUITE.is_dir() else []
needs_suite = pytest.mark.skipif(not FILES, reason=f"the JSON Parsing Test Suite is not at {SUITE}")
# Ours to decide: numbers keep their digits and text is repaired, so what is left to refuse is this.
REFUSED = {
    "i_string_UTF-16LE_with_BOM.json", "i_string_utf16BE_no_BOM.json", "i_string_utf16LE_no_BOM.json",
    "i_structure_500_nested_arrays.json", "i_structure_UTF-8_BOM_empty_object.json",
}  # fmt: skip


def accepted(data: bytes) -> bool:
    try:
        _native.json_check(data)
    except Malformed:
        return False
    return True


def accepted_by_reference(data: bytes) -> bool:
    try:
        strict_json.parse(data, nesting_max=_native.JSON_DEPTH_MAX)
    except Malformed:
        return False
    return True


@needs_suite
@pytest.mark.parametrize("file", [file for file in FILES if file.name[0] == "y"], ids=lambda file: file.name)
def test_what_must_be_accepted_is(file: Path) -> None:
    assert accepted(file.read_bytes())


@needs_suite
@pytest.mark.parametrize("file", [file for file in FILES if file.name[0] == "n"], ids=lambda file: file.name)
def test_what_must_be_refused_is(file: Path) -> None:
    assert not accepted(file.read_bytes())


@needs_suite
@pytest.mark.parametrize("file", [file for file in FILES if file.name[0] == "i"], ids=lambda file: file.name)
def test_what_is_left_open_is_as_we_decided(file: Path) -> None:
    assert accepted(file.read_bytes()) == (file.name not in REFUSED)


@given(st.one_of(strategies.json_values, strategies.mutations(strategies.json_values), st.binary(max_size=20)))
def test_json_is_accepted_where_the_reference_accepts_it(data: bytes) -> None:
    assert accepted(data) == accepted_by_reference(data)


@given(strategies.json_values, st.integers(0, 70))
def test_every_proper_start_of_an_array_is_refused(value: bytes, end: int) -> None:
    document = b"[" + value + b"]"
    if end < len(document):
        assert not accepted(document[:end])
