"""The member of a body that says whose it is: the last one counts, as for whoever reads the rows' JSON."""

from __future__ import annotations

import pytest

from gateway._native import json_member


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'{"api_key":"a"}', b"a"),
        (b'{"api_key":"a","api_key":"b"}', b"b"),
        (b'{"api_key":"a","logs":[{"api_key":"c"}],"api_key":"b"}', b"b"),
        (b'{"api_key":"a","logs":[{"api_key":"c"}]}', b"a"),
        (b'{"api_key":"a","api\\u005fkey":"b"}', b"b"),
        (b'{"api\\u005Fkey":"\\u0062"}', b"b"),
        (b'{"api_key":"a","api_key":7}', b""),
        (b'{"api_key":7,"api_key":"a"}', b"a"),
        (b'{"api_key":"a","api_key":null}', b""),
        (b'{"other":{"api_key":"a"}}', None),
        (b'{"api_key":"a","logs":[}', b"a"),
        (b'{"api_key":"a","api_key":"b","logs":[{]', b"b"),
        (b'{"api_key":"a","api_key"', b"a"),
        (b'{"api_key"', None),
        (b'["api_key","a"]', None),
        (b"{}", None),
        (b"", None),
    ],
)
def test_the_last_member_of_the_name_counts(body: bytes, found: bytes | None) -> None:
    assert json_member(body, b"api_key") == found


@pytest.mark.parametrize(
    ("name", "written"),
    [(b"", b'""'), (b"a/b", b'"a\\/b"'), (b'a"b', b'"a\\"b"'), (b"a\nb", b'"a\\nb"'), ("é".encode(), '"é"'.encode())],
)
def test_a_name_may_be_written_with_any_escape(name: bytes, written: bytes) -> None:
    body = b"{" + written + b':"1","x":2,' + written + b':"3"}'
    assert json_member(body, name) == b"3"


def test_a_large_body_is_read_to_its_end_where_it_must_be() -> None:
    logs = b'[{"message":"\\u00e9"}' + b',{"message":"x"}' * 10_000 + b"]"
    assert json_member(b'{"api_key":"a","logs":' + logs + b',"api_key":"b"}', b"api_key") == b"b"
    assert json_member(b'{"api_key":"a","logs":' + logs + b"}", b"api_key") == b"a"
