"""A body that mentions nothing of the kind needs no plan for it; one that might must not be missed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway._native import mentions

BIG = b"x" * 100_000


@given(st.binary(max_size=40), st.binary(min_size=1, max_size=3))
def test_a_text_is_found_where_python_finds_it(body: bytes, text: bytes) -> None:
    assert mentions(body, text) is (text in body)


@given(st.text(max_size=20))
def test_however_json_spells_it_it_is_not_missed(around: str) -> None:
    spelled = "".join(f"\\u{ord(letter):04x}" for letter in "gen_ai.")
    body = json.dumps({around: around}).encode() + f'{{"{spelled}request": 1}}'.encode()
    assert mentions(body, b"gen_ai.", escaped=True)
    assert mentions(json.dumps([around, "gen_ai.request"]).encode(), b"gen_ai.", escaped=True)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (rb'"a\\u0067"', False),
        (rb'"a\n\"\u0067"', True),
        (b'"a\\', False),
        (b"", False),
        (BIG, False),
        (BIG + rb"\u", True),
        (BIG + b"gen_ai.", True),
    ],
)
def test_an_escape_counts_as_one_only_where_it_is_one(body: bytes, found: bool) -> None:
    assert mentions(body, b"gen_ai.", escaped=True) is found
