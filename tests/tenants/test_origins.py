"""Origins are compared exactly, once both are in one spelling."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.tenants.origins import normal_origin

SAME = [
    ("https://app.example.com", "https://app.example.com"),
    ("HTTPS://App.Example.COM", "https://app.example.com"),
    ("https://app.example.com:443", "https://app.example.com"),
    ("http://app.example.com:80", "http://app.example.com"),
    ("http://app.example.com:080", "http://app.example.com"),
    ("https://app.example.com/", "https://app.example.com"),
    ("https://app.example.com:80", "https://app.example.com:80"),
    ("http://app.example.com:443", "http://app.example.com:443"),
    ("http://localhost:3000", "http://localhost:3000"),
    ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
    ("http://[::1]:3000", "http://[::1]:3000"),
    ("http://[0:0:0:0:0:0:0:1]:80", "http://[::1]"),
    ("https://[2001:DB8::00AB]:443", "https://[2001:db8::ab]"),
    ("https://bücher.example", "https://xn--bcher-kva.example"),
    ("chrome-extension://abcdefghijklmnop", "chrome-extension://abcdefghijklmnop"),
    ("capacitor://localhost", "capacitor://localhost"),
]

NONE = [
    "", "null", "NULL", "*", "https://", "https:///", "app.example.com", "//app.example.com", "https:app.example.com",
    "https://*", "https://*.example.com", "https://app.example.com/path", "https://app.example.com//",
    "https://app.example.com?q", "https://app.example.com#f", "https://user@app.example.com",
    "https://user:pass@app.example.com", "https://app.example.com:", "https://app.example.com:0",
    "https://app.example.com:65536", "https://app.example.com:123456", "https://app.example.com:-1",
    "https://app.example.com:٣", "https://a.example, https://b.example", "https://a.example https://b.example",
    " https://a.example", "https://a.example\n", "https://a\x00b.example", "https://[::1", "https://::1", "https://[::1]x",
    "https://[::1%25eth0]", "https://[1.2.3.4]", "https://a\\b.example", "httpſ://a.example", "https://" + "a" * 600,
    "https://" + "ü" * 300,
]  # fmt: skip


@pytest.mark.parametrize(("text", "normal"), SAME)
def test_an_origin_has_one_spelling(text: str, normal: str) -> None:
    assert normal_origin(text) == normal


@pytest.mark.parametrize("text", NONE)
def test_what_is_no_origin_has_none(text: str) -> None:
    assert normal_origin(text) is None


@given(st.text(alphabet="htps:/[]axnull.-:0189@%*, K\n", max_size=30) | st.text(max_size=40))
def test_the_one_spelling_is_its_own_spelling(text: str) -> None:
    normal = normal_origin(text)
    assert normal is None or (normal_origin(normal) == normal and normal.isascii() and normal.isprintable())


@given(
    st.sampled_from(["http", "https"]),
    st.sampled_from(["a.example", "b.example", "a.example.", "[::1]"]),
    st.integers(1, 65535),
    st.sampled_from(["http", "https"]),
    st.sampled_from(["a.example", "b.example", "a.example.", "[::1]"]),
    st.integers(1, 65535),
)
def test_origins_are_equal_when_scheme_host_and_port_are(s1: str, h1: str, p1: int, s2: str, h2: str, p2: int) -> None:
    one, two = normal_origin(f"{s1}://{h1}:{p1}"), normal_origin(f"{s2}://{h2}:{p2}")
    assert (one == two) == ((s1, h1, p1) == (s2, h2, p2))
